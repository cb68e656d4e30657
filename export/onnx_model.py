"""A torch backbone as one ONNX file: pixels in, unit embeddings out, the same bytes each time it is made.

The file is only written once ONNX Runtime gives the same embeddings as torch on real photos.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import torch

from geoinfer.errors import InputError, ModelError, OutputError
from geoinfer.images import Preprocessing, load_pixels
from geoinfer.integrity import atomic_file, canonical_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FORMAT: Final = "1"
"""Value of `geoinfer.format` in the metadata; raised when the meaning of inputs, outputs or metadata changes."""

OPSET: Final = 18
"""What torch's exporter writes without converting; ONNX Runtime since 1.14 and TensorRT since 8.6 read it."""

IR_VERSION: Final = 10

MIN_COSINE: Final = 0.99999
"""The parity gate: no photo's embedding may turn further than this from torch's."""

PARITY_BATCHES: Final = (1, 2, 3, 16)

_EPSILON: Final = 1e-12
_CHECKOUT_PHOTOS: Final = Path(__file__).parents[1] / "examples" / "photos"
_PHOTO_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")

_log = logging.getLogger(__name__)


def export_onnx(
    backbone: torch.nn.Module,
    *,
    preprocessing: dict[str, Any],
    identity: str,
    source: str,
    licence: str,
    weights_sha256: str,
    path: Path,
    photos: Path | None = None,
) -> None:
    """Writes `backbone` as an ONNX model, if it passes the parity gate.

    The model takes `pixels`, uint8 (batch, size, size, 3) RGB, any batch, and gives `embeddings`, float32
    (batch, dim) with unit rows. Cast, mean and std, and the L2 norm are part of the graph. The metadata say which
    model it is (`geoinfer.format`, `.identity`, `.preprocessing`, `.dim`, `.source`, `.licence`, `.weights_sha256`).
    The same backbone gives the same bytes with the same versions of torch, onnxscript and onnx.

    Args:
        backbone: (n, 3, size, size) float32 -> (n, dim) float32, not normalised. It is copied, never changed.
        preprocessing: as `geoinfer.images.Preprocessing.as_dict`.
        identity: name of the embedder; two models of one identity must give the same embeddings.
        source: where the weights come from, for a reader.
        licence: of the weights, as an SPDX expression.
        weights_sha256: hexadecimal, of the weights as they were received.
        path: the file to write, atomically; its folder must exist. A file that is there already is replaced when
            the new one has passed the gate, and left as it is otherwise.
        photos: folder searched for the photos of the parity gate; `examples/photos` of the checkout when left out.

    Raises:
        UsageError: `preprocessing` makes no sense.
        InputError: no photos for the parity gate.
        OutputError: the folder of `path` does not exist.
        ImageError: a photo of the parity gate cannot be decoded.
        ModelError: the backbone does not give (n, dim) float32, has no form in plain ONNX operators, or failed the
            parity gate; nothing was written.
    """
    wanted = Preprocessing.from_dict(preprocessing)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path.name}: there is no folder {path.parent}")
    # First, because it is cheap: an export without photos to hold it to would end in an error anyway.
    pixels = _parity_pixels(_CHECKOUT_PHOTOS if photos is None else photos, wanted)

    backbone = copy.deepcopy(backbone).cpu().float().eval()
    expected = _reference_embeddings(backbone, pixels, wanted)
    metadata = {
        "geoinfer.format": FORMAT,
        "geoinfer.identity": identity,
        "geoinfer.preprocessing": canonical_json(wanted.as_dict()),
        "geoinfer.dim": str(expected.shape[1]),
        "geoinfer.source": source,
        "geoinfer.licence": licence,
        "geoinfer.weights_sha256": weights_sha256,
    }
    traced = _trace(_EmbedderGraph(backbone, wanted), wanted.size)
    model = _canonical(traced, size=wanted.size, dim=expected.shape[1], metadata=metadata)
    data = model.SerializeToString(deterministic=True)
    _check_parity(data, pixels, expected)
    with atomic_file(path) as file:
        file.write(data)


class _EmbedderGraph(torch.nn.Module):
    """What is traced: (n, size, size, 3) uint8 -> (n, dim) float32 unit rows."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, backbone: torch.nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.backbone = _with_plain_pooling(backbone)
        std = np.asarray(preprocessing.std, dtype=np.float64)
        mean = np.asarray(preprocessing.mean, dtype=np.float64)
        # (x / 255 - mean) / std as one multiplication and one addition, rounded to float32 once.
        self.register_buffer("scale", _per_channel(1.0 / (255.0 * std)))
        self.register_buffer("shift", _per_channel(-mean / std))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # Channels first before any arithmetic: a constant of three values along the last axis takes ONNX Runtime off
        # its vectorised path (1.7 ms instead of 0.1 ms a picture), and bytes are the cheapest thing to transpose.
        planes = pixels.permute(0, 3, 1, 2).to(torch.float32)
        embeddings: torch.Tensor = self.backbone(planes * self.scale + self.shift)
        norms: torch.Tensor = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        return embeddings / norms.clamp_min(_EPSILON)


class _GlobalMean(torch.nn.Module):
    """Stands in for `AdaptiveAvgPool2d(1)`, which torch's exporter spells as an indexed copy of computed strides."""

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = activations.mean((2, 3), keepdim=True)
        return means


