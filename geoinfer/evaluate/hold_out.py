"""Answering each photo without the references of its own source: what an index knows of places it has not seen.

Photos of one collection were taken by the same people with the same cameras on the same journeys. An index that holds
some of them answers the others better than any photo it will ever be asked about.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

import numpy as np

from geoinfer.errors import UsageError
from geoinfer.geolocator import Geolocator
from geoinfer.index import FlatIndex, LeaveOneOut, References, StoredIndex
from geoinfer.index.leave_one_out import leave_one_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.index.base import Vectors


class SourceHoldOut:
    """Makes, for one source at a time, a geolocator that knows nothing of it: neither its answers nor its radii do.

    Attributes:
        held_out: the sources that photos and references share.
        photo_numbers: (n,) int64, the source of each photo; -1 if no reference comes from there.
        reference_numbers: (r,) int64, the source of each reference, in the same numbers.
        warnings: sentences on what could not be held out.
    """

    def __init__(self, geolocator: Geolocator, sources: Sequence[str]) -> None:
        """Looks at where photos and references come from.

        Args:
            geolocator: of all references.
            sources: where each photo comes from; empty where nobody says.

        Raises:
            UsageError: no photo comes from a source of the references, or all references come from that one.
        """
        self._geolocator = geolocator
        references = geolocator.index.references
        numbers: dict[str, int] = {}
        self.reference_numbers = np.fromiter(
            (numbers.setdefault(name, len(numbers)) for name in references.sources), np.int64, len(references)
        )
        self._numbers = {name: number for name, number in numbers.items() if name}
        asked = dict.fromkeys(name for name in sources if name)
        self.photo_numbers = np.array([self._numbers.get(name, -1) for name in sources], np.int64)
        self.held_out = [name for name in asked if name in self._numbers]
        self.warnings: list[str] = []
        if not self.held_out:
            mine = _listed(list(asked)) if asked else "none: the labels need a column `source`"
            raise UsageError(
                "--hold-out source: no photo comes from a source of the index's references; sources of the photos: "
                f"{mine}; of the references: {_listed(list(self._numbers)) or 'none'}",
                hint="leave --hold-out out: nothing is to be held out",
            )
        for name in self.held_out:
            if (self.reference_numbers == self._numbers[name]).all():
                raise UsageError(
                    f"--hold-out source: all references come from {name}, so without it there are none to answer with",
                    hint="add references of other sources to the index, or leave --hold-out out",
                )
        self._warn(sources, [name for name in asked if name not in self._numbers])

    def geolocator_without(self, source: str) -> Geolocator:
        """Answers from the references of all other sources alone, and is calibrated on those; the same model.

        All references answer for a source that none of them comes from. It is not to be closed.
        """
        if source not in self._numbers:
            return self._geolocator
        given = self._geolocator
        kept = np.flatnonzero(self.reference_numbers != self._numbers[source])
        return Geolocator(
            given.embedder,
            without_rows(given.index, kept),
            answer=given.answer,
            bundle=given.bundle,
            min_score=given.min_score,
            places=given.places,
        )

    def _warn(self, sources: Sequence[str], strangers: list[str]) -> None:
        unknown = sum(not name for name in sources)
        if unknown:
            self.warnings.append(
                f"{unknown:,} photos have no source in the labels: all references answered them, those of their own "
                "source among them."
            )
        if strangers:
            self.warnings.append(
                f"No reference comes from {_listed(strangers)}: for photos from there nothing was held out."
            )
        if self._geolocator.index.manifest.answer is not None:
            self.warnings.append(
                "The way of answering that the index keeps may have been chosen with knowledge of the sources that "
                "were held out."
            )


def without_rows(stored: StoredIndex, kept: NDArray[np.int64]) -> StoredIndex:
    """An index in memory of some references of another, searched exactly and calibrated on those alone.

    Args:
        stored: the other; what it is calibrated on may be the references that are left out, and is not used.
        kept: rows of its references, ascending, at least one.
    """
    known = stored.references
    references = References(
        ids=[known.ids[row] for row in kept.tolist()],
        coordinates=np.array(known.coordinates[kept], np.float64),
        sources=[known.sources[row] for row in kept.tolist()],
        attributions=[known.attributions[row] for row in kept.tolist()],
        content_sha256=np.array(known.content_sha256[kept]),
        perceptual_hashes=np.array(known.perceptual_hashes[kept]),
        sequences=[known.sequences[row] for row in kept.tolist()] if len(known.sequences) else [],
    )
    index = FlatIndex(cast("Vectors", np.array(stored.index.vectors[kept])))
    learnt_from = leave_one_out(index, references) if stored.manifest.of_photos else LeaveOneOut.empty()
    manifest = dataclasses.replace(
        stored.manifest,
        kind=index.kind,
        size=len(kept),
        calibrated_on=len(learnt_from.rows),
        parameters={},
        recall=None,
        tuning=None,
    )
    return StoredIndex(stored.folder, manifest, index, references, learnt_from)


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
