"""geoinfer tells where a photo was taken, from its pixels alone.

    from geoinfer import Geolocator

    with Geolocator.open() as geolocator:
        for prediction in geolocator.locate(["holiday/IMG_0001.jpg"]):
            print(prediction.latitude, prediction.longitude, prediction.radius_km)

Importing the package imports nothing heavy: each public name is loaded when it is first used, so that
`geoinfer --help` and the shell's completion stay instant.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoinfer.backends import open_embedder as open_embedder
    from geoinfer.errors import GeoInferError as GeoInferError
    from geoinfer.geolocator import Geolocator as Geolocator
    from geoinfer.images import Preprocessing as Preprocessing
    from geoinfer.index import open_index as open_index
    from geoinfer.prediction import Prediction as Prediction

# Since 1.29 ONNX Runtime reports each process to its maker when it is imported, also on Linux, and keeps an identifier
# on the disk. This is its opt-out, which counts only before it is loaded; `disable_telemetry_events` comes too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"

_HOME = {
    "GeoInferError": "geoinfer.errors",
    "Geolocator": "geoinfer.geolocator",
    "Prediction": "geoinfer.prediction",
    "Preprocessing": "geoinfer.images",
    "open_embedder": "geoinfer.backends",
    "open_index": "geoinfer.index",
}

__all__ = ["GeoInferError", "Geolocator", "Prediction", "Preprocessing", "__version__", "open_embedder", "open_index"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'geoinfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
