"""The `Embedder` protocol and the identity that ties an index to the embedder that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from geoinfer.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


NOT_FINITE = "the model gave this photo no embedding: its numbers are not finite, or all zero"
"""What is wrong with an input whose row `Embedder.embed` returns as NaN."""


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
    """

    identity: EmbedderIdentity
    device: str
    device_reason: str
    fell_back: bool
    fingerprint: str

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