def _with_plain_pooling(backbone: torch.nn.Module) -> torch.nn.Module:
    copied = copy.deepcopy(backbone)
    for name, module in list(copied.named_modules()):
        if name and isinstance(module, torch.nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            parent, _, attribute = name.rpartition(".")
            setattr(copied.get_submodule(parent), attribute, _GlobalMean())
    return copied


def _per_channel(values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).reshape(1, 3, 1, 1)


def _trace(graph: torch.nn.Module, size: int) -> onnx.ModelProto:
    """The graph as torch's exporter and its optimiser write it: batch norms and padding folded into convolutions."""
    # Two pictures: a batch of one would be taken for a constant.
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["embeddings"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise ModelError("torch exported nothing")
    return program.model_proto


def _canonical(traced: onnx.ModelProto, *, size: int, dim: int, metadata: dict[str, str]) -> onnx.ModelProto:
    """The same graph, built anew from what it computes alone.

    Nothing is copied but operators, attributes and constants, so stack traces, file paths and the exporter's counters
    stay behind; names follow from the position in the graph, so they do not change with the exporter's own.
    """
    if traced.functions or any(opset.domain for opset in traced.opset_import):
        raise ModelError("the backbone needs operators that are not part of ONNX")
    constants = {tensor.name: tensor for tensor in traced.graph.initializer}
    names = {"": "", "pixels": "pixels"}
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    for position, node in enumerate(traced.graph.node):
        name = f"{position:04d}_{node.op_type}"
        for slot, value in enumerate(node.input):
            if value in constants and value not in names:
                names[value] = f"{name}_constant{slot}"
                array = onnx.numpy_helper.to_array(constants[value])
                initializers.append(onnx.numpy_helper.from_array(array, names[value]))
        for slot, value in enumerate(node.output):
            if value:
                names[value] = value if value == "embeddings" else f"{name}_{slot}"
        copied = onnx.NodeProto(name=name, op_type=node.op_type)
        copied.input.extend(names[value] for value in node.input)
        copied.output.extend(names[value] for value in node.output)
        copied.attribute.extend(_canonical_attributes(node))
        nodes.append(copied)

    graph = onnx.helper.make_graph(
        nodes,
        "embedder",
        [onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["batch", size, size, 3])],
        [onnx.helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, ["batch", dim])],
        initializers,
    )
    model = onnx.helper.make_model(
        graph, producer_name="geoinfer", ir_version=IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", OPSET)]
    )
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the exported graph is not valid ONNX: {error}") from error
    return model


def _canonical_attributes(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    attributes = []
    for attribute in sorted(node.attribute, key=lambda item: item.name):
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise ModelError(f"the backbone branches or loops ({node.op_type}); an embedder is a plain graph")
        copied = onnx.AttributeProto()
        copied.CopyFrom(attribute)
        copied.ClearField("doc_string")
        attributes.append(copied)
    return attributes


def _reference_embeddings(
    backbone: torch.nn.Module, pixels: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """What torch says, written independently of the traced graph: (n, dim) float32 unit rows."""
    mean = _per_channel(np.asarray(preprocessing.mean))
    std = _per_channel(np.asarray(preprocessing.std))
    with torch.inference_mode():
        planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
        outputs = backbone((planes / 255.0 - mean) / std)
        if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2 or outputs.dtype != torch.float32:
            shape = f"{outputs.dtype} {tuple(outputs.shape)}" if isinstance(outputs, torch.Tensor) else type(outputs)
            raise ModelError(f"the backbone gives {shape}; expected float32 (n, dim)")
        embeddings: NDArray[np.float32] = torch.nn.functional.normalize(outputs, dim=1, eps=_EPSILON).numpy()
    return embeddings


def _check_parity(data: bytes, pixels: NDArray[np.uint8], expected: NDArray[np.float32]) -> None:
    """Runs the serialised model as users will and compares it with torch, at every batch of the gate.

    Raises:
        ModelError: a cosine below `MIN_COSINE`, rows that are not of unit length, or values that are not finite.
    """
    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    min_cosine, max_difference, max_norm_error = 1.0, 0.0, 0.0
    for batch in PARITY_BATCHES:
        outputs = np.asarray(session.run(["embeddings"], {"pixels": pixels[:batch]})[0])
        wanted = expected[:batch]
        if outputs.shape != wanted.shape or not np.isfinite(outputs).all() or not np.isfinite(wanted).all():
            raise ModelError(
                f"the exported model failed the parity gate: at batch {batch} it gives {outputs.shape}, "
                f"expected {wanted.shape}, or values are not finite; nothing was written"
            )
        norms = np.linalg.norm(outputs.astype(np.float64), axis=1)
        cosines = np.einsum("ij,ij->i", outputs.astype(np.float64), wanted) / np.maximum(norms, _EPSILON)
        min_cosine = min(min_cosine, float(cosines.min()))
        max_difference = max(max_difference, float(np.abs(outputs - wanted).max()))
        max_norm_error = max(max_norm_error, float(np.abs(norms - 1.0).max()))
    figures = f"min cosine {min_cosine:.8f}, max difference {max_difference:.2e}, norms off by {max_norm_error:.2e}"
    if min_cosine < MIN_COSINE or max_norm_error > 1e-4:
        raise ModelError(
            f"the exported model failed the parity gate: {figures}; allowed are {MIN_COSINE} and 1e-4; "
            "nothing was written"
        )
    _log.info("parity with torch on %d photos: %s", len(pixels), figures)


def _parity_pixels(folder: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Photos spread evenly over the folder, turned by a quarter each time round when there are too few."""
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _PHOTO_SUFFIXES and file.is_file())
    if not found:
        raise InputError(
            f"there are no photos in {folder} to hold the exported model to",
            hint="name a folder with a few JPEG or PNG photos",
        )
    count = max(PARITY_BATCHES)
    chosen: Sequence[Path] = [found[i * len(found) // count] for i in range(count)] if len(found) > count else found
    pictures = [load_pixels(bytes(file), preprocessing) for file in chosen]
    return np.stack([np.rot90(pictures[i % len(pictures)], k=i // len(pictures)) for i in range(count)])
