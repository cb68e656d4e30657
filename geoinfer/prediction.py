"""What a photo's place is estimated to be: what `Geolocator` answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.errors import ImageError
    from geoinfer.places import Place

SCORE_DECIMALS: Final = 6
"""Decimals that scores and similarities are written with."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the references that an answer was made from.

    Attributes:
        reference: its name in the index.
        latitude: degrees.
        longitude: degrees.
        similarity: cosine with the photo, at most 1.
        source: where the reference comes from; may be empty.
        probability: among all references, None where the index gives its similarities no such meaning.
    """

    reference: str
    latitude: float
    longitude: float
    similarity: float
    source: str
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Where a photo was taken, as far as its pixels tell: an estimate, not a fact.

    Attributes:
        source: the path as it was given, or `array N` for the N-th input, counted from 0.
        status: `ok`, `error`, or `skipped` for camera raw and for scores below `min_score`.
        latitude: degrees, NaN unless ok; likewise the other numbers, but for `score` and `top1_similarity` where the
            score is what it was skipped for.
        longitude: degrees.
        radius_km: holds the true place with 90% probability, see docs/confidence.md.
        score: expected GeoScore from 0 to 1; orders predictions by how far to trust them.
        top1_similarity: cosine with the most similar reference.
        unlike_references: whether hardly any photo that the index was calibrated on is so unlike all references, see
            docs/confidence.md; None without a similarity, or where too few photos were there to tell (99).
        place: what its surroundings are called; None unless ok and asked for.
        candidates: the most similar references, best first.
        error: what went wrong, empty if nothing did.
        error_code: one word for it, see docs/error-codes.md.
    """

    source: str
    status: str
    latitude: float = float("nan")
    longitude: float = float("nan")
    radius_km: float = float("nan")
    score: float = float("nan")
    top1_similarity: float = float("nan")
    unlike_references: bool | None = None
    place: Place | None = None
    candidates: tuple[Candidate, ...] = ()
    error: str = ""
    error_code: str = ""


@dataclass(frozen=True, slots=True)
class Located:
    """Answers to a batch of embeddings; row i belongs to embedding i.

    Attributes:
        coordinates: (q, 2) float64 degrees.
        radius_km: (q,) float64.
        spread_km: (q,) float64, mean distance from the answer to its nearest neighbours' places.
        scores: (q,) float64.
        ids: (q, c) int64, the most similar references, best first.
        similarities: (q, c) float32.
        unlike_references: (q,) bool; None where too few photos were there to tell.
        too_low: why there is no answer to be given, by row, of those whose score is below `min_score`.
        places: what each answer's surroundings are called; None unless asked for.
        probabilities: (q, p) float64 of the first p, as many as were asked for; None without an index that has them.
    """

    coordinates: NDArray[np.float64]
    radius_km: NDArray[np.float64]
    spread_km: NDArray[np.float64]
    scores: NDArray[np.float64]
    ids: NDArray[np.int64]
    similarities: NDArray[np.float32]
    unlike_references: NDArray[np.bool_] | None
    too_low: dict[int, ImageError]
    places: list[Place] | None
    probabilities: NDArray[np.float64] | None = None

    def unlike(self, row: int) -> bool | None:
        """Whether one photo is unlike all references; None where nobody can tell."""
        return None if self.unlike_references is None else bool(self.unlike_references[row])
