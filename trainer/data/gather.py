"""The rows of a source in flat columns, and why some are left out.

Five million photos shall not become five million objects.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from geoinfer.errors import ImageError
from geoinfer.geodesy import haversine_km
from trainer.data.examples import Examples, make_examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.data.sources import Row

_ROWS_AT_ONCE: Final = 1 << 16
_NUMBERS: Final = (
    ("line", "q"), ("latitude", "d"), ("longitude", "d"), ("archive", "i"), ("offset_bytes", "q"),
    ("stored_bytes", "q"), ("is_test", "b"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dropped:
    """A photo that is left out: line of the CSV (0 where there is none), name, reason in a word and in words."""

    line: int
    id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Gathered:
    """Photos without cells and splits, (n,) which of them the source sets apart for testing, and (n,) their lines."""

    examples: Examples
    is_test: NDArray[np.bool_]
    lines: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> Gathered:
        """The given rows, integers or booleans, in their order."""
        return Gathered(self.examples.take(rows), self.is_test[rows], self.lines[rows])


class Columns:
    """Takes rows one by one and keeps those that can be used."""

    def __init__(self, root: bytes) -> None:
        self.count = 0
        self.dropped: list[Dropped] = []
        self._root = root
        self._texts: list[tuple[str, bytes, str, str]] = []
        self._parts: list[pa.Table] = []
        self._archives: dict[bytes, int] = {}
        self._numbers: dict[str, array[Any]] = {name: array(kind) for name, kind in _NUMBERS}
        self._written = array("d")

    def add(self, row: Row) -> None:
        """Takes a row in, or drops it."""
        self.count += 1
        self._written.extend(row.written)
        problem, place = row.problem, row.place
        if problem is None and row.coordinates == (0.0, 0.0):
            problem = ImageError("labels", "zero_coordinates", "exactly (0, 0), which stands for an unknown place")
        if problem is not None or place is None:
            self.dropped.append(_reason(row, problem))
            return
        archive = self._archives.setdefault(place.archive, len(self._archives)) if place.archive else -1
        values = (row.line, *row.coordinates, archive, place.offset_bytes, place.stored_bytes, row.is_test)
        for column, value in zip(self._numbers.values(), values, strict=True):
            column.append(value)
        self._texts.append((row.id, place.path, row.country, row.sequence))
        if len(self._texts) == _ROWS_AT_ONCE:
            self._flush()

    def written(self) -> NDArray[np.float64]:
        """(count, 2) what the labels say, possible or not."""
        return np.frombuffer(self._written, np.float64).reshape(-1, 2)

    def finish(self) -> Gathered:
        """All that was taken in, duplicates dropped; cells and splits are still to be found."""
        self._flush()
        texts = pa.concat_tables(self._parts).combine_chunks()
        numbers = {name: np.asarray(column) for name, column in self._numbers.items()}
        coordinates = np.stack([numbers["latitude"], numbers["longitude"]], axis=1)
        archived = bool(self._archives)
        examples = make_examples(
            texts["id"].combine_chunks(),
            texts["path"].combine_chunks(),
            coordinates,
            root=self._root,
            leaf_cells=np.zeros(len(coordinates), np.uint64),
            sequences=texts["sequence"].combine_chunks(),
            countries=texts["country"].combine_chunks(),
            archives=tuple(self._archives),
            archive_codes=numbers["archive"] if archived else None,
            spans=np.stack([numbers["offset_bytes"], numbers["stored_bytes"]], axis=1) if archived else None,
        )
        gathered = Gathered(examples, numbers["is_test"].astype(bool), numbers["line"])
        first = _first_of_each(texts["id"].combine_chunks())
        again = np.flatnonzero(first != np.arange(len(first)))
        for row in again.tolist():
            here, there = coordinates[row], coordinates[first[row]]
            where = (
                "the same coordinates" if np.array_equal(here, there)
                else f"other coordinates, {_km(float(haversine_km(here, there)))} away"
            )  # fmt: skip
            earlier = f"in line {numbers['line'][first[row]]}" if numbers["line"][row] else "before"
            message = f"the id stands {earlier} already, with {where}; the first one counts"
            self.dropped.append(Dropped(int(numbers["line"][row]), examples.ids[row], "duplicate_id", message))
        return gathered.take(np.setdiff1d(np.arange(len(first)), again)) if len(again) else gathered

    def _flush(self) -> None:
        names, paths, countries, sequences = zip(*self._texts, strict=True) if self._texts else ((), (), (), ())
        self._parts.append(
            pa.table(
                {
                    "id": pa.array(names, pa.large_string()),
                    "path": pa.array(paths, pa.large_binary()),
                    "country": pa.array(countries, pa.large_string()),
                    "sequence": pa.array(sequences, pa.large_string()),
                }
            )
        )
        self._texts.clear()


def _first_of_each(ids: pa.Array) -> NDArray[np.int64]:
    """(n,) the first row that has the same id."""
    codes = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    if not len(codes):
        return np.empty(0, np.int64)
    _, first = np.unique(codes, return_index=True)
    return np.asarray(first[codes], np.int64)


def _km(distance_km: float) -> str:
    return f"{1000 * distance_km:.0f} m" if distance_km < 1 else f"{distance_km:,.0f} km"


def _reason(row: Row, problem: ImageError | None) -> Dropped:
    if problem is None:
        return Dropped(row.line, row.id, "missing", "there is no such photo")
    message = str(problem)
    latitude, longitude = row.written
    if problem.code == "bad_coordinates" and abs(latitude) <= 180 and abs(longitude) <= 90:
        message += "; they would be possible the other way round"
    return Dropped(row.line, row.id, problem.code, message)
