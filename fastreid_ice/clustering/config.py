"""What a user may choose about the clustering, with the key that sets it in a fastreid config."""

from dataclasses import dataclass

METHODS = ("jaccard_dbscan", "kmeans")
SEARCHES = ("exact", "ivf", "hnsw")
BACKENDS = ("auto", "numba", "torch")


@dataclass(frozen=True)
class ClusteringConfig:
    """Parameters of one clustering; the defaults are those of ICE on Market-1501.

    Attributes:
        method: CLUSTERING.METHOD. "jaccard_dbscan" (ICE) or "kmeans" (spherical k-means, no outliers).
        k1: CLUSTERING.K1. Length of a neighbour list, the image itself included; k1 of Zhong et al., CVPR 2017.
        k2: CLUSTERING.K2. Rows averaged by the query expansion, the image's own included; 1 turns it off.
        eps: CLUSTERING.EPS. Largest Jaccard distance between two DBSCAN neighbours, in (0, 1).
        min_samples: CLUSTERING.MIN_SAMPLES. Images within eps, itself included, that make an image a core image.
        knn: CLUSTERING.KNN. "exact", or for very large sets the faiss indexes "ivf" and "hnsw" (recall is logged).
        knn_recall: CLUSTERING.KNN_RECALL. Share of the true neighbours that "ivf" and "hnsw" are to find, in (0, 1]:
            they search as thoroughly as a sample of the images needs for it.
        num_clusters: CLUSTERING.NUM_CLUSTERS. Number of clusters of "kmeans"; not used by "jaccard_dbscan".
        memory_budget_mb: CLUSTERING.MEMORY_BUDGET_MB. Bounds the scratch memory of a chunk, in MiB; no result depends
            on it.
        backend: CLUSTERING.BACKEND. "numba" (compiled CPU kernels), "torch" (index operations on the features' device)
            or "auto": torch for features on an accelerator, else numba. Both give the same labels.
        allow_tf32: CLUSTERING.ALLOW_TF32. Let CUDA use TF32 for the candidates of the exact search. Faster, and no
            longer guaranteed to be exact.
        seed: CLUSTERING.SEED. Seed of k-means and of the sample on which the recall is measured.
    """

    method: str = "jaccard_dbscan"
    k1: int = 30
    k2: int = 6
    eps: float = 0.55
    min_samples: int = 4
    knn: str = "exact"
    knn_recall: float = 0.9
    num_clusters: int = 0
    memory_budget_mb: int = 256
    backend: str = "auto"
    allow_tf32: bool = False
    seed: int = 0

    def __post_init__(self):
        _require_choice("METHOD", self.method, METHODS)
        _require_choice("KNN", self.knn, SEARCHES)
        _require_choice("BACKEND", self.backend, BACKENDS)
        for key in ("k1", "k2", "min_samples", "memory_budget_mb"):
            if getattr(self, key) < 1:
                raise ValueError(f"CLUSTERING.{key.upper()} is {getattr(self, key)}; it must be at least 1.")
        if not 0 < self.eps < 1:
            raise ValueError(f"CLUSTERING.EPS is {self.eps}; a Jaccard distance threshold lies between 0 and 1.")
        if not 0 < self.knn_recall <= 1:
            raise ValueError(f"CLUSTERING.KNN_RECALL is {self.knn_recall}; it must be above 0 and at most 1.")
        if self.k2 > self.k1:
            raise ValueError(f"CLUSTERING.K2 is {self.k2} but a neighbour list has CLUSTERING.K1 = {self.k1} entries.")
        if self.method == "kmeans" and self.num_clusters < 1:
            raise ValueError(f"CLUSTERING.METHOD 'kmeans' needs CLUSTERING.NUM_CLUSTERS >= 1, not {self.num_clusters}.")


def _require_choice(key, found, choices):
    if found not in choices:
        raise ValueError(f"CLUSTERING.{key} is {found!r}; choose one of {', '.join(choices)}.")
