"""The texts of references on the disk, an Arrow IPC file, read in place: a row costs no more than itself.

Rows are written in batches of one size, whatever the size of the shards they came in, so that the file's bytes depend
on its contents alone.
"""

from __future__ import annotations

import bisect
import itertools
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, overload

import numpy as np

from geoinfer.errors import IndexFolderError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.index.base import References

COLUMNS: Final = ("id", "source", "attribution", "sequence")
_BATCH_ROWS: Final = 1 << 16


class SupportsWrite(Protocol):
    """What the table is written to."""

    closed: bool

    def write(self, data: Any) -> int:
        """Writes bytes."""
        ...

    def flush(self) -> None:
        """Hands on what was written."""
        ...


class TableWriter:
    """Writes the table shard by shard; of each column less than a batch is kept in memory."""

    def __init__(self, file: SupportsWrite) -> None:
        """`file`: what is written to, in order; it is not closed."""
        import pyarrow as pa

        self._schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        self._writer = pa.ipc.new_file(file, self._schema)
        self._waiting: list[list[str]] = [[] for _ in COLUMNS]
        self._rows = 0

    def add(self, references: References) -> None:
        """Appends rows, all or, on an error, none.

        Raises:
            ValueError: a column has another length, or a value is no text, or no Unicode (a lone surrogate).
        """
        import pyarrow as pa

        columns = (references.ids, references.sources, references.attributions, references.sequences)
        checked = []
        for name, values in zip(COLUMNS, columns, strict=True):
            texts = list(values) if len(values) or name != "sequence" else [""] * len(references)
            if len(texts) != len(references):
                raise ValueError(f"{len(texts)} values of {name} for {len(references)} references")
            try:
                gaps = pa.array(texts, pa.string()).null_count
            except (pa.ArrowException, UnicodeEncodeError) as error:
                raise ValueError(f"a reference's {name} cannot be written: {error}") from error
            if gaps:
                raise ValueError(f"a reference's {name} is None; expected a text")
            checked.append(texts)
        for waiting, texts in zip(self._waiting, checked, strict=True):
            waiting += texts
        self._rows += len(references)
        if self._rows >= _BATCH_ROWS:
            self._write(_BATCH_ROWS)

    def finish(self) -> None:
        """Writes what waits, and the file's end."""
        self._write(1)
        self._writer.close()

    def _write(self, least: int) -> None:
        """Writes batches while at least so many rows wait."""
        import pyarrow as pa

        start = 0
        while self._rows - start >= least:
            # Anew from the texts: what Arrow writes of a part of an array depends on the rest of it.
            batch = [pa.array(waiting[start : start + _BATCH_ROWS], pa.string()) for waiting in self._waiting]
            self._writer.write_batch(pa.record_batch(batch, schema=self._schema))
            start += len(batch[0])
        self._rows -= start
        self._waiting = [waiting[start:] for waiting in self._waiting]


class Texts(Sequence[str]):
    """One column of a mapped table: a row is decoded when it is asked for, found by bisection among the batches.

    Texts are cut out by their offsets here, and not by Arrow, because of a large file the checksum is not looked at
    when it is opened, and Arrow would follow a damaged offset out of the file.
    """

    __slots__ = ("_batches", "_path", "_starts")

    def __init__(self, batches: Sequence[tuple[NDArray[np.int32], memoryview]], path: Path) -> None:
        """Keeps the batches.

        Args:
            batches: of each the offsets, one more than rows, and the UTF-8 that they cut.
            path: the file, for messages.
        """
        self._batches = [batch for batch in batches if len(batch[0]) > 1]
        self._starts = [0]
        for offsets, _ in self._batches:
            self._starts.append(self._starts[-1] + len(offsets) - 1)
        self._path = path

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Texts: ...
    def __getitem__(self, row: int | slice) -> str | Texts:
        """The text of a row; of a slice the texts, still mapped where its step is 1."""
        if isinstance(row, slice):
            return self._sliced(row)
        number = range(len(self))[row]
        place = bisect.bisect_right(self._starts, number) - 1
        offsets, data = self._batches[place]
        number -= self._starts[place]
        return self._text(data, int(offsets[number]), int(offsets[number + 1]))

    def __iter__(self) -> Iterator[str]:
        for offsets, data in self._batches:
            ends = offsets.tolist()
            for start, end in itertools.pairwise(ends):
                yield self._text(data, start, end)

    def check(self) -> None:
        """Raises IndexFolderError unless every text can be read."""
        for offsets, data in self._batches:
            if offsets[0] < 0 or offsets[-1] > len(data) or (offsets[1:] < offsets[:-1]).any():
                raise self._damaged()
            start, end = int(offsets[0]), int(offsets[-1])
            self._text(data, start, end)
            # What is Unicode as a whole is so in its parts, if no cut goes through a character.
            cuts = offsets[offsets < end]
            if len(cuts) and (np.frombuffer(data, np.uint8)[cuts] & 0xC0 == 0x80).any():
                raise self._damaged()

    def _text(self, data: memoryview, start: int, end: int) -> str:
        if not 0 <= start <= end <= len(data):
            raise self._damaged()
        try:
            return str(data[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged() from error

    def _damaged(self) -> IndexFolderError:
        return IndexFolderError(f"{self._path}: damaged: a text cannot be read", hint="copy or build the index again")

    def _sliced(self, rows: slice) -> Texts:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"a step of {step}; only consecutive rows can be taken")
        parts = []
        for (offsets, data), first in zip(self._batches, self._starts, strict=False):
            low, high = max(start - first, 0), min(stop - first, len(offsets) - 1)
            if low < high:
                parts.append((offsets[low : high + 1], data))
        return Texts(parts, self._path)


def open_table(path: Path, *, checked: bool) -> dict[str, Texts]:
    """Maps a table that `TableWriter` wrote; further columns are ignored.

    Args:
        path: the file.
        checked: whether to read every text; otherwise the structure alone is looked at.

    Raises:
        IndexFolderError: it is no such table, or is damaged.
    """
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            # Arrow itself maps only files whose names are UTF-8.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        table = {name: Texts([_cut(batch, name) for batch in batches], path) for name in COLUMNS}
        if checked:
            for column in table.values():
                column.check()
    except IndexFolderError:
        raise
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise IndexFolderError(
            f"{path}: not a table of references: {error}", hint="copy or build the index again"
        ) from error
    return table


def _cut(batch: Any, name: str) -> tuple[NDArray[np.int32], memoryview]:
    import pyarrow as pa

    if name not in batch.schema.names:
        raise ValueError(f"it has no column {name}")
    column = batch.column(name)
    if column.type != pa.string() or column.null_count:
        raise ValueError(f"column {name} is {column.type}; expected {pa.string()} without gaps")
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4) if offsets else np.zeros(1, np.int32)
    return ends, memoryview(data if data is not None else b"")
