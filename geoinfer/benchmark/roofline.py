"""The roofline: what a device allows for a model at best, and the share of it that is reached.

Of two times the longer counts (S. Williams, A. Waterman and D. Patterson, "Roofline: an insightful visual performance
model for multicore architectures", Communications of the ACM 52(4), 2009): multiplying, at the rate of a large matrix
product in the same precision; and reading the weights once a batch, and the pixels, at the rate of a large copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from geoinfer.benchmark.operations import count_operations
from geoinfer.benchmark.peaks import BYTES
from geoinfer.benchmark.result import Roofline
from geoinfer.engines.sidecar import read_sidecar
from geoinfer.errors import ModelError
from geoinfer.integrity import sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from geoinfer.benchmark.operations import Operations


def roofline(
    operations: Operations, peaks: Mapping[str, float], *, batch: int, reached: float, device: str
) -> Roofline:
    """The roofline of a model on a device.

    Args:
        operations: of the model.
        peaks: of the device, by `measure_peaks`.
        batch: photos in a call: its weights are read once for all of them.
        reached: photos a second of embedding alone.
        device: of what these are, as of an embedder.

    Raises:
        ModelError: the model computes in a precision that the device has no rate for.
    """
    if missing := sorted(set(operations.flop) - set(peaks)):
        raise ModelError(f"no rate of {', '.join(missing)} products is known for {device}")
    multiplying = sum(flop / peaks[precision] for precision, flop in operations.flop.items())
    of_memory = operations.weight_bytes / batch + operations.image_bytes
    limit = 1 / max(multiplying, of_memory / peaks[BYTES])
    return Roofline(
        flop_per_image=operations.total,
        bytes_per_image=of_memory,
        peak_flops=operations.total / multiplying if multiplying else max(peaks.values()),
        peak_bytes_per_second=peaks[BYTES],
        images_per_second=limit,
        share=reached / limit,
        device=device,
    )


def operations_of(model: Path) -> Operations:
    """Counts the operations of a model, or of the ONNX model that an engine was built from, if that lies beside it.

    Raises:
        ModelError: they cannot be counted; the message says why.
        InputError: there is no such engine.
        MissingPackageError: ONNX Runtime is not installed.
    """
    if model.suffix.lower() != ".trt":
        return count_operations(model)
    built_from = read_sidecar(model).onnx
    onnx = model.with_name(built_from.name)
    if not onnx.is_file() or sha256_of(onnx) != built_from.sha256:
        raise ModelError(
            f"{model}: operations are counted in {built_from.name}, from which it was built: not beside it"
        )
    return count_operations(onnx)
