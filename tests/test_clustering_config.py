"""The choices, and the messages about wrong ones."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields

import pytest

from fastreid_ice.clustering import ClusteringConfig, config_defaults


@pytest.mark.parametrize(
    "wrong, key",
    [
        ({"eps": 1.5}, "CLUSTERING.EPS"),
        ({"eps": 0}, "CLUSTERING.EPS"),
        ({"k1": 0}, "CLUSTERING.K1"),
        ({"k1": 4, "k2": 6}, "CLUSTERING.K2"),
        ({"min_samples": 0}, "CLUSTERING.MIN_SAMPLES"),
        ({"knn": "annoy"}, "CLUSTERING.KNN"),
        ({"knn_recall": 0}, "CLUSTERING.KNN_RECALL"),
        ({"knn_recall": 1.1}, "CLUSTERING.KNN_RECALL"),
        ({"method": "infomap"}, "CLUSTERING.METHOD"),
        ({"backend": "cuda"}, "CLUSTERING.BACKEND"),
        ({"method": "kmeans"}, "CLUSTERING.NUM_CLUSTERS"),
    ],
)
def test_wrong_configuration_names_the_key(wrong, key):
    with pytest.raises(ValueError, match=key):
        ClusteringConfig(**wrong)


def test_the_keys_of_the_config_file():
    defaults = config_defaults()
    assert defaults["METHOD"] == "jaccard_dbscan" and defaults["MEMORY_BUDGET_MB"] == 256
    assert not {"SEED", "EXTRA"} & defaults.keys()
    assert ClusteringConfig(**{key.lower(): value for key, value in defaults.items()}) == ClusteringConfig()


def test_every_field_is_documented():
    text = inspect.cleandoc(ClusteringConfig.__doc__)  # as Python 3.13 keeps it
    for each in fields(ClusteringConfig):
        assert f"\n    {each.name}: " in text
        assert (f"{each.name}: CLUSTERING.{each.name.upper()}. " in text) == (each.name.upper() in config_defaults())


def test_it_is_frozen():
    config = ClusteringConfig(extra={"a": 1})
    assert hash(config) == hash(ClusteringConfig(extra={"a": 2})) and config != ClusteringConfig(extra={"a": 2})
    with pytest.raises(FrozenInstanceError):
        config.eps = 0.3
