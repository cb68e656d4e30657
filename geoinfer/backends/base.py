"""The `Embedder` protocol, the identity that ties an index to its embedder, and what all embedders check."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np

from geoinfer.errors import ModelError, UsageError
from geoinfer.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


NOT_FINITE = "the model gave this photo no embedding: its numbers are not finite, or all zero"
"""What is wrong with an input whose row `Embedder.embed` returns as NaN."""

_DEVICE: Final = re.compile(r"(auto|cpu|(cuda|tensorrt)(?::(\d+))?)")
_NORM_TOLERANCE: Final = 1e-2  # fp16 graphs normalise to about 1e-3


@dataclass(frozen=True, slots=True)
class EmbedderIdentity:
    """Which embedding space this is. Two embeddings can be compared if, and only if, their identities are equal.

    Attributes:
        name: of the weights, with a digest of them. Precision and file format are not part of it: a model's fp32 ONNX
            and its fp16 engine share an index.
        dim: length of an embedding.
        preprocessing: which pixels it is given.
    """

    name: str
    dim: int
    preprocessing: Preprocessing

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {"name": self.name, "dim": self.dim, "preprocessing": self.preprocessing.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EmbedderIdentity:
        """The inverse of `as_dict`; raises KeyError, TypeError or ValueError on anything else."""
        return cls(str(values["name"]), int(values["dim"]), Preprocessing.from_dict(values["preprocessing"]))

    def __str__(self) -> str:
        return f"{self.name} ({self.dim} dimensions; {self.preprocessing})"


class Embedder(Protocol):
    """Turns pixels into embeddings. Calls from several threads at once are allowed.

    Attributes:
        identity: which embedding space.
        device: where it runs, such as `cpu` or `cuda:0`.
        device_reason: why there, in a few words.
        fell_back: whether a device that was chosen first turned out not to work.
        fingerprint: SHA-256 of the model file: two files of one identity still differ in their last digits.
        best_batch: how many pictures a call does best with; None if that depends on the device alone.
        calls_at_once: how many calls at the same time gain anything: on a CPU as many as its cores have room for, on a
            GPU one copies while another computes.
        pins_threads: whether the threads that call it do best if each stays on a core of its own.
    """

    identity: EmbedderIdentity
    device: str
    device_reason: str
    fell_back: bool
    fingerprint: str
    best_batch: int | None
    calls_at_once: int
    pins_threads: bool

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        ...

    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeds a batch.

        Args:
            pixels: (n, size, size, 3) uint8, RGB; n may be 0.

        Returns:
            (n, dim) float32, unit rows; the caller's own array. A row that the model could not compute is NaN;
            likewise one of nothing but zeros, which has no direction.

        Raises:
            ModelError: the shape or dtype of `pixels` is another, or the model fails or does not normalise.
        """
        ...

    def close(self) -> None:
        """Frees what it holds; using it afterwards is an error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def parse_device(device: str) -> tuple[str, int]:
    """`auto`, `cpu`, `cuda[:N]` or `tensorrt[:N]` to (kind, ordinal).

    Raises:
        UsageError: anything else.
    """
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise UsageError(
            f"--device {device}: expected auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N",
            hint="`geoinfer doctor` shows the devices",
        )
    kind = match.group(2) or match.group(1)
    return kind, int(match.group(3) or 0)


def check_pixels(path: Path, pixels: NDArray[np.uint8], size: int) -> None:
    """Raises ModelError unless `pixels` is uint8 (n, size, size, 3)."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
        raise ModelError(
            f"{path}: pixels are {pixels.dtype} of shape {pixels.shape}; expected uint8 (n, {size}, {size}, 3)"
        )


def check_preprocessing(path: Path, stored: Preprocessing, given: Preprocessing | None) -> None:
    """Raises UsageError if `given`, by the user, is another than the model was made for."""
    if given is not None and given != stored:
        raise UsageError(
            f"--preprocessing says {given}, but {path} was made for {stored}",
            hint="leave --preprocessing out: the model knows",
        )


def blank_rows_without_direction(path: Path, embeddings: NDArray[np.float32]) -> None:
    """Makes rows that are not finite, or all zero, NaN: the model found nothing in these photos, the others are fine.

    Args:
        path: the model's file, for the message.
        embeddings: (n, dim) float32, changed in place.

    Raises:
        ModelError: a row is finite and its length is not 1.
    """
    norms = np.linalg.norm(embeddings, axis=1)
    wrong = np.isfinite(norms) & (norms != 0) & (np.abs(norms - 1) > _NORM_TOLERANCE)
    if wrong.any():
        raise ModelError(
            f"{path}: an embedding has length {norms[wrong][0]:.4g}; expected 1",
            hint="L2 normalisation belongs inside the graph: export the model with it",
        )
    embeddings[~np.isfinite(norms) | (norms == 0)] = np.nan
