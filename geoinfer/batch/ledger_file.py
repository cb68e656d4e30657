"""A ledger's file: a header with the fingerprint of what is under way, then one line for each part that is safe."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, TypeVar

from geoinfer.errors import UsageError
from geoinfer.integrity import canonical_json, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Entry = TypeVar("Entry")


def append_entry(path: Path, entry: dict[str, Any]) -> None:
    """Adds one line and makes it survive a power cut.

    Raises:
        OSError: it cannot be written; the file is then as before.
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write((canonical_json(entry) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # Half a line would hide every later one.
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise
    sync_folder(path.parent)


def read_entries(
    path: Path, parse: Callable[[dict[str, Any], int], Entry | None]
) -> tuple[dict[str, Any] | None, list[Entry]]:
    """The header's fingerprint and the entries; a line that a crash cut short, and what follows it, never happened.

    Args:
        path: the file; what cannot be read is cut off its end.
        parse: makes an entry of a line, given how many there are before it; None, or a ValueError, KeyError or
            TypeError, for one that does not hold.

    Returns:
        (fingerprint, entries); None and nothing where there is no header.
    """
    header: dict[str, Any] | None = None
    entries: list[Entry] = []
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None, []
    good = 0
    for line in content.splitlines(keepends=True):
        try:
            values = json.loads(line) if line.endswith(b"\n") else None
            if header is None:
                header = values["fingerprint"]  # type: ignore[index]
            else:
                entry = parse(values, len(entries)) if isinstance(values, dict) else None
                if entry is None:
                    break
                entries.append(entry)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            break
        good += len(line)
    if good < len(content):
        with path.open("r+b") as file:
            file.truncate(good)
    return header, entries


def check_fingerprint(stored: Any, now: dict[str, Any], sentence: str) -> None:
    """Compares what was under way with what is asked for now.

    Raises:
        UsageError: they differ; the message is `sentence` and goes on with the field that does.
    """
    stored = stored if isinstance(stored, dict) else {}
    for name in sorted({*stored, *now}):
        before, after = stored.get(name), now.get(name)
        if canonical_json(before) != canonical_json(after):
            raise UsageError(
                f"{sentence} another {name} ({_short(before)}; now {_short(after)})",
                hint="repeat the command as it was, choose another --output, or --restart to begin anew",
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 60 else text[:57] + "..."
