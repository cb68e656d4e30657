"""A torch embedder as one ONNX file: pixels in, unit embeddings out, the same bytes each time it is made.

The file is only written once ONNX Runtime gives the same embeddings as torch on real photos.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import onnx

from export.explain import first_departure
from export.graph import MAX_BYTES, OPSET, in_float32, trace, weight_bytes
from export.half import as_a_gpu_rounds, to_half
from export.parity import (
    REMEDIES,
    ParityError,
    Pictures,
    check_asked,
    check_parity,
    default_limits,
    gather_pictures,
    reference_embeddings,
)
from export.pictures import for_ranges
from geoinfer.backends.base import EmbedderIdentity
from geoinfer.engines.build_options import LARGEST_BATCH
from geoinfer.errors import ModelError, OutputError, UsageError
from geoinfer.integrity import atomic_file, canonical_json

if TYPE_CHECKING:
    from pathlib import Path

    from export.graph import Traced
    from export.parity import ParityLimits, ParityReport
    from export.torch_embedder import TorchEmbedder

Precision = Literal["fp32", "fp16", "int8"]

FORMAT: Final = "1"
"""Value of `geoinfer.format` in the metadata; raised when the meaning of inputs, outputs or metadata changes."""

_CALIBRATION_PHOTOS: Final = 128
_GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How an ONNX model is made.

    Attributes:
        precision: of weights and activations; input, output and what would suffer stay as they are.
        photos: folder searched for the photos of the parity gate; `examples/photos` of the checkout when left out.
        calibration: folder of photos that int8's scales are measured on.
        int8_target: `any` device, or `cpu` for ONNX Runtime on a CPU alone, see `export.int8.to_int8`.
        limits: of the parity gate; the defaults of the precision when left out.
        index: reference index that top-1 answers are compared on.
        labels: CSV of the photos' true places, by which the median distance is compared; needs `index`.
        max_batch: the gate's largest batch, 1 to 4096.
        explain: name the first layer that departs when the gate fails.
        opset: of the ONNX operators.
        transpose_bytes: see `export.graph.trace`.
        record_parity: write the gate's figures into the metadata. Their last digits differ between machines, and with
            them the bytes of the file.
    """

    precision: Precision = "fp32"
    photos: Path | None = None
    calibration: Path | None = None
    int8_target: Literal["any", "cpu"] = "any"
    limits: ParityLimits | None = None
    index: Path | None = None
    labels: Path | None = None
    max_batch: int = 16
    explain: bool = False
    opset: int = OPSET
    transpose_bytes: bool = False
    record_parity: bool = True


def export_onnx(embedder: TorchEmbedder, path: Path, options: ExportOptions | None = None) -> ParityReport:
    """Writes an embedder as an ONNX model, if it passes the parity gate.

    The model takes `pixels`, uint8 (batch, size, size, 3) RGB, any batch, and gives `embeddings`, float32
    (batch, dim) with unit rows. Cast, mean and std, and the L2 norm are part of the graph. The metadata say which
    model it is (`geoinfer.format`, `.identity`, `.preprocessing`, `.dim`, `.source`, `.licence`, `.weights_sha256`),
    its `geoinfer.precision` where that is not fp32, and the gate's figures (`geoinfer.parity`). The same embedder gives
    the same bytes with the same versions of torch, onnxscript, onnx and ONNX Runtime, but for those figures.

    Args:
        embedder: its network is copied, never changed.
        path: the file to write, NAME.onnx, atomically; its folder must exist. A file that is there already is replaced
            when the new one has passed the gate, and left as it is otherwise.
        options: those of the class when left out.

    Raises:
        UsageError: the options contradict each other, or the file is not called .onnx.
        InputError: no photos for the parity gate or for calibration.
        OutputError: the file cannot be written.
        ModelError: the network does not give (n, dim) float32, has no form in plain ONNX operators, is too large, or
            failed the parity gate; nothing was written.
        IndexFolderError, LabelsError, MismatchError: the index or the labels do not serve.
    """
    options = ExportOptions() if options is None else options
    # The cheap ones first: what is wrong with the arguments is told before minutes of work.
    check_options(path, options)
    _check_size(embedder, options.precision)
    wanted = embedder.preprocessing
    check_asked(options.index, options.labels, folder=options.photos, name=embedder.identity, preprocessing=wanted)
    pictures = gather_pictures(options.photos, wanted, at_least=options.max_batch)
    calibration = None
    if options.calibration is not None:
        calibration = gather_pictures(options.calibration, wanted, at_least=1, at_most=_CALIBRATION_PHOTOS)

    embedder = dataclasses.replace(embedder, network=in_float32(embedder.network))
    expected = reference_embeddings(embedder, pictures.pixels)
    identity = EmbedderIdentity(embedder.identity, expected.shape[1], wanted)
    metadata = _metadata(embedder, identity, options.precision)
    traced = trace(
        embedder.network,
        wanted,
        dim=identity.dim,
        metadata=metadata,
        opset=options.opset,
        transpose_bytes=options.transpose_bytes,
    )
    limits = default_limits(options.precision) if options.limits is None else options.limits
    model = traced.model
    # Torch's program holds the weights once more, and a half or int8 model makes the float32 one superfluous.
    explainable = traced if options.explain else None
    del traced
    checked = model
    if options.precision == "fp16":
        model = to_half(model, for_ranges(pictures.pixels))
        # ONNX Runtime computes float16 in float32 on a CPU: what is compared must be rounded as a GPU rounds it.
        checked = as_a_gpu_rounds(model)
    elif calibration is not None:
        from export.int8 import to_int8  # here, since ONNX Runtime's quantisation takes a second to import

        model, quantised = to_int8(
            model, calibration.pixels, min_cosine=limits.min_cosine, target=options.int8_target, report=_log.info
        )
        for line in quantised.lines():
            _log.info("%s", line)
        checked = model

    try:
        if checked is not model:
            few = Pictures(pictures.names[: options.max_batch], pictures.pixels[: options.max_batch])
            check_parity(
                _bytes(model),
                few,
                expected[: len(few.names)],
                limits=limits,
                max_batch=options.max_batch,
                identity=identity,
            )
        report = check_parity(
            _bytes(checked),
            pictures,
            expected,
            limits=limits,
            max_batch=options.max_batch,
            index=options.index,
            labels=options.labels,
            identity=identity,
        )
    except ParityError as error:
        if explainable is not None:
            raise _explained(error, model, explainable, pictures) from error
        raise
    if options.record_parity:
        described = {entry.key: entry.value for entry in model.metadata_props}
        described["geoinfer.parity"] = canonical_json(report.as_dict())
        onnx.helper.set_model_props(model, dict(sorted(described.items())))
    for line in report.lines():
        _log.info("%s", line)
    try:
        with atomic_file(path) as file:
            file.write(_bytes(model))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    return report


