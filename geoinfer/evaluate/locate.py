"""Locates labelled photos: one outcome a label, whatever happens to its photo."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from geoinfer.batch.labelled import LabelledSource, labelled_pipeline
from geoinfer.evaluate.hold_out import SourceHoldOut
from geoinfer.evaluate.leakage import relations
from geoinfer.evaluate.nearest import NearestOnEarth
from geoinfer.evaluate.outcomes import ERROR, OK, NearestReferences, Outcomes
from geoinfer.geodesy import haversine_km
from geoinfer.labels import Label

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from geoinfer.batch.labelled import Details
    from geoinfer.batch.pipeline import Block
    from geoinfer.batch.predict import RunObserver
    from geoinfer.evaluate.truth import Truth
    from geoinfer.geolocator import Geolocator
    from geoinfer.prediction import Candidate


@dataclass(frozen=True, slots=True)
class LocatedTruth:
    """What became of labelled photos.

    Attributes:
        outcomes: in the labels' order.
        held_out: the sources without whose references their own photos were answered; empty without `hold_out`.
        warnings: what a reader of the figures should know.
        numbers: of the photos' sources (n,) and of the references' (r,), where some were held out.
    """

    outcomes: Outcomes
    held_out: list[str]
    warnings: list[str]
    numbers: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None


@dataclass(frozen=True, slots=True)
class _TruthSource(LabelledSource):
    row: int = -1


def locate_truth(
    geolocator: Geolocator,
    truth: Truth,
    *,
    batch_size: int,
    workers: int,
    observer: RunObserver | None = None,
    hold_out: Literal["source"] | None = None,
    top: int = 5,
) -> LocatedTruth:
    """Answers each photo as `geoinfer predict` would; embeddings are not kept, so that a million photos fit.

    Args:
        geolocator: answers.
        truth: the photos, with the paths of their files.
        batch_size: photos that the model sees at once.
        workers: CPU threads.
        observer: is told how it goes.
        hold_out: `source`: no photo is answered, nor its radius told, by references of its own source.
        top: candidates kept of each answer.

    Raises:
        UsageError: nothing can be held out.
        ModelError: the model fails.
        MissingPackageError: SciPy is not installed.
    """
    held = SourceHoldOut(geolocator, truth.sources) if hold_out is not None else None
    # One source after the other, so that one reduced index at a time is in memory.
    ranks = {name: number for number, name in enumerate(held.held_out)} if held is not None else {}
    order = sorted(range(len(truth.ids)), key=lambda row: ranks.get(truth.sources[row], -1))
    table = _Table(geolocator, truth, held, workers, top)
    if observer is not None:
        observer.started(0, 0)
    with labelled_pipeline(
        geolocator.embedder,
        _sources(truth, order),
        batch_size=batch_size,
        workers=workers,
        on_progress=None if observer is None else observer.progressed,
    ) as pipeline:
        for block in pipeline:
            table.take(block)
    if observer is not None:
        observer.writing()
    if held is None:
        return LocatedTruth(table.outcomes(), [], [])
    return LocatedTruth(
        table.outcomes(), held.held_out, list(held.warnings), (held.photo_numbers, held.reference_numbers)
    )


def _sources(truth: Truth, order: list[int]) -> Iterator[LabelledSource]:
    for row in order:
        latitude, longitude = truth.coordinates[row].tolist()
        label = Label(truth.ids[row], truth.paths[row], latitude, longitude)
        yield _TruthSource(truth.paths[row], None, label, row)


class _Table:
    """The columns of `Outcomes`, filled a block at a time."""

    def __init__(
        self, geolocator: Geolocator, truth: Truth, held: SourceHoldOut | None, workers: int, top: int
    ) -> None:
        count = len(truth.ids)
        self._given, self._truth, self._held, self._workers, self._top = geolocator, truth, held, workers, top
        self._predicted = np.full((count, 2), math.nan)
        self._statuses, self._reasons = [ERROR] * count, [""] * count
        self._scores, self._radii = np.full(count, math.nan), np.full(count, math.nan)
        self._candidates: list[tuple[Candidate, ...]] = [()] * count
        self._near = NearestReferences(
            [""] * count, [""] * count, np.full(count, math.nan), np.full(count, math.nan),
            [""] * count, [""] * count, np.full(count, math.nan), [""] * count,
        )  # fmt: skip
        self._source: str | None = None
        self._geolocator, self._on_earth = geolocator, NearestOnEarth(geolocator.index.references.coordinates)

    def take(self, block: Block[Details, bool]) -> None:
        """Puts what came of some photos in its rows."""
        rows = [cast("_TruthSource", source).row for source in block.sources]
        for offset, failure in block.failures.items():
            self._statuses[rows[offset]] = failure.status
            # A library's message may quote bytes that are no text.
            self._reasons[rows[offset]] = str(failure).encode(errors="backslashreplace").decode()
        by_source: dict[str, list[int]] = {}
        for position, offset in enumerate(block.located):
            by_source.setdefault(self._truth.sources[rows[offset]] if self._held else "", []).append(position)
        for source, positions in by_source.items():
            self._choose(source)
            chosen = [block.located[position] for position in positions]
            details = [block.details[offset] for offset in chosen]
            self._answer([rows[offset] for offset in chosen], block.embeddings[positions], details)

    def outcomes(self) -> Outcomes:
        """All of it."""
        return self._truth.outcomes(
            self._predicted,
            self._statuses,
            self._reasons,
            scores=self._scores,
            radii_km=self._radii,
            references=self._near,
            candidates=self._candidates,
        )

    def _choose(self, source: str) -> None:
        if self._held is None or source == self._source:
            return
        self._source = source
        chosen = self._held.geolocator_without(source)
        if chosen is not self._geolocator:
            self._geolocator, self._on_earth = chosen, NearestOnEarth(chosen.index.references.coordinates)

    def _answer(self, rows: list[int], embeddings: NDArray[np.float32], details: list[Details]) -> None:
        geolocator, references = self._geolocator, self._geolocator.index.references
        located = geolocator.locate_embeddings(np.ascontiguousarray(embeddings), top=self._top, threads=self._workers)
        places = self._truth.coordinates[rows]
        similar = located.ids[:, 0]
        near, near_km = self._on_earth.find(places)
        similar_km = haversine_km(places, references.coordinates[similar])
        related = [""] * len(rows)
        if geolocator.index.manifest.of_photos:
            related = relations(
                references,
                located.ids,
                [self._truth.ids[row] for row in rows],
                [self._truth.sequences[row] for row in rows],
                np.frombuffer(b"".join(one.content_sha256 for one in details), np.uint8).reshape(len(rows), -1),
                np.array([one.perceptual_hash for one in details], np.uint8),
            )
        for place, row in enumerate(rows):
            known = self._near
            known.similar_ids[row] = references.ids[int(similar[place])]
            known.similar_sources[row] = references.sources[int(similar[place])]
            known.similarities[row] = located.similarities[place, 0]
            known.similar_km[row] = similar_km[place]
            known.nearest_ids[row] = references.ids[int(near[place])]
            known.nearest_sources[row] = references.sources[int(near[place])]
            known.nearest_km[row] = near_km[place]
            known.relations[row] = related[place]
            if geolocator.calibrated:
                self._scores[row] = located.scores[place]
            low = located.too_low.get(place)
            if low is not None:
                self._statuses[row], self._reasons[row] = low.status, str(low)
                continue
            self._statuses[row] = OK
            self._predicted[row] = located.coordinates[place]
            if geolocator.calibrated:
                self._radii[row] = located.radius_km[place]
            self._candidates[row] = geolocator.candidates(located, place, self._top)
