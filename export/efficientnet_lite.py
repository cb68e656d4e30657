"""EfficientNet-Lite with ImageNet weights as an ONNX embedder."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from export.onnx_model import ExportOptions, export_onnx
from export.torch_embedder import TorchEmbedder
from geoinfer.images import Preprocessing
from trainer.efficientnet_lite import load_efficientnet_lite, weights_distribution, weights_sha256

if TYPE_CHECKING:
    from pathlib import Path

SIZES: Final = {0: 224, 1: 240, 2: 260}
"""Side of the square that each variant was trained for, in pixels."""

OPSET: Final = 18
"""The model that ships was written with it; its bytes, and with them the demonstration bundle's, must not change."""


def export_efficientnet_lite(
    variant: int, path: Path, *, photos: Path | None = None, calibration: Path | None = None
) -> None:
    """Writes EfficientNet-Lite `variant` (0, 1 or 2) as an ONNX model of 1280 dimensions.

    Args:
        variant: 0, 1 or 2.
        path: the file to write; its folder must exist.
        photos: folder of photos for the parity gate; those of the checkout (`examples/photos`) when left out.
        calibration: folder of photos that int8's scales are measured on: the model is then int8, for a CPU. Its bytes
            are the same on the same machine alone, so the gate's figures are written into it as well.

    Raises:
        UsageError: no such variant.
        MissingPackageError: the package with the weights is not installed.
        GeoInferError: as `export_onnx`.
    """
    distribution = weights_distribution(variant)
    sha256 = weights_sha256(variant)
    embedder = TorchEmbedder(
        network=load_efficientnet_lite(variant).eval(),
        preprocessing=Preprocessing(
            size=SIZES[variant], resize="crop", interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        identity=f"efficientnet-lite{variant}-imagenet:{sha256[:16]}",
        source=f"EfficientNet-Lite{variant}, ImageNet weights from {distribution} {version(distribution)}",
        licence="Apache-2.0",
        weights_sha256=sha256,
    )
    export_onnx(
        embedder,
        path,
        ExportOptions(
            precision="fp32" if calibration is None else "int8",
            photos=photos,
            calibration=calibration,
            int8_target="cpu",
            opset=OPSET,
            transpose_bytes=True,
            record_parity=calibration is not None,
        ),
    )
