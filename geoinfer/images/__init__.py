"""From a path on a disk to the pixels that a model sees: discover, read, decode, orient, resize."""

from geoinfer.images.decode import decode_pixels, load_pixels, oriented_size, pixels_from_array
from geoinfer.images.discover import Source, check_sources, discover
from geoinfer.images.exif import gps_coordinates
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.read import read_image_file

__all__ = [
    "Preprocessing",
    "Source",
    "check_sources",
    "decode_pixels",
    "discover",
    "gps_coordinates",
    "load_pixels",
    "oriented_size",
    "pixels_from_array",
    "read_image_file",
]
