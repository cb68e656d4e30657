"""What of an index build is safely on the disk, so that the same command goes on where it stopped.

While a build is under way, `<output>.building/` holds

    lock                 held by the process that writes
    ledger.jsonl         first the fingerprint of the build, then one line for each shard that is safe
    shard-000000.arrow   references with their embeddings, and the inputs that failed; written aside, synced, renamed,
                         and only then entered in the ledger
    failed.jsonl         where embeddings were ready: the rows that cannot be used, for the error report

When all photos are embedded, the index is made from the shards, and the folder goes.
"""

from __future__ import annotations

import contextlib
import json
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.batch.labelled import DIGEST_BYTES, ReferenceRows
from geoinfer.batch.ledger_file import append_entry, check_fingerprint, read_entries
from geoinfer.errors import InputError
from geoinfer.index import References
from geoinfer.integrity import atomic_file, temporary_name
from geoinfer.lock import OutputLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_LEDGER: Final = "ledger.jsonl"
_LOCK: Final = "lock"
_SPOOL: Final = "failed.jsonl"
_FAILED: Final = b"failed"
_COMPLETE: Final = "complete"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A shard that is safe.

    Attributes:
        inputs: how many it stands for: references, failed ones and skipped ones.
        rows: references.
        error: failed.
        skipped: left out on purpose.
        digest: of all inputs up to the end of this shard.
        size_bytes: of its file.
    """

    inputs: int
    rows: int
    error: int
    skipped: int
    digest: str
    size_bytes: int


class BuildShards:
    """The folder of a build under way. A context manager that holds the build's lock.

    Attributes:
        output: folder of the index.
        folder: of the build.
        entries: shards that are safe.
        complete: how many references there will be; None while inputs may still come.
        finished: whether the output is made, and only this folder has not been cleared away.
    """

    def __init__(self, output: Path, fingerprint: dict[str, Any]) -> None:
        """Does not touch the disk; `open` does.

        Args:
            output: folder of the index.
            fingerprint: everything that decides what the embeddings are; a build can only be resumed with the same one.
        """
        self.output = output
        self.folder = building_folder(output)
        self.fingerprint = fingerprint
        self.entries: list[ShardEntry] = []
        self.complete: int | None = None
        self.finished = False
        self._lock = OutputLock(self.folder / _LOCK, output)

    def open(self, *, restart: bool = False, made: Callable[[dict[str, Any], int], bool] | None = None) -> None:
        """Takes the lock and reads what is safe already.

        Args:
            restart: forget what is there.
            made: says, given the fingerprint of a build that is there and how many references it is of, whether the
                output is what it made; the build is then `finished`, and this fingerprint does not matter.

        Raises:
            OutputError: another process writes this output.
            OSError: the folder cannot be written.
            UsageError: what is there was made with another fingerprint; the message names the field.
        """
        self._lock.take()
        try:
            if restart:
                self._forget()
            header, read = read_entries(self.folder / _LEDGER, self._entry)
            if header is None:
                self._forget()
                append_entry(self.folder / _LEDGER, {"fingerprint": self.fingerprint})
                return
            self.entries = [entry for entry in read if isinstance(entry, ShardEntry)]
            self.complete = next((entry for entry in read if isinstance(entry, int)), None)
            self.finished = made is not None and self.complete is not None and made(header, self.complete)
            if not self.finished:
                check_fingerprint(header, self.fingerprint, f"{self.output}: an unfinished build is there, made with")
        except BaseException:
            self.close()
            raise

    @property
    def spool(self) -> Path:
        """A file for the rows of inputs that failed, where no shard holds them."""
        return self.folder / _SPOOL

    @property
    def inputs(self) -> int:
        """How many inputs are safe."""
        return sum(entry.inputs for entry in self.entries)

    @property
    def rows(self) -> int:
        """How many references are safe."""
        return sum(entry.rows for entry in self.entries)

    @property
    def error(self) -> int:
        """How many of the inputs failed."""
        return sum(entry.error for entry in self.entries)

    @property
    def skipped(self) -> int:
        """How many of the inputs were left out on purpose."""
        return sum(entry.skipped for entry in self.entries)

    def commit(self, rows: ReferenceRows, failed: list[Row], digest: str) -> None:
        """Makes a shard safe: written aside, synced, renamed, then entered.

        Args:
            rows: references, in input order.
            failed: rows of the inputs that are none, in input order.
            digest: of all inputs up to here.

        Raises:
            OSError: the disk is full, say; nothing that was safe is lost.
        """
        path = self._path(len(self.entries))
        _write_shard(path, rows, failed)
        errors = sum(row["status"] == "error" for row in failed)
        entry = ShardEntry(
            len(rows) + len(failed), len(rows), errors, len(failed) - errors, digest, path.stat().st_size
        )
        append_entry(
            self.folder / _LEDGER,
            {
                "shard": len(self.entries),
                "inputs": entry.inputs,
                "rows": entry.rows,
                "error": entry.error,
                "skipped": entry.skipped,
                "digest": entry.digest,
                "bytes": entry.size_bytes,
            },
        )
        self.entries.append(entry)

    def all_safe(self, references: int) -> None:
        """Enters that no more inputs will come, and how many references they are."""
        if self.complete is None:
            append_entry(self.folder / _LEDGER, {_COMPLETE: references})
            self.complete = references

    def shards(self, *, with_embeddings: bool = True) -> Iterator[ReferenceRows]:
        """The references that are safe, in input order, a shard at a time.

        Args:
            with_embeddings: without them, what else is known of the references is read alone.

        Raises:
            InputError: a shard is damaged.
        """
        for number in range(len(self.entries)):
            yield _read_rows(self._path(number), with_embeddings=with_embeddings)

    def failed(self) -> Iterator[Row]:
        """The rows of the inputs that are no references, in input order."""
        for number in range(len(self.entries)):
            yield from _read_failed(self._path(number))

    def discard(self) -> None:
        """Clears the folder away."""
        # The ledger goes first: shards without it mean nothing. The lock goes last: until then nobody else begins here.
        with contextlib.suppress(OSError):
            self._forget()
            (self.folder / _LOCK).unlink()
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def __enter__(self) -> BuildShards:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _forget(self) -> None:
        (self.folder / _LEDGER).unlink(missing_ok=True)
        self.spool.unlink(missing_ok=True)
        for pattern in ("shard-[0-9]*.arrow", temporary_name(self._path(0)).name.replace("000000", "[0-9]*")):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:06d}.arrow"

    def _entry(self, values: dict[str, Any], before: int) -> ShardEntry | int | None:
        if _COMPLETE in values:
            return int(values[_COMPLETE])
        entry = ShardEntry(*(values[name] for name in ("inputs", "rows", "error", "skipped", "digest", "bytes")))
        whole = values["shard"] == before and self._path(before).stat().st_size == entry.size_bytes
        return entry if whole else None


def building_folder(output: Path) -> Path:
    """Where a build of this output keeps what is safe."""
    return output.with_name(output.name + ".building")


def _write_shard(path: Path, rows: ReferenceRows, failed: list[Row]) -> None:
    import pyarrow as pa

    references = rows.references
    embeddings = np.ascontiguousarray(rows.embeddings, np.float32)
    digest, coordinates = pa.binary(DIGEST_BYTES), references.coordinates
    columns = {
        "id": pa.array(references.ids, pa.string()),
        "latitude": pa.array(coordinates[:, 0]),
        "longitude": pa.array(coordinates[:, 1]),
        "source": pa.array(references.sources, pa.string()),
        "attribution": pa.array(references.attributions, pa.string()),
        "sequence": pa.array(references.sequences, pa.string()),
        "taken_at": pa.array(rows.taken_at, pa.int64()),
        "content_sha256": pa.array([one.tobytes() for one in references.content_sha256], digest),
        "perceptual_hash": pa.array([one.tobytes() for one in references.perceptual_hashes], digest),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1]),
    }
    table = pa.table(columns).replace_schema_metadata({_FAILED: json.dumps(failed, allow_nan=False)})
    with atomic_file(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    """A shard as an Arrow file whose unread columns cost nothing."""
    import pyarrow as pa

    try:
        with path.open("rb") as file:  # the mapping lives as long as what points into it
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        yield pa.ipc.open_file(pa.py_buffer(content))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{path}: damaged: {error}", hint="--restart begins the build anew") from error


def _read_failed(path: Path) -> list[Row]:
    with _mapped(path) as shard:
        rows: list[Row] = json.loads(shard.schema.metadata[_FAILED])
    return rows


def _read_rows(path: Path, *, with_embeddings: bool) -> ReferenceRows:
    with _mapped(path) as shard:
        table = shard.read_all()
        references = References(
            ids=table["id"].to_pylist(),
            coordinates=np.stack([table["latitude"].to_numpy(), table["longitude"].to_numpy()], axis=1),
            sources=table["source"].to_pylist(),
            attributions=table["attribution"].to_pylist(),
            content_sha256=_digests(table["content_sha256"]),
            perceptual_hashes=_digests(table["perceptual_hash"]),
            sequences=table["sequence"].to_pylist(),
        )
        width = table.schema.field("embedding").type.list_size if with_embeddings else 0
        embeddings = np.empty((len(table), width), np.float32)
        if with_embeddings and len(table):
            embeddings[:] = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, width)
        return ReferenceRows(embeddings, references, table["taken_at"].to_numpy())


def _digests(column: Any) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, DIGEST_BYTES)
