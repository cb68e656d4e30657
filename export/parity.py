"""The parity gate: an exported model must give torch's embeddings, or it is not written.

It runs as users will run it (serialised, by ONNX Runtime on the CPU, in several batch sizes) on real photos, against
the network in float32 by torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime
import torch

from export.index_parity import IndexParity, check_asked, compare_on_index
from export.messages import first_line
from export.parity_report import ParityLimits, ParityReport, chosen_limits, default_limits, faults_of
from export.pictures import Pictures, gather_pictures
from geoinfer.errors import ModelError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from export.torch_embedder import TorchEmbedder
    from geoinfer.backends.base import EmbedderIdentity

__all__ = [
    "IndexParity",
    "ParityError",
    "ParityLimits",
    "ParityReport",
    "Pictures",
    "check_asked",
    "check_parity",
    "chosen_limits",
    "default_limits",
    "gather_pictures",
    "reference_embeddings",
]

# The whole activations of a ViT-L for many pictures would take ten gigabytes.
_AT_ONCE: Final = 4
_EPSILON: Final = 1e-12
_SMALL_BATCHES: Final = (1, 2, 3)
_WORST: Final = 4

REMEDIES: Final = "another --precision keeps more; --min-cosine, --min-agreement and --max-shift move the limits"


class ParityError(ModelError):
    """The exported model failed the gate.

    Attributes:
        rows: of the pictures that it did worst on, at most four, the worst first.
        report: the figures; None where there are none, because the model gives no numbers or wrong shapes.
    """

    def __init__(self, message: str, *, rows: tuple[int, ...], report: ParityReport | None = None) -> None:
        super().__init__(
            f"the exported model failed the parity gate: {message}; nothing was written",
            hint=f"--explain names the first layer that departs; {REMEDIES}",
        )
        self.rows = rows
        self.report = report


def reference_embeddings(embedder: TorchEmbedder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What torch says, written independently of the graph that is exported.

    Args:
        embedder: its network is in eval mode and float32.
        pixels: (n, size, size, 3) uint8, n at least 1.

    Returns:
        (n, dim) float32 unit rows.

    Raises:
        ModelError: the network gives something else than float32 (n, dim).
    """
    network, preprocessing = embedder.network, embedder.preprocessing
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device).reshape(1, 3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), _AT_ONCE):
            some = torch.from_numpy(np.ascontiguousarray(pixels[start : start + _AT_ONCE])).to(device)
            outputs = network((some.permute(0, 3, 1, 2).float() / 255.0 - mean) / std)
            if not isinstance(outputs, torch.Tensor):
                raise ModelError(f"the network gives {type(outputs).__name__}; expected float32 (n, dim)")
            if outputs.ndim != 2 or len(outputs) != len(some) or outputs.dtype != torch.float32:
                shape = f"{outputs.dtype} {tuple(outputs.shape)}".removeprefix("torch.")
                raise ModelError(f"the network gives {shape} for {len(some)} pictures; expected float32 (n, dim)")
            parts.append(torch.nn.functional.normalize(outputs, dim=1, eps=_EPSILON).cpu().numpy())
    embeddings: NDArray[np.float32] = np.concatenate(parts)
    return embeddings