def check_options(path: Path, options: ExportOptions) -> None:
    """Finds out what is wrong with the arguments, as far as no weights are needed for it.

    Raises:
        UsageError: the options contradict each other, or the file is not called .onnx.
        OutputError: there is no folder to write into, or what is there is no file.
    """
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path.name}: there is no folder {path.parent}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: a folder is called so", hint="name a file, such as vit.onnx")
    # Also that a checkpoint, or whatever else was meant to be read, is not taken for the file to write.
    if path.suffix.lower() != ".onnx":
        raise UsageError(
            f"cannot write {path}: an ONNX model is called .onnx", hint=f"--out {path.stem or 'model'}.onnx"
        )
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: it is no regular file", hint="name a file, such as vit.onnx")
    if not 1 <= options.max_batch <= LARGEST_BATCH:
        raise UsageError(f"--max-batch {options.max_batch}: expected 1 to {LARGEST_BATCH}")
    if options.precision == "int8" and options.calibration is None:
        raise UsageError(
            "int8 takes its scales from photos, and there are none to take them from",
            hint="--calibration names a folder of some hundred photos such as the model will see",
        )
    if options.precision != "int8" and options.calibration is not None:
        raise UsageError(f"photos for calibration, and {options.precision} needs none", hint="--precision int8")


def _check_size(embedder: TorchEmbedder, precision: Precision) -> None:
    size = weight_bytes(embedder.network)
    # int8 starts from the float32 model, which ONNX Runtime calibrates.
    if (size // 2 if precision == "fp16" else size) > MAX_BYTES:
        fits = precision == "fp32" and size // 2 <= MAX_BYTES
        raise ModelError(
            f"the weights take {size / _GIB:.1f} GiB in float32, and an ONNX model of {precision} in one file "
            "holds less than 2 GiB",
            hint="--precision fp16 halves it" if fits else "take a smaller backbone",
        )


def _metadata(embedder: TorchEmbedder, identity: EmbedderIdentity, precision: Precision) -> dict[str, str]:
    metadata = {
        "geoinfer.format": FORMAT,
        "geoinfer.identity": identity.name,
        "geoinfer.preprocessing": canonical_json(identity.preprocessing.as_dict()),
        "geoinfer.dim": str(identity.dim),
        "geoinfer.source": embedder.source,
        "geoinfer.licence": embedder.licence,
        "geoinfer.weights_sha256": embedder.weights_sha256,
    }
    # Models of before there were others say nothing of it, and are fp32.
    return metadata if precision == "fp32" else metadata | {"geoinfer.precision": precision}


def _explained(error: ParityError, model: onnx.ModelProto, traced: Traced, pictures: Pictures) -> ModelError:
    departure = first_departure(model, traced, pictures.pixels[list(error.rows)])
    lines = (
        departure.lines()
        if departure is not None
        else ["no layer departs: the traced graph computes what the model does, and the network itself another thing"]
    )
    return ModelError("\n".join([str(error), *lines]), hint=REMEDIES)


def _bytes(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data


_log = logging.getLogger(__name__)
