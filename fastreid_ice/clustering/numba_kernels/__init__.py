"""The four stages in compiled CPU kernels, with the functions and arguments of ``torch_ops``.

What does not lie on the CPU is copied there. Sparse matrices are scipy's csr_array. The scratch memory is a few rows
per thread, so that a memory budget changes nothing.
"""

from fastreid_ice.clustering.numba_kernels import dbscan, encoding, jaccard, search

__all__ = ["dbscan", "encoding", "jaccard", "search"]
