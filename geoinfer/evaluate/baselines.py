"""Two honest rows beside a run's: what one gets without looking at the photo.

`constant` answers every photo with one place, the one that makes the median error smallest: chosen with knowledge of
the truth, so nothing that ignores the photo has a smaller median. `random reference` answers with the place of any
reference, each as likely as the other: what an index answers whose embeddings say nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.geodesy import EARTH_RADIUS_KM, destination, from_unit_vectors, to_unit_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONSTANT: Final = "constant"
RANDOM_REFERENCE: Final = "random reference"

MOST_PAIRS: Final = 400_000
"""Of more photos times references than this, pairs are drawn."""

MOST_GEODESICS: Final = 20_000
"""Likewise along the ellipsoid, where ten thousand distances take a second."""

_CANDIDATES: Final = 1500  # true places, and as many points spread over the Earth
_LOOKED_AT: Final = 3000  # photos by which candidates are compared
_REFINED: Final = 12
_BEARINGS: Final = np.arange(16) * 22.5
_WORTH_A_STEP: Final = 0.001
"""Of its length: a step that gains less is not taken."""
_FIRST_STEP_KM: Final = 400.0
_LAST_STEP_KM: Final = 0.01
_FIRST_STEP_OF_MANY_KM, _LAST_STEP_OF_MANY_KM = 64.0, 1.0  # by then the median moves by metres
_BLOCK: Final = 128


def best_constant(truth: NDArray[np.float64], *, seed: int = 0) -> NDArray[np.float64]:
    """The place from which the median great-circle distance to all photos is smallest.

    Candidates are true places and points spread evenly over the Earth; the best of them, some way apart from one
    another, walk downhill by ever smaller steps. The median distance has many valleys, so that this finds the deepest
    of a few and is not proven to; of the sphere, whatever the convention: on the ellipsoid distances differ by at most
    0.6%.

    Args:
        truth: (n, 2) degrees, n at least 1.
        seed: of what is drawn where there are many photos.

    Returns:
        (2,) degrees.
    """
    random = np.random.default_rng(seed)
    vectors = to_unit_vectors(truth)
    sample = vectors if len(vectors) <= _LOOKED_AT else vectors[random.choice(len(vectors), _LOOKED_AT, replace=False)]
    places = np.unique(truth, axis=0)
    if len(places) > _CANDIDATES:
        places = places[np.sort(random.choice(len(places), _CANDIDATES, replace=False))]
    candidates = np.concatenate([places, from_unit_vectors(_spread(_CANDIDATES))])
    starts = _apart(candidates, median_distances_km(candidates, sample))
    many = len(sample) < len(vectors)
    last_km = _LAST_STEP_OF_MANY_KM if many else _LAST_STEP_KM
    walked = [_downhill(start, sample, _FIRST_STEP_KM, last_km) for start in starts]
    if many:
        # The sample's best few, judged and walked on by all photos.
        walked = [_downhill(place, vectors, _FIRST_STEP_OF_MANY_KM, last_km) for place in _best(walked, sample)[:2]]
    return _best(walked, vectors)[0]


def median_distances_km(candidates: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median great-circle distance from each place (c, 2), in degrees, to all points (n, 3), unit vectors; (c,) km."""
    found = np.empty(len(candidates))
    places = to_unit_vectors(candidates)
    middle = sorted({(len(vectors) - 1) // 2, len(vectors) // 2})
    for start in range(0, len(places), _BLOCK):
        # The arc cosine falls, so the middle of the cosines is that of the distances.
        cosines = places[start : start + _BLOCK] @ vectors.T
        cosines.partition(middle, axis=1)
        angles = np.arccos(np.clip(cosines[:, middle], -1.0, 1.0))
        found[start : start + _BLOCK] = EARTH_RADIUS_KM * angles.mean(axis=1)
    return found


def _spread(count: int) -> NDArray[np.float64]:
    """Unit vectors (count, 3) spread evenly: a spiral of golden angles (R. Swinbank and R. J. Purser, 2006)."""
    heights = 1 - (2 * np.arange(count) + 1) / count
    turns = np.arange(count) * np.pi * (3 - np.sqrt(5))
    widths = np.sqrt(1 - heights**2)
    return np.column_stack([widths * np.cos(turns), widths * np.sin(turns), heights])


def _apart(candidates: NDArray[np.float64], medians: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best candidates of which no two are within a step of each other."""
    chosen: list[int] = []
    vectors = to_unit_vectors(candidates)
    limit = np.cos(_FIRST_STEP_KM / EARTH_RADIUS_KM)
    for row in np.argsort(medians, kind="stable").tolist():
        if not chosen or (vectors[chosen] @ vectors[row]).max() < limit:
            chosen.append(row)
            if len(chosen) == _REFINED:
                break
    return candidates[chosen]


def _downhill(
    place: NDArray[np.float64], vectors: NDArray[np.float64], step_km: float, last_km: float
) -> NDArray[np.float64]:
    """Walks to the best of 16 places around, as long as one is better, then by half the step."""
    best = float(median_distances_km(place[None], vectors)[0])
    while step_km > last_km:
        around = destination(place, _BEARINGS, step_km)
        medians = median_distances_km(around, vectors)
        row = int(medians.argmin())
        # Along a road the median falls by next to nothing for thousands of steps; a shorter step finds the same sooner.
        if medians[row] < best - _WORTH_A_STEP * step_km:
            place, best = around[row], float(medians[row])
        else:
            step_km /= 2
    return place


def _best(places: list[NDArray[np.float64]], vectors: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    medians = median_distances_km(np.array(places), vectors)
    return [places[row] for row in np.argsort(medians, kind="stable").tolist()]


def random_pairs(
    photos: int, references: int, *, most: int = MOST_PAIRS, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which photo is answered with which reference.

    All pairs where they are few: then figures over them are exactly what random references come to on average. Of more,
    each photo has equally many references, drawn at random.

    Args:
        photos: number of photos, at least 1.
        references: number of references, at least 1.
        most: pairs, about.
        seed: of the draw.

    Returns:
        Photos and references, (m,) each.
    """
    each = references if photos * references <= most else max(1, most // photos)
    rows = np.repeat(np.arange(photos), each)
    if each == references:
        return rows, np.tile(np.arange(references), photos)
    return rows, np.random.default_rng(seed).integers(references, size=len(rows))


def random_pairs_apart(
    photos: NDArray[np.int64], references: NDArray[np.int64], *, most: int = MOST_PAIRS, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As `random_pairs`, without the pairs of one number; each photo has equally many references, drawn at random.

    Args:
        photos: (n,) number of each photo, at least one.
        references: (r,) number of each reference, of at least two different numbers.
        most: pairs, about.
        seed: of the draw.

    Returns:
        Photos and references, (m,) each.
    """
    random = np.random.default_rng(seed)
    each = max(1, most // len(photos))
    drawn = np.empty((len(photos), each), np.int64)
    for number in np.unique(photos).tolist():
        own = photos == number
        allowed = np.flatnonzero(references != number)
        drawn[own] = allowed[random.integers(len(allowed), size=(int(own.sum()), each))]
    return np.repeat(np.arange(len(photos)), each), drawn.reshape(-1)