def check_parity(
    data: bytes,
    pictures: Pictures,
    expected: NDArray[np.float32],
    *,
    limits: ParityLimits,
    max_batch: int,
    index: Path | None = None,
    labels: Path | None = None,
    identity: EmbedderIdentity,
) -> ParityReport:
    """Runs a serialised model as users will, and compares it with torch.

    Args:
        data: the model.
        pictures: at least `max_batch` of them.
        expected: (n, dim) float32 unit rows, torch's embeddings of the pictures, see `reference_embeddings`.
        limits: to hold it to.
        max_batch: the largest batch; all pictures go through it, and the first of them in batches of 1, 2 and 3 too.
        index: a reference index that the same embedder made: does it give the same answers?
        labels: a CSV of true places, its paths relative to the photos' folder: how far off are they?
        identity: of the embedder.

    Raises:
        ParityError: a limit is not kept, or the model does not give finite (n, dim) unit rows.
        ModelError: ONNX Runtime cannot run it, or torch itself gives numbers that are not finite.
        UsageError, InputError, IndexFolderError, LabelsError, MismatchError: see `check_asked`.
    """
    if not 1 <= max_batch <= len(pictures.names):
        raise UsageError(
            f"the largest batch is {max_batch}; expected 1 to the {len(pictures.names)} pictures there are"
        )
    check_asked(index, labels, folder=pictures.folder, name=identity.name, preprocessing=identity.preprocessing)
    broken = np.flatnonzero(~np.isfinite(expected).all(axis=1))
    if len(broken):
        raise ModelError(f"the torch network itself gives numbers that are not finite for {pictures.names[broken[0]]}")

    batches = tuple(sorted({min(batch, max_batch) for batch in (*_SMALL_BATCHES, max_batch)}))
    gate = _Gate(_open(data), pictures, expected)
    outputs = np.concatenate([gate.run(start, start + max_batch) for start in range(0, len(expected), max_batch)])
    cosines = _cosines(outputs, expected)
    in_largest = cosines.copy()
    max_norm_error = _norm_error(outputs)
    alike = np.ones(len(expected))
    for batch in batches[:-1]:
        few = gate.run(0, batch)
        cosines[:batch] = np.minimum(cosines[:batch], _cosines(few, expected[:batch]))
        alike[:batch] = np.minimum(alike[:batch], _cosines(few, outputs[:batch]))
        max_norm_error = max(max_norm_error, _norm_error(few))
    answers: IndexParity | None = None
    if index is not None:
        answers = compare_on_index(index, labels, pictures, model=outputs, expected=expected, identity=identity)
    report = ParityReport(
        photos=pictures.photos,
        pictures=len(pictures.names),
        unreadable=pictures.unreadable,
        batches=batches,
        min_cosine=float(cosines.min()),
        mean_cosine=float(in_largest.mean()),
        worst=pictures.names[int(cosines.argmin())],
        constant_cosine=float(np.linalg.norm(expected.astype(np.float64).mean(axis=0))),
        batch_cosine=float(alike.min()),
        max_norm_error=max_norm_error,
        index=answers,
        limits=limits,
        onnxruntime=onnxruntime.__version__,
    )
    faults = faults_of(report, pictures.names, differs_most=pictures.names[int(alike.argmin())])
    if faults:
        worst = np.argsort(np.minimum(cosines, alike), kind="stable")[:_WORST]
        raise ParityError("; ".join(faults), rows=tuple(worst.tolist()), report=report)
    return report


class _Gate:
    """Runs the model on some of the pictures, and stops where there is nothing to compare."""

    def __init__(self, session: Any, pictures: Pictures, expected: NDArray[np.float32]) -> None:
        self._session, self._pictures, self._expected = session, pictures, expected

    def run(self, start: int, end: int) -> NDArray[np.float32]:
        """Embeddings of pictures `start` to `end`, in one batch."""
        pixels = np.ascontiguousarray(self._pictures.pixels[start:end])
        batch = f"in a batch of {len(pixels)}"
        rows = tuple(range(start, min(start + _WORST, start + len(pixels))))
        try:
            outputs = np.asarray(self._session.run(["embeddings"], {"pixels": pixels})[0])
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run the exported model {batch}: {first_line(error)}") from error
        wanted = (len(pixels), self._expected.shape[1])
        if outputs.shape != wanted or outputs.dtype != np.float32:
            raise ParityError(
                f"{batch} it gives {outputs.dtype} {outputs.shape} where float32 {wanted} is expected", rows=rows
            )
        broken = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
        if len(broken):
            others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            raise ParityError(
                f"{self._pictures.names[start + int(broken[0])]}{others}: its numbers are not finite {batch}",
                rows=tuple((start + broken[:_WORST]).tolist()),
            )
        return outputs


def _open(data: bytes) -> Any:
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # As the runtime has it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot open the exported model: {first_line(error)}") from error


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of rows (n, dim) with rows (n, dim), in float64: (n,) within -1 and 1, 0 where a row is zero."""
    first, second = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines: NDArray[np.float64] = np.einsum("ij,ij->i", first, second) / np.maximum(lengths, _EPSILON)
    return np.clip(cosines, -1.0, 1.0)


def _norm_error(rows: NDArray[np.float32]) -> float:
    return float(np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1.0).max())
