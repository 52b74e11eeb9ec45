"""The first thing to run where a GPU is at hand: numbers, order of events and speed that were only looked at on a CPU.

    python benchmarks/acceptance.py --output acceptance              # on a GPU: about five minutes, at most ten
    python benchmarks/acceptance.py --output acceptance --device cpu # the whole course, small: tests the script itself

Each check writes what it found into ``<output>/acceptance.json`` as soon as it is done, so that a run that is cut off
leaves what it had. A check that fails does not stop those behind it; the exit status is 1 if any has failed. Nothing is
downloaded. Several GPUs on NCCL, faiss-gpu and the slow float64 of consumer cards are not covered.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.acceptance_place import Findings, Place

RESULT = "acceptance.json"


def checks() -> dict[str, Callable[[Place, Findings], None]]:
    """In the order in which they are run: what is wrong, then what is slow."""
    from benchmarks import acceptance_numbers as numbers
    from benchmarks import acceptance_speed as speed

    both = [
        *(numbers.versions, numbers.losses, numbers.trajectories, numbers.labels, numbers.approximate),
        *(numbers.degenerate_features, numbers.reranking, numbers.configs, numbers.graphs, numbers.like_the_cpu),
        *(numbers.order_of_extraction, numbers.resume, numbers.one_process_group),
        *(speed.clustering, speed.ranking, speed.million, speed.steps, speed.images),
    ]
    return {check.__name__: check for check in both}


def run(place: Place, names: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """Run checks until the time is up; a record of each, written after each."""
    records: list[dict[str, Any]] = []
    end = time.monotonic() + seconds
    for name in names:
        record: dict[str, Any] = {"check": name, "state": "skipped: the time was up"}
        if time.monotonic() < end:
            record = _checked(name, place)
        records.append(record)
        (place.folder / RESULT).write_text(json.dumps(records, indent=1) + "\n")
        print(f"{name}: {record['state']}", *record.get("failures", []), sep="\n  ", flush=True)
    return records


def _checked(name: str, place: Place) -> dict[str, Any]:
    findings, start = Findings(), time.monotonic()
    state = "passed"
    try:
        checks()[name](place, findings)
        state = "failed" if findings.failures else "passed"
    except Exception:
        state = "broken"
        findings.failures.append(traceback.format_exc())
    finally:
        place.forget()
    took = round(time.monotonic() - start, 1)
    return {"check": name, "state": state, "seconds": took, "numbers": findings.numbers, "failures": findings.failures}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 0 where nothing has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for acceptance.json")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--only", nargs="*", help="names of checks")
    parser.add_argument("--seconds", type=float, default=540, help="no check is begun after so many")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as data:
        os.environ["FASTREID_DATASETS"] = data  # for loader workers; this process has read it at import
        importlib.import_module("fastreid.data.build")._root = data  # type: ignore[attr-defined]
        logging.disable(logging.INFO)
        known = checks()
        unknown = set(args.only or ()) - set(known)
        if unknown:
            parser.error(f"there is no check {', '.join(sorted(unknown))}; choose among {', '.join(known)}")
        place = Place.of(args.device, Path(args.output))
        records = run(place, args.only or list(known), args.seconds)
    return int(any(record["state"] in ("failed", "broken") for record in records))


if __name__ == "__main__":
    sys.exit(main())
