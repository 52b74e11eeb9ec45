"""From runs to rows: which runs are seeds of one setting, and what tells settings apart."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from fastreid_ice.report.derived import BEST
from fastreid_ice.report.manifest import WITHOUT_EFFECT, flatten
from fastreid_ice.report.records import best_record, last_record, score_key, start_record
from fastreid_ice.report.tables.model import (
    ALL_EPOCHS,
    EPOCHS,
    METRICS,
    SETTINGS,
    WITH_IDENTITIES,
    WITH_SOURCE,
    Cell,
    Published,
    Row,
    Run,
    Table,
    aggregate,
    dataset_name,
    sorted_datasets,
)

logger = logging.getLogger(__name__)

# They are the columns of the table, or said as "trained on".
_DATA_KEYS = {"DATASETS.NAMES", "DATASETS.TESTS"}
_TRAINING_SETS = {"MSMT17TrainVal": "MSMT17"}  # training sets that are named otherwise than their test set
LOSSES = "MODEL.LOSSES.NAME"
# Said of a row, namesakes or not, and ranked apart: its scores are of another protocol than those of other methods.
_PROTOCOL = {
    "TEST.RERANK.ENABLED": "re-ranked",
    "TEST.AQE.ENABLED": "query expansion",
    "TEST.FLIP.ENABLED": "flipped images averaged in",
    "TEST.CAMERA_NORMALIZATION": "camera-normalised test features",
}
Labels = tuple[Union[str, bool], ...]  # one per column


@dataclass
class Group:
    """The runs of one setting on one test set: they differ in their seed only."""

    name: str
    backbone: str
    test: str
    source: str  # what it was trained on, where that is not the test set's training set
    state: str  # of runs that are unfinished, or whose config was changed on the way
    setting: str
    config: Mapping[str, Any]
    runs: list[Run] = field(default_factory=list)

    @property
    def family(self) -> tuple[str, ...]:
        """What is said of a row before its config is looked at."""
        return self.name, self.backbone, self.source, self.state

    @property
    def protocol(self) -> str:
        return protocol(self.config)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Put the seeds of one setting together, per test set, in the order in which the settings appear."""
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        flat = flatten(run.manifest["config"])
        config = {key: value for key, value in flat.items() if key not in WITHOUT_EFFECT | _DATA_KEYS}
        for key, digest in (run.manifest.get("digests") or {}).items():
            if key in config:  # of a path the manifest has the last component: two files may be of one name
                config[key] = f"{config[key]} ({digest})"
        for test in run.tests:
            group = Group(
                name=run.name,
                backbone=run.manifest["backbone"],
                test=test,
                source=_source(run.manifest["datasets"]["train"], test),
                state=_state(run),
                setting=_setting(flat),
                config=config,
            )
            key = (*group.family, test, json.dumps(config, sort_keys=True))
            groups.setdefault(key, group).runs.append(run)
    for group in groups.values():
        rows = Counter((epoch, run.manifest["seed"]) for run in group.runs for epoch in _epochs_of(run))
        repeated = [seed for (_, seed), n in rows.items() if n > 1]
        if repeated:
            logger.warning("%s on %s has seed %s more than once: each counts", group.name, group.test, repeated[0])
    return list(groups.values())


def _epochs_of(run: Run) -> tuple[str, ...]:
    """Which of ``ALL_EPOCHS`` the rows of a run can be: one evaluated by itself is either its best or its last."""
    if "evaluated" not in run.manifest:
        return ALL_EPOCHS
    return ("best",) if run.manifest["evaluated"] == BEST else ("last",)


def _source(train: Sequence[str], test: str) -> str:
    names = [_TRAINING_SETS.get(name, name) for name in train]
    return "" if names == [test] else " + ".join(dataset_name(name) for name in train)


def _state(run: Run) -> str:
    """What sets a run apart from those that were trained from their beginning to their end with one config."""
    done, epochs = run.manifest["epochs_done"], run.manifest["epochs"]
    parts = [] if run.finished else [f"unfinished, epoch {done} of {epochs}"]
    for change in run.manifest.get("changed") or []:
        values = ", ".join(f"{key} {format_value(value)}" for key, value in change["before"].items())
        parts.append(f"{values} until epoch {change['until_epoch']}")
    return "; ".join(parts)


def _setting(config: Mapping[str, Any]) -> str:
    without, with_cameras, *_ = SETTINGS
    if config.get("CLUSTERING.METHOD") == "ground_truth":
        return WITH_IDENTITIES
    if config.get("DATASETS.SOURCE"):
        return WITH_SOURCE
    return with_cameras if config.get("DATASETS.USE_CAMERAS", True) else without


