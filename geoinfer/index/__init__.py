"""The reference index: embeddings of photos whose place is known, and the search for the nearest of them."""

from geoinfer.answer import MAX_K, Answer
from geoinfer.index.base import Neighbors, ReferenceIndex, References
from geoinfer.index.exact import ExactIndex
from geoinfer.index.faiss_index import FaissFlatIndex
from geoinfer.index.leave_one_out import LeaveOneOut, held_out_photos
from geoinfer.index.store import IndexManifest, StoredIndex, open_index, read_index_manifest, write_index

__all__ = [
    "MAX_K",
    "Answer",
    "ExactIndex",
    "FaissFlatIndex",
    "IndexManifest",
    "LeaveOneOut",
    "Neighbors",
    "ReferenceIndex",
    "References",
    "StoredIndex",
    "held_out_photos",
    "open_index",
    "read_index_manifest",
    "write_index",
]
