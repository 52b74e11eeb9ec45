"""What a user may choose about the clustering, with the key that sets it in a fastreid config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from fastreid_ice.clustering.methods import METHODS
from fastreid_ice.clustering.tracks import NONE, TRACK_MODES

SEARCHES = ("exact", "ivf", "hnsw")
BACKENDS = ("auto", "numba", "torch")

_NO_KEY = {"config_key": False}  # the metadata of a field that is no key of its own in CLUSTERING


@dataclass(frozen=True)
class ClusteringConfig:
    """Parameters of one clustering; the defaults are those of ICE on Market-1501.

    Attributes:
        method: CLUSTERING.METHOD. "jaccard_dbscan" (ICE), "ca_jaccard_dbscan" (likewise, on
            camera-aware Jaccard distances), "kmeans" (spherical k-means, no outliers), "ground_truth" (the true
            identities, an upper bound) or a name given to :func:`~fastreid_ice.clustering.register_method`.
        k1: CLUSTERING.K1. Length of a neighbour list, the image itself included; k1 of Zhong et al., CVPR 2017.
        k2: CLUSTERING.K2. Rows averaged by the query expansion, the image's own included; 1 turns it off.
        eps: CLUSTERING.EPS. Largest Jaccard distance between two DBSCAN neighbours, in (0, 1).
        min_samples: CLUSTERING.MIN_SAMPLES. Images within eps, itself included, that make an image a core image.
        knn: CLUSTERING.KNN. "exact", or for very large sets the faiss indexes "ivf" and "hnsw" (recall is logged).
        knn_recall: CLUSTERING.KNN_RECALL. Share of the true neighbours that "ivf" and "hnsw" are to find, in (0, 1]:
            they search as thoroughly as a sample of the images needs for it.
        num_clusters: CLUSTERING.NUM_CLUSTERS. Number of clusters of "kmeans"; not used by "jaccard_dbscan".
        k1_intra: CLUSTERING.K1_INTRA. Of "ca_jaccard_dbscan" (Chen et al., CVPR 2024): nearest images of the own camera
            in a list, besides the image itself.
        k1_inter: CLUSTERING.K1_INTER. Of "ca_jaccard_dbscan": nearest images of the other cameras in a list; one more
            is taken, as in the authors' code.
        k2_intra: CLUSTERING.K2_INTRA. Of "ca_jaccard_dbscan": rows of the own camera that the query expansion averages,
            the image's own included. The authors take 2 and K2_INTER 4, or 3 and 3, and 3 and 3 in the first epoch.
        k2_inter: CLUSTERING.K2_INTER. Of "ca_jaccard_dbscan": rows of the other cameras that it averages.
        tracks: CLUSTERING.TRACKS. What trackers' tracks mean: "none" (nothing), "must_link" (the images of one track
            are one person: a track is clustered as one row, the mean of its images' features) or "must_and_cannot_link"
            (also, two tracks of one camera at the same time are two people: a cluster that holds such tracks is split,
            see :func:`~fastreid_ice.clustering.tracks.separate_tracks`). Then k1, k2, min_samples and num_clusters
            count tracks, and an image of no track is a track of one image.
        camera_normalization: CLUSTERING.CAMERA_NORMALIZATION. Cluster features from which each camera's mean and
            deviation are taken out (:mod:`fastreid_ice.camera_normalization`), so that images of different cameras are
            nearer to each other; needs camera ids. A camera with fewer than 30 images takes those of all images.
            Before ``tracks``. Not in the paper.
        wccn_rounds: CLUSTERING.WCCN_ROUNDS. How many times to cluster again, each time with features that are whitened
            by the covariance within the clusters just found (:mod:`fastreid_ice.clustering.within_class`). One round
            costs another clustering. Not in the paper.
        wccn_shrinkage: CLUSTERING.WCCN_SHRINKAGE. Share of the identity in that covariance, in (0, 1].
        memory_budget_mb: CLUSTERING.MEMORY_BUDGET_MB. Bounds the scratch memory of a chunk, in MiB; no result depends
            on it.
        backend: CLUSTERING.BACKEND. "numba" (compiled CPU kernels; features on an accelerator are copied to the CPU),
            "torch" (index operations on the features' device) or "auto": torch for features on an accelerator, else
            numba. Both give the same labels.
        allow_tf32: CLUSTERING.ALLOW_TF32. Let CUDA use TF32 for the candidates of the exact search. Faster, and no
            longer guaranteed to be exact.
        seed: of the run, no key of CLUSTERING: the seed of k-means and of the sample on which the recall is measured.
        extra: what a method of the user's own reads, by any names; no key of the built-in methods. Their
            ``check`` may validate it (see :func:`~fastreid_ice.clustering.register_method`).
    """

    method: str = "jaccard_dbscan"
    k1: int = 30
    k2: int = 6
    eps: float = 0.55
    min_samples: int = 4
    knn: str = "exact"
    knn_recall: float = 0.9
    num_clusters: int = 0
    k1_intra: int = 5
    k1_inter: int = 20
    k2_intra: int = 2
    k2_inter: int = 4
    tracks: str = NONE
    camera_normalization: bool = False
    wccn_rounds: int = 0
    wccn_shrinkage: float = 0.2
    memory_budget_mb: int = 256
    backend: str = "auto"
    allow_tf32: bool = False
    seed: int = field(default=0, metadata=_NO_KEY)
    extra: Mapping[str, object] = field(default_factory=dict, hash=False, metadata=_NO_KEY)

    def __post_init__(self) -> None:
        _require_choice("METHOD", self.method, METHODS)
        _require_choice("KNN", self.knn, SEARCHES)
        _require_choice("BACKEND", self.backend, BACKENDS)
        _require_choice("TRACKS", self.tracks, TRACK_MODES)
        for key in ("k1", "k2", "k1_intra", "k1_inter", "k2_intra", "min_samples", "memory_budget_mb"):
            if getattr(self, key) < 1:
                raise ValueError(f"CLUSTERING.{key.upper()} is {getattr(self, key)}; it must be at least 1.")
        if not 0 < self.eps < 1:
            raise ValueError(f"CLUSTERING.EPS is {self.eps}; a Jaccard distance threshold lies between 0 and 1.")
        if not 0 < self.knn_recall <= 1:
            raise ValueError(f"CLUSTERING.KNN_RECALL is {self.knn_recall}; it must be above 0 and at most 1.")
        if self.wccn_rounds < 0:
            raise ValueError(f"CLUSTERING.WCCN_ROUNDS is {self.wccn_rounds}; it must be at least 0.")
        if not 0 < self.wccn_shrinkage <= 1:
            raise ValueError(f"CLUSTERING.WCCN_SHRINKAGE is {self.wccn_shrinkage}; it must be above 0 and at most 1.")
        if self.k2 > self.k1:
            raise ValueError(f"CLUSTERING.K2 is {self.k2} but a neighbour list has CLUSTERING.K1 = {self.k1} entries.")
        for kind, least in (("intra", 1), ("inter", 0)):
            k1, k2 = getattr(self, f"k1_{kind}"), getattr(self, f"k2_{kind}")
            if not least <= k2 <= k1 + 1:
                raise ValueError(
                    f"CLUSTERING.K2_{kind.upper()} is {k2}; it must be at least {least} and at most "
                    f"CLUSTERING.K1_{kind.upper()} (now {k1}) + 1, the length of a list."
                )
        METHODS[self.method].check(self)


def config_defaults() -> dict[str, object]:
    """The keys of CLUSTERING and their defaults, in the order of the fields of :class:`ClusteringConfig`.

    Example:
        >>> list(config_defaults())[:3], config_defaults()["EPS"], "SEED" in config_defaults()
        (['METHOD', 'K1', 'K2'], 0.55, False)
    """
    keys = [each for each in fields(ClusteringConfig) if each.metadata.get("config_key", True)]
    return {each.name.upper(): each.default for each in keys}


def _require_choice(key: str, found: str, choices: Iterable[str]) -> None:
    if found not in choices:
        raise ValueError(f"CLUSTERING.{key} is {found!r}; choose one of {', '.join(choices)}.")
