"""The run ledger: what of a run is safely on the disk, so that the same command goes on where it stopped.

While a run is under way, `<output>.run/` holds

    lock              held by the process that writes
    ledger.jsonl      first the fingerprint of the run, then one line for each part that is safe
    part-000000.jsonl rows, written aside, synced, renamed, and only then entered in the ledger

When all inputs are done, the output and the error report are made from the parts, `<output>.run.json` records how, and
the folder goes. A kill at any moment loses at most what was not yet in a part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from geoinfer.batch.ledger_file import append_entry, check_fingerprint, read_entries
from geoinfer.errors import OutputError
from geoinfer.integrity import atomic_file, temporary_name, write_json
from geoinfer.lock import OutputLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LEDGER: Final = "ledger.jsonl"
_LOCK: Final = "lock"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that are safe.

    Attributes:
        number: of the part, from 0.
        inputs: how many.
        counts: status to number of rows.
        digest: of all inputs' paths up to the end of this part, see `InputDigest`.
        size_bytes: of its file.
    """

    number: int
    inputs: int
    counts: dict[str, int]
    digest: str
    size_bytes: int


class InputDigest:
    """Names a sequence of inputs, so that a resumed run notices when the inputs are others than before."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.count = 0

    def add(self, path: bytes) -> None:
        """Appends one input."""
        self._hash.update(len(path).to_bytes(4, "big") + path)
        self.count += 1

    @property
    def value(self) -> str:
        """32 hexadecimal digits for the inputs so far."""
        return self._hash.hexdigest()[:32]


class RunLedger:
    """Commits the rows of one run and knows which are safe. A context manager that holds the run's lock."""

    def __init__(self, output: Path, fingerprint: dict[str, Any]) -> None:
        """Does not touch the disk; `open` does.

        Args:
            output: the file that the run is for.
            fingerprint: everything that decides what the rows say; a run can only be resumed with the same one.
        """
        self.output = output
        self.folder = output.with_name(output.name + ".run")
        self.record_path = output.with_name(output.name + ".run.json")
        self.fingerprint = fingerprint
        self.parts: list[Part] = []
        self.finished: dict[str, Any] | None = None
        self._lock = OutputLock(self.folder / _LOCK, output)

    def open(self, *, restart: bool) -> None:
        """Takes the lock and reads what is safe already.

        Args:
            restart: forget an earlier run and replace its output.

        Raises:
            OutputError: the folder cannot be written, another process writes this output, or the output exists and
                no run of geoinfer made it.
            UsageError: an earlier run had another fingerprint; the message names the field.
        """
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            if self.output.is_dir():
                raise OutputError(f"{self.output}: is a folder", hint="--output names a file")
            # The longest name that will be needed: better to learn now than at the end that it is too long.
            with contextlib.suppress(FileNotFoundError):
                os.lstat(temporary_name(self.record_path))
            self._lock.take()
            had_ledger = (self.folder / _LEDGER).exists()
            try:
                self._begin(restart=restart)
            except BaseException:
                if had_ledger:
                    self.close()
                else:
                    self.discard()
                raise
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"{self.output}: cannot be written here: {(error.strerror or str(error)).lower()}",
                hint="choose another --output",
            ) from error

    @property
    def inputs(self) -> int:
        """How many inputs are safe."""
        return sum(part.inputs for part in self.parts)

    @property
    def counts(self) -> dict[str, int]:
        """Rows that are safe, by status."""
        total = {"ok": 0, "error": 0, "skipped": 0}
        for part in self.parts:
            for status, count in part.counts.items():
                total[status] += count
        return total

    def _finished_run(self) -> dict[str, Any] | None:
        """The record of an earlier run that ended and whose output is still there, else None."""
        try:
            record = json.loads(self.record_path.read_bytes())
            size = self.output.stat().st_size
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and record.get("output_bytes") == size else None

    def commit(self, rows: list[Row], digest: str) -> None:
        """Makes rows safe: written aside, synced, renamed, then entered.

        Raises:
            OSError: the disk is full, say; nothing that was safe is lost.
        """
        number = len(self.parts)
        counts: dict[str, int] = {}
        for row in rows:
            counts[row["status"]] = counts.get(row["status"], 0) + 1
        with atomic_file(self._part_path(number)) as file:
            for row in rows:
                file.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
        part = Part(number, len(rows), counts, digest, self._part_path(number).stat().st_size)
        self._append(
            {
                "part": part.number,
                "inputs": part.inputs,
                "counts": part.counts,
                "digest": part.digest,
                "bytes": part.size_bytes,
            }
        )
        self.parts.append(part)

    def rows(self) -> Iterator[Row]:
        """All rows that are safe, in input order."""
        for part in self.parts:
            with self._part_path(part.number).open("rb") as file:
                for line in file:
                    yield json.loads(line)

    def finish(self, record: dict[str, Any]) -> None:
        """Writes the record of a run whose output is complete, and clears away what is no longer needed."""
        write_json(
            self.record_path, record | {"fingerprint": self.fingerprint, "output_bytes": self.output.stat().st_size}
        )
        self.discard()

    def discard(self) -> None:
        """Clears the folder of a run that has nothing in it worth keeping."""
        # The ledger goes first: parts without it mean nothing, so a kill half-way leaves no unfinished run behind.
        # The lock goes last: until then nobody else begins a run in this folder.
        with contextlib.suppress(OSError):
            (self.folder / _LEDGER).unlink(missing_ok=True)
            self._clear_parts()
            (self.folder / _LOCK).unlink()
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def __enter__(self) -> RunLedger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _clear_parts(self) -> None:
        for pattern in ("part-[0-9]*.jsonl", temporary_name(self._part_path(0)).name.replace("000000", "[0-9]*")):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _part_path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.jsonl"

    def _begin(self, *, restart: bool) -> None:
        if restart:
            # The old result stays until the new one takes its place, in case there will be none.
            (self.folder / _LEDGER).unlink(missing_ok=True)
            self._clear_parts()
            self._append({"fingerprint": self.fingerprint})
            return
        header, self.parts = self._read()
        if header is not None:
            self._check_fingerprint(header, f"{self.output}: an unfinished run is there, made with")
            return
        self.finished = self._finished_run()
        if self.finished is not None:
            self._check_fingerprint(
                self.finished.get("fingerprint"), f"{self.output}: a finished run is there, made with"
            )
        elif self.output.exists():
            raise OutputError(
                f"{self.output}: exists already, and is not the unchanged output of an earlier run",
                hint="choose another --output, or --restart to replace it",
            )
        else:
            # A record without its output says nothing any more, and must not be taken for this run's own.
            self.record_path.unlink(missing_ok=True)
            self._append({"fingerprint": self.fingerprint})

    def _check_fingerprint(self, stored: Any, sentence: str) -> None:
        check_fingerprint(stored, self.fingerprint, sentence)

    def _read(self) -> tuple[dict[str, Any] | None, list[Part]]:
        def parse(entry: dict[str, Any], before: int) -> Part | None:
            part = Part(entry["part"], entry["inputs"], entry["counts"], entry["digest"], entry["bytes"])
            whole = part.number == before and self._part_path(part.number).stat().st_size == part.size_bytes
            return part if whole else None

        return read_entries(self.folder / _LEDGER, parse)

    def _append(self, entry: dict[str, Any]) -> None:
        append_entry(self.folder / _LEDGER, entry)


def earlier_run(output: Path) -> tuple[dict[str, Any] | None, bool]:
    """What an earlier run of an output was made with, found out without changing anything or taking the lock.

    Returns:
        The fingerprint of an unfinished run, or of a finished one, else None; and whether it is finished.
    """
    folder, record = output.with_name(output.name + ".run"), output.with_name(output.name + ".run.json")
    try:
        with (folder / _LEDGER).open("rb") as file:
            stored, finished = json.loads(file.readline()), False
    except (OSError, ValueError):
        try:
            stored, finished = json.loads(record.read_bytes()), output.exists()
        except (OSError, ValueError):
            return None, False
    fingerprint = stored.get("fingerprint") if isinstance(stored, dict) else None
    return (fingerprint, finished) if isinstance(fingerprint, dict) else (None, False)
