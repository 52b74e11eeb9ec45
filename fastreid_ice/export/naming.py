"""How an exported file is called: as fastreid's model zoo names its own, and as trackers recognise a model.

Pure functions of a config, read as a mapping.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Training set -> its short name in the zoo's weight files, and its folder under the zoo's configs/.
ZOO_DATASETS = {
    "Market1501": ("market", "Market1501"),
    "DukeMTMC": ("duke", "DukeMTMC"),
    "MSMT17": ("msmt", "MSMT17"),
    "MSMT17TrainVal": ("msmt", "MSMT17"),
    "VeRi": ("veri", "VeRi"),
    "VeRiWild": ("veriwild", "VERIWild"),
    "SmallVeRiWild": ("veriwild", "VERIWild"),
    "MediumVeRiWild": ("veriwild", "VERIWild"),
    "LargeVeRiWild": ("veriwild", "VERIWild"),
    "VehicleID": ("vehicleid", "VehicleID"),
    "SmallVehicleID": ("vehicleid", "VehicleID"),
    "MediumVehicleID": ("vehicleid", "VehicleID"),
    "LargeVehicleID": ("vehicleid", "VehicleID"),
}
# What trackers read out of a file's name to treat it otherwise: other sizes, other statistics.
SPECIAL_WORDS = {"vehicleid": "vehicle_id", "veri": "ve_ri", "clip": "cl_ip"}

_ICE_LOSSES = ("AgnosticLoss", "CrossCameraLoss", "HardInstanceLoss", "SoftInstanceLoss")
_ZOO_BACKBONES = {"resnet": "R", "resnest": "S", "resnext": "X"}


def method_name(cfg: Mapping[str, Any]) -> str:
    """ "ice", "ice_agnostic" (trained without cameras) or "ice_labels" (trained with the true labels).

    Trained with the labels of another dataset, the first two end with "_source".

    Example:
        >>> method_name({"CLUSTERING": {"METHOD": "jaccard_dbscan"}, "DATASETS": {"USE_CAMERAS": False}})
        'ice_agnostic'
    """
    if cfg["CLUSTERING"]["METHOD"] == "ground_truth":
        return "ice_labels"
    name = "ice" if cfg["DATASETS"]["USE_CAMERAS"] else "ice_agnostic"
    return f"{name}_source" if cfg["DATASETS"].get("SOURCE") else name


def own_losses(cfg: Mapping[str, Any]) -> list[str]:
    """The losses of a config that are not ICE's: its method is another, though :func:`method_name` cannot tell."""
    return [name for name in cfg["MODEL"]["LOSSES"]["NAME"] if name not in _ICE_LOSSES]


def zoo_backbone(backbone: Mapping[str, Any]) -> str:
    """The zoo's name of a MODEL.BACKBONE.

    Example:
        >>> zoo_backbone({"NAME": "build_resnet_backbone", "DEPTH": "50x", "WITH_IBN": True})
        'R50-ibn'
        >>> zoo_backbone({"NAME": "build_osnet_backbone", "DEPTH": "x0_25"})
        'osnet_x0_25'
    """
    family, depth = _family(backbone), str(backbone["DEPTH"])
    if family in _ZOO_BACKBONES:
        name = _ZOO_BACKBONES[family] + depth.rstrip("x")
    else:
        name = _with_depth(family, depth)
    return name + "".join(f"-{word}" for word in _extras(backbone))


def tracker_backbone(backbone: Mapping[str, Any]) -> str:
    """The name by which trackers know a MODEL.BACKBONE.

    Example:
        >>> tracker_backbone({"NAME": "build_resnet_backbone", "DEPTH": "50x", "WITH_IBN": True})
        'resnet50_ibn'
        >>> tracker_backbone({"NAME": "build_osnet_backbone", "DEPTH": "x1_0", "WITH_IBN": True})
        'osnet_ibn_x1_0'
        >>> tracker_backbone({"NAME": "build_mobilenetv2_backbone", "DEPTH": "1.0x"})
        'mobilenetv2_x1_0'
    """
    family, depth, extras = _family(backbone), str(backbone["DEPTH"]), _extras(backbone)
    if family in _ZOO_BACKBONES:
        return "_".join([family + depth.rstrip("x"), *extras]).lower()
    if family == "osnet":
        return "_".join([family, *extras, depth])
    return "_".join([_with_depth(family, depth), *extras]).lower()


