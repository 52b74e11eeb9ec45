"""The table of methods: the user's own beside the built-in ones, what they are handed, and what they may return."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastreid_ice.clustering import (
    METHODS,
    Clusterer,
    ClusteringConfig,
    check_clusters,
    method_names,
    register_method,
)
from tests.clustering_features import blobs

BUILT_IN = ("jaccard_dbscan", "kmeans", "ground_truth", "ca_jaccard_dbscan")


@pytest.fixture
def own_method():
    """Register ``mine`` with a function that returns what the test asks for; the table is as before afterwards."""
    before = dict(METHODS)

    def register(returned, **options):
        register_method("mine", **options)(lambda features, images, config, costs: returned)
        return Clusterer(ClusteringConfig("mine"))

    yield register
    METHODS.clear()
    METHODS.update(before)


def test_a_method_of_the_user(own_method):
    seen = []

    @register_method("by_camera")
    def by_camera(features, images, config, costs):
        seen.append((features, images, config.extra["offset"]))
        with costs.stage("thinking"):
            return images.camids + config.extra["offset"]

    clusterer = Clusterer(ClusteringConfig("by_camera", extra={"offset": 3}))
    features = 5 * blobs(2, 2)
    result = clusterer(features.double(), camids=np.array([4, 4, 1, 0]), names=list("abcd"), identities=[0, 0, 1, 1])
    assert result.labels.tolist() == [2, 2, 1, 0]  # 7, 7, 4, 3 without the gaps
    assert list(result.seconds) == list(result.process_peak_mb) == ["thinking"]
    ((prepared, images, _),) = seen
    assert prepared.dtype == torch.float32 and torch.allclose(prepared, blobs(2, 2), atol=1e-6)
    assert (images.names, images.identities.tolist()) == (("a", "b", "c", "d"), [0, 0, 1, 1])
    assert "by_camera" in method_names()


def test_what_is_not_known_is_none(own_method):
    @register_method("looks")
    def looks(features, images, config, costs):
        assert (images.camids, images.identities, images.names) == (None, None, None)
        return torch.zeros(len(features), dtype=torch.int32)

    assert Clusterer(ClusteringConfig("looks"))(blobs(1, 3)).labels.tolist() == [0, 0, 0]


def test_a_name_is_registered_once(own_method):
    own_method(None)
    for name in ("mine", "kmeans"):
        with pytest.raises(ValueError, match=f"{name}.*registered already"):
            register_method(name)(lambda *arguments: None)


def test_an_unknown_method_lists_all_choices(own_method):
    own_method(None)
    with pytest.raises(ValueError) as error:
        ClusteringConfig("groundtruth")
    choices = ", ".join((*BUILT_IN, "mine"))
    assert str(error.value) == f"CLUSTERING.METHOD is 'groundtruth'; choose one of {choices}."


def test_a_method_may_check_the_config(own_method):
    def check(config):
        if "size" not in config.extra:
            raise ValueError("size is missing")

    with pytest.raises(ValueError, match="size is missing"):
        own_method(None, check=check)
    assert ClusteringConfig("mine", extra={"size": 3}).extra["size"] == 3


@pytest.mark.parametrize(
    "returned, message",
    [
        (None, "'mine' returned NoneType"),
        ([0, 0, 1], "'mine' returned list"),
        (torch.zeros(4, dtype=torch.int64), r"'mine' returned labels of shape \(4,\); it must be \(3,\)"),
        (np.zeros((3, 1), int), r"'mine' returned labels of shape \(3, 1\)"),
        (torch.zeros(3), "'mine' returned labels of type torch.float32"),
        (torch.zeros(3, dtype=torch.bool), "'mine' returned labels of type torch.bool"),
        (torch.tensor([0, -2, 1]), "'mine' returned the label -2"),
    ],
)
def test_what_is_no_labels(own_method, returned, message):
    with pytest.raises(ValueError, match=message):
        own_method(returned)(blobs(1, 3))


@pytest.mark.parametrize(
    "returned, labels",
    [
        (np.array([9, -1, 2], np.int16), [1, -1, 0]),
        (torch.tensor([-1, -1, -1]), [-1, -1, -1]),
        (torch.tensor([1, 0, 1], dtype=torch.uint8), [1, 0, 1]),
    ],
)
def test_labels_are_numbered_without_gaps_in_their_order(own_method, returned, labels):
    result = own_method(returned)(blobs(1, 3))
    assert result.labels.tolist() == labels and result.labels.dtype == torch.int64
    assert result.num_clusters == max(labels) + 1
    assert result.num_outliers == labels.count(-1)


def test_ground_truth():
    identities = torch.tensor([0, 0, 2, 1])
    result = Clusterer(ClusteringConfig("ground_truth"))(blobs(2, 2), identities=identities)
    assert torch.equal(result.labels, identities)
    assert (result.num_clusters, result.num_outliers, result.seconds) == (3, 0, {})


def test_ground_truth_without_identities():
    with pytest.raises(
        ValueError,
        match=r"CLUSTERING.METHOD ground_truth needs the true identities, but the training set \(such as a.jpg\) has",
    ):
        Clusterer(ClusteringConfig("ground_truth"))(blobs(2, 2), names=["a.jpg"] * 4)


# Too few clusters


@pytest.mark.parametrize(
    "found, message",
    [
        ((5, 100), "found 5 clusters and 100 outliers, but .*raise CLUSTERING.EPS .now 0.6. or lower .*MIN_S"),
        ((1, 1), "found 1 cluster and 1 outlier, but .*if few are, lower CLUSTERING.EPS"),
        ((1, 0), "Clustering found 1 cluster and no outlier, but .* Lower CLUSTERING.EPS"),
        ((0, 9), "found no cluster: all 9 images are outliers, but .* Raise CLUSTERING.EPS .now 0.6. or lower"),
    ],
)
def test_too_few_clusters_name_the_keys_to_turn(found, message):
    config = ClusteringConfig(eps=0.6)
    with pytest.raises(ValueError, match=message):
        check_clusters(*found, 8, config)
    with pytest.raises(ValueError, match=r"a batch needs 8 clusters .*, or use a smaller batch\.$"):
        check_clusters(*found, 8, config)
    check_clusters(8, 0, 8, config)


def test_advice_of_the_other_methods(own_method):
    with pytest.raises(ValueError, match=r"Raise CLUSTERING.NUM_CLUSTERS \(now 4\)") as error:
        check_clusters(3, 0, 8, ClusteringConfig("kmeans", num_clusters=4))
    assert "EPS" not in str(error.value)
    with pytest.raises(ValueError, match="The training set has 3 identities"):
        check_clusters(3, 0, 8, ClusteringConfig("ground_truth"))
    own_method(None)
    with pytest.raises(ValueError) as error:
        check_clusters(3, 2, 8, ClusteringConfig("mine"))
    assert "CLUSTERING.METHOD 'mine'" in str(error.value)
    assert "identities" not in str(error.value) and "EPS" not in str(error.value)


def test_advice_of_the_user(own_method):
    own_method(None, advice=lambda config, clusters, outliers: f"Make {config.k1} of {clusters} and {outliers}")
    with pytest.raises(ValueError, match="Make 30 of 3 and 2, or use a smaller batch"):
        check_clusters(3, 2, 8, ClusteringConfig("mine"))
