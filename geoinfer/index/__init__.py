"""The reference index: embeddings of photos whose place is known, and the search for the nearest of them."""

from geoinfer.answer import MAX_K, Answer
from geoinfer.index.base import Neighbors, ReferenceIndex, References
from geoinfer.index.exact import ExactIndex
from geoinfer.index.exchange import index_lock, is_index, recover_index
from geoinfer.index.flat import FlatIndex
from geoinfer.index.leave_one_out import LeaveOneOut, held_out_photos
from geoinfer.index.manifest import IndexManifest, read_index_manifest
from geoinfer.index.store import StoredIndex, open_index, update_index
from geoinfer.index.writer import IndexWriter, write_index

__all__ = [
    "MAX_K",
    "Answer",
    "ExactIndex",
    "FlatIndex",
    "IndexManifest",
    "IndexWriter",
    "LeaveOneOut",
    "Neighbors",
    "ReferenceIndex",
    "References",
    "StoredIndex",
    "held_out_photos",
    "index_lock",
    "is_index",
    "open_index",
    "read_index_manifest",
    "recover_index",
    "update_index",
    "write_index",
]