def zoo_dataset(names: Sequence[str]) -> tuple[str, str]:
    """Short name and folder of the training sets; an unknown one is its own, lowered.

    Example:
        >>> zoo_dataset(["Market1501"]), zoo_dataset(["MyShop", "DukeMTMC"])
        (('market', 'Market1501'), ('myshop_duke', 'MyShop_DukeMTMC'))
    """
    known = [ZOO_DATASETS.get(name, (_word(name).lower(), _word(name))) for name in names]
    return "_".join(short for short, _ in known), "_".join(folder for _, folder in known)


def test_sets_of(names: Sequence[str]) -> list[str]:
    """The test sets that belong to training sets: MSMT17TrainVal is MSMT17's.

    Example:
        >>> test_sets_of(["MSMT17TrainVal", "Market1501"])
        ['MSMT17', 'Market1501']
    """
    return [re.sub("TrainVal$", "", name) for name in names]


def zoo_names(cfg: Mapping[str, Any], name: str | None = None) -> tuple[str, str]:
    """Weight file without its ending, and config file, relative to the zoo.

    Args:
        cfg: of the run.
        name: of the method, instead of :func:`method_name`.

    Example: ``("market_ice_R50", "configs/Market1501/ice_R50.yml")``.
    """
    short, folder = zoo_dataset(cfg["DATASETS"]["NAMES"])
    method, backbone = _method(cfg, name), zoo_backbone(cfg["MODEL"]["BACKBONE"])
    return f"{short}_{method}_{backbone}", f"configs/{folder}/{method}_{backbone}.yml"


def tracker_name(
    cfg: Mapping[str, Any], input_form: str = "normalized", *, raw_output: bool = False, name: str | None = None
) -> str:
    """File name without ending, such as "resnet50_market1501_ice"; an unusual input or output is appended.

    The architecture stands first; no word of :data:`SPECIAL_WORDS` is left in it.

    Args:
        cfg: of the run.
        input_form: see :data:`fastreid_ice.export.encoder.INPUT_FORMS`.
        raw_output: whether the embeddings keep their length.
        name: of the method, instead of :func:`method_name`.
    """
    dataset = "_".join(_word(name).lower() for name in test_sets_of(cfg["DATASETS"]["NAMES"]))
    parts = [tracker_backbone(cfg["MODEL"]["BACKBONE"]), dataset, _method(cfg, name)]
    parts += [input_form] * (input_form != "normalized") + ["raw"] * raw_output
    whole = "_".join(part for part in parts if part)
    for word, harmless in SPECIAL_WORDS.items():
        whole = whole.replace(word, harmless)
    return whole


def _method(cfg: Mapping[str, Any], name: str | None) -> str:
    return method_name(cfg) if name is None else _word(name).lower()


def _family(backbone: Mapping[str, Any]) -> str:
    return re.sub("^build_|_backbone$", "", backbone["NAME"])


def _extras(backbone: Mapping[str, Any]) -> list[str]:
    return [word for word in ("ibn", "se", "nl") if backbone.get(f"WITH_{word.upper()}")]


def _with_depth(family: str, depth: str) -> str:
    """A family and its depth or width: "x1_0" for fastreid's "1.0x", as elsewhere."""
    if re.fullmatch(r"\d+\.\d+x", depth):
        depth = "x" + depth.rstrip("x").replace(".", "_")
    return f"{_word(family)}_{_word(depth)}" if depth else _word(family)


def _word(text: str) -> str:
    """Text as part of a file name: letters, digits, underscores."""
    return re.sub(r"\W+", "_", text).strip("_")
