"""The four stages in torch index operations, for features on an accelerator, with the functions of ``numba_kernels``.

The same definitions as the compiled kernels; sums run over sorted keys, so a result does not depend on the order in
which threads finish. Work is cut into chunks of rows whose expansion fits the memory budget. Sparse matrices are
:class:`~fastreid_ice.clustering.torch_ops.sparse_rows.SparseRows`.
"""

from fastreid_ice.clustering.torch_ops import dbscan, encoding, jaccard, search

__all__ = ["dbscan", "encoding", "jaccard", "search"]