def protocol(config: Mapping[str, Any]) -> str:
    """What sets the scores of a config apart from those that papers compare, such as "re-ranked"; "" for nothing.

    Args:
        config: dotted keys and their values.
    """
    texts = [text for key, text in _PROTOCOL.items() if config.get(key)]
    if config.get("TEST.METRIC") == "jaccard":  # the k-reciprocal distance alone
        texts.insert(0, _PROTOCOL["TEST.RERANK.ENABLED"])
    return ", ".join(dict.fromkeys(texts))


def differing_keys(groups: Iterable[Group]) -> list[str]:
    """Config keys whose values differ between groups of the same test set, in the order of the config.

    Groups of different test sets are not compared: a dataset's own settings do not make another method.
    """
    keys: dict[str, None] = {}
    by_test: dict[str, list[Mapping[str, Any]]] = {}
    for group in groups:
        by_test.setdefault(group.test, []).append(group.config)
    for configs in by_test.values():
        known = dict.fromkeys(key for config in configs for key in config)
        for key in known:
            if any(config.get(key) != configs[0].get(key) for config in configs):
                keys[key] = None
    return list(keys)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The shortest endings of dotted keys that tell them apart.

    Example:
        >>> short_names(["CLUSTERING.EPS", "LOSSES.AGNOSTIC.SCALE", "LOSSES.SOFT.SCALE"])
        {'CLUSTERING.EPS': 'EPS', 'LOSSES.AGNOSTIC.SCALE': 'AGNOSTIC.SCALE', 'LOSSES.SOFT.SCALE': 'SOFT.SCALE'}
    """
    parts = {key: key.split(".") for key in keys}
    names = {}
    for key, own in parts.items():
        lengths = range(2 if own[-1] in ("NAME", "ENABLED", "PATH") and len(own) > 1 else 1, len(own) + 1)
        others = [other for name, other in parts.items() if name != key]
        length = next((n for n in lengths if all(other[-n:] != own[-n:] for other in others)), len(own))
        names[key] = ".".join(own[-length:])
    return names


def format_value(value: Any) -> str | bool:
    """A config's value for a reader; on and off stay a bool, and a key that a config lacks is "unset"."""
    if isinstance(value, bool):
        return value
    if isinstance(value, list):
        texts = [str(item).removesuffix("Loss") for item in value]
        return ("+" if any(isinstance(item, str) for item in value) else "/").join(texts) or "none"
    return "unset" if value is None else str(value) or "none"


def build_table(
    runs: Sequence[Run],
    *,
    published: Sequence[Published] = (),
    ablation: bool = False,
    epochs: Sequence[str] = EPOCHS,
) -> Table:
    """Arrange runs as methods (or as the settings of an ablation) x test sets.

    Args:
        runs: see :func:`fastreid_ice.report.tables.read_runs`; none makes a table of published numbers alone.
        published: rows of others; with runs, only those on the runs' test sets are kept.
        ablation: what differs between the runs becomes the columns.
        epochs: which of ``ALL_EPOCHS`` get a row; "start" only where a run has evaluated it.

    Raises:
        ValueError: nothing to show, no score of these epochs, or an ablation of runs that do not differ.
    """
    if ablation and published:
        raise ValueError("An ablation compares runs of our own: leave --published away")
    groups = group_runs(runs)
    tests = {group.test for group in groups} or {test for entry in published for test in entry.results}
    kept = tuple(entry for entry in published if tests & set(entry.results))
    if published and not kept:
        known = ", ".join(sorted_datasets(test for entry in published for test in entry.results))
        raise ValueError(f"Nothing is published on {', '.join(sorted(tests))}; there are numbers on {known}")
    if not groups and not kept:
        raise ValueError("There is nothing to show: give the folders of runs, or --published")
    columns, labelled = _ablation(groups) if ablation else _methods(groups)
    rows = _rows(columns, labelled, epochs)
    if not rows and not kept:
        raise ValueError(
            f"None of the runs has a score of the epochs {', '.join(epochs)} (--epochs): the start is scored with "
            "TEST.EVAL_START True only."
        )
    return Table(columns, sorted_datasets(tests), rows, kept, grouped=not ablation)


def _methods(groups: Sequence[Group]) -> tuple[tuple[str, ...], list[tuple[Labels, Group]]]:
    """Columns and each group's labels: its method, with what sets it apart from its namesakes, and its backbone."""
    keys = {group.family: differing_keys(g for g in groups if g.family == group.family) for group in groups}
    return ("Method", "Backbone"), [((_title(group, keys[group.family]), group.backbone), group) for group in groups]


