"""Find the images that are most similar to others: an index on disk over a model's features.

Needs torch, numpy, faiss and Pillow; never fastreid. The model is whatever makes features of image files.
"""

from fastreid_ice.search.gallery import (
    EmbeddingModel,
    default_index_folder,
    open_gallery,
    search_folder,
    update_index,
)
from fastreid_ice.search.index import FileState, Fingerprint, SearchIndex
from fastreid_ice.search.results import GalleryUpdate, SearchResult

__all__ = [
    "EmbeddingModel",
    "FileState",
    "Fingerprint",
    "GalleryUpdate",
    "SearchIndex",
    "SearchResult",
    "default_index_folder",
    "open_gallery",
    "search_folder",
    "update_index",
]
