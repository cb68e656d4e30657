"""From a path on a disk to the pixels that a model sees: discover, read, decode, orient, resize."""

from geoinfer.images.decode import decode_image, decode_pixels, decode_whole, load_pixels, pixels_from_array
from geoinfer.images.discover import Source, check_sources, discover
from geoinfer.images.exif import PhotoMetadata, read_metadata
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.read import raw_problem, read_image_file
from geoinfer.images.resize import Decoded, oriented_size, resize_decoded

__all__ = [
    "Decoded",
    "PhotoMetadata",
    "Preprocessing",
    "Source",
    "check_sources",
    "decode_image",
    "decode_pixels",
    "decode_whole",
    "discover",
    "load_pixels",
    "oriented_size",
    "pixels_from_array",
    "raw_problem",
    "read_image_file",
    "read_metadata",
    "resize_decoded",
]