def _title(group: Group, keys: Sequence[str]) -> str:
    parts = [group.name] + [group.protocol] * bool(group.protocol)
    for key, name in short_names(key for key in keys if key not in _PROTOCOL).items():
        value = format_value(group.config.get(key))
        word = "losses" if key == LOSSES else name
        parts.append(f"{word} {('off', 'on')[value] if isinstance(value, bool) else value}")
    parts += [f"trained on {group.source}"] * bool(group.source) + [group.state] * bool(group.state)
    return ", ".join(parts)


def _ablation(groups: Sequence[Group]) -> tuple[tuple[str, ...], list[tuple[Labels, Group]]]:
    """Columns and each group's labels: a column per loss where they differ, and one per other differing key."""
    keys = differing_keys(groups)
    if not keys:
        raise ValueError(f"An ablation needs runs that differ: these {len(groups)} have one config but for their seeds")
    losses: dict[str, None] = {}
    if LOSSES in keys:
        keys.remove(LOSSES)
        losses = dict.fromkeys(loss for group in groups for loss in group.config.get(LOSSES) or [])

    def labels(group: Group) -> Labels:
        on = [loss in (group.config.get(LOSSES) or []) for loss in losses]
        return (*on, *(format_value(group.config.get(key)) for key in keys))

    said = {title: [getattr(group, title) for group in groups] for title in _EXTRA}
    distinct = {(labels(group), group.test) for group in groups}
    if len({(*key, group.name) for group in groups for key in [(labels(group), group.test)]}) == len(distinct):
        del said["name"]  # the config tells the methods apart
    extra = [title for title, texts in said.items() if any(texts)]
    keys = [key for key in keys if key not in _PROTOCOL]  # said in a column of their own
    columns = [*(_EXTRA[title] for title in extra), *(loss.removesuffix("Loss") for loss in losses)]
    labelled = [((*(getattr(group, title) for title in extra), *labels(group)), group) for group in groups]
    return (*columns, *short_names(keys).values()), labelled


_EXTRA = {"name": "Method", "protocol": "Protocol", "source": "Trained on", "state": "State"}


def _rows(columns: Sequence[str], labelled: Sequence[tuple[Labels, Group]], epochs: Sequence[str]) -> tuple[Row, ...]:
    """One row per labels and epoch, with the cells of all test sets, by setting and then as they came."""
    merged: dict[tuple[int, Labels], list[dict[str, Group]]] = {}
    for labels, group in labelled:
        rows = merged.setdefault((SETTINGS.index(group.setting), labels), [{}])
        if group.test in rows[-1]:  # another config that reads alike
            rows.append({})
        rows[-1][group.test] = group
    built = []
    for (_, labels), alike in sorted(merged.items(), key=lambda item: item[0][0]):
        for groups in alike:
            first = next(iter(groups.values()))
            runs = [run for group in groups.values() for run in group.runs]
            finished = all(run.finished for run in runs)
            changed = any(run.manifest.get("changed") for run in runs)
            for epoch in epochs:
                cells = {test: cell for test, group in groups.items() if (cell := _cell(group, epoch)).runs}
                if not cells:  # nobody has evaluated the start
                    continue
                name = _plain_name(columns, labels, first)
                built.append(Row(labels, first.setting, epoch, cells, finished, name, first.protocol, changed))
    return tuple(built)


def _plain_name(columns: Sequence[str], labels: Labels, group: Group) -> str:
    """A row's labels in one line, the method first."""
    texts = []
    for column, label in zip(columns, labels):
        if isinstance(label, bool):
            texts += [column] * label
        elif label:
            texts.append(label if column in ("Method", "Backbone", *_EXTRA.values()) else f"{column} {label}")
    return ", ".join(texts if "Method" in columns else [group.name, *texts])


def _cell(group: Group, epoch: str) -> Cell:
    find = {"start": start_record, "best": best_record, "last": last_record}[epoch]
    of_epoch = [run for run in group.runs if epoch in _epochs_of(run)]
    found = [(run, record) for run in of_epoch if (record := find(run.records, run.tests)) is not None]
    scores = {}
    for metric in METRICS:
        values = [record.get(score_key(run.tests, group.test, metric)) for run, record in found]
        if values and None not in values:
            scores[metric] = aggregate(float(value) for value in values if value is not None)
    return Cell(scores, tuple(record["epoch"] for _, record in found), tuple(run for run, _ in found))
