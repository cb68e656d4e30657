"""The losses as their formulas read: Python loops over lists of floats, against which the tensors are held."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from geoinfer.geodesy import haversine_km

if TYPE_CHECKING:
    from collections.abc import Sequence

Rows = list[list[float]]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def squared_distance(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def km(a: Sequence[float], b: Sequence[float]) -> float:
    return float(haversine_km(a, b))


def log_shares(rows: Rows, anchor: int, temperature: float) -> dict[int, float]:
    """log of each other row's share of the anchor's softmax."""
    scores = {other: dot(rows[anchor], rows[other]) / temperature for other in range(len(rows)) if other != anchor}
    top = max(scores.values(), default=0.0)
    log_total = top + math.log(math.fsum(math.exp(s - top) for s in scores.values())) if scores else 0.0
    return {other: score - log_total for other, score in scores.items()}


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def supcon(rows: Rows, labels: Sequence[int], temperature: float, anchors: int | None = None) -> float:
    """Eq. 1 averaged over those of the first `anchors` rows that have a positive."""
    losses = []
    for anchor in range(len(rows) if anchors is None else anchors):
        positives = [other for other in range(len(rows)) if other != anchor and labels[other] == labels[anchor]]
        if positives:
            shares = log_shares(rows, anchor, temperature)
            losses.append(-math.fsum(shares[p] for p in positives) / len(positives))
    return mean(losses)


def soft_supcon(
    rows: Rows, places: Rows, temperature: float, scale_km: float, max_km: float, anchors: int | None = None
) -> float:
    losses = []
    for anchor in range(len(rows) if anchors is None else anchors):
        away = {other: km(places[anchor], places[other]) for other in range(len(rows)) if other != anchor}
        if not away or min(away.values()) > max_km:
            continue
        weights = {other: math.exp(-(d - min(away.values())) / scale_km) for other, d in away.items()}
        shares = log_shares(rows, anchor, temperature)
        losses.append(-math.fsum(w * shares[o] for o, w in weights.items()) / math.fsum(weights.values()))
    return mean(losses)


def farthest_triplets(places: Rows, anchors: int | None = None) -> list[tuple[int, int, int]]:
    found = []
    for anchor in range(len(places) if anchors is None else anchors):
        away = [(km(places[anchor], places[other]), other) for other in range(len(places)) if other != anchor]
        if away and max(away)[0] > min(away)[0]:
            farthest = max(away)[0]
            found.append((anchor, min(away)[1], next(other for d, other in away if d == farthest)))
    return found


def semi_hard_triplets(
    rows: Rows, places: Rows, negative_km: float, anchors: int | None = None
) -> list[tuple[int, int, int]]:
    found = []
    for anchor in range(len(places) if anchors is None else anchors):
        away = [(km(places[anchor], places[other]), other) for other in range(len(places)) if other != anchor]
        if not away:
            continue
        nearest_km, positive = min(away)
        negatives = [
            (squared_distance(rows[anchor], rows[other]), other)
            for d, other in away
            if d > max(nearest_km, negative_km)
        ]
        beyond = [n for n in negatives if n[0] > squared_distance(rows[anchor], rows[positive])]
        if negatives:
            found.append((anchor, positive, (min(beyond) if beyond else max(negatives))[1]))
    return found


def triplet(rows: Rows, triplets: list[tuple[int, int, int]], margin: float) -> float:
    """Eq. 2 averaged over the triplets."""
    return mean(
        [
            max(squared_distance(rows[a], rows[p]) - squared_distance(rows[a], rows[n]) + margin, 0.0)
            for a, p, n in triplets
        ]
    )
