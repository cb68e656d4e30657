"""From what the user typed to a stream of photos, in an order that is the same every time.

Memory stays flat however many files there are: folders are walked one at a time, and the names of a folder too large to
sort in memory are sorted in runs on the disk. What grows is small: some 250 bytes for each folder, so that loops of
links end, and what a pattern matches is held as a list. Paths are bytes throughout, so that names that are not UTF-8
survive.
"""

from __future__ import annotations

import contextlib
import glob
import heapq
import itertools
import os
import stat
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from geoinfer.errors import ImageError, InputError
from geoinfer.images.read import RAW_SUFFIXES, raw_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

IMAGE_SUFFIXES: Final = frozenset(
    b".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .dib .gif .avif .heic .heif .hif .jp2 .j2k .jpf .jpx".split()
)
"""What a folder's files are called when they are photos. A file that is named itself may be called anything."""

_SORTED_IN_MEMORY: Final = 200_000
_LONGEST_PATH: Final = 65_536


@dataclass(frozen=True, slots=True)
class Source:
    """One input.

    Attributes:
        path: as the operating system takes it, beginning with what the user typed.
        problem: why it cannot even be tried; it still gets its row.
    """

    path: bytes
    problem: ImageError | None = None


def discover(arguments: Iterable[str]) -> Iterator[Source]:
    """Yields the inputs that the arguments name, in the order of the arguments, folders sorted by name.

    Args:
        arguments: each a file, a folder (searched recursively, hidden entries left out), a glob pattern, `@list.txt`
            (a file of paths, one a line, or separated by NUL bytes), or `-` (the same from standard input).

    A folder that is reached twice within one argument, as a loop of symbolic links does, is walked once. A path that
    two arguments name is two inputs. A folder further down that cannot be read is an input with a problem.

    Raises:
        InputError: while iterating: an argument names nothing, or a folder or list that cannot be read.
    """
    for argument in arguments:
        if argument == "-":
            # Unbuffered: a thread that waits in the buffered reader when the process ends makes Python abort.
            yield from _listed(getattr(sys.stdin.buffer, "raw", sys.stdin.buffer), "standard input")
        elif argument.startswith("@") and not os.path.lexists(argument):
            yield from _from_list_file(argument[1:])
        else:
            yield from _from_path(argument)


def check_sources(arguments: Iterable[str]) -> None:
    """Raises InputError at once for an argument that names nothing, before hours are spent on the ones before it."""
    for argument in arguments:
        if argument == "-":
            continue
        if argument.startswith("@") and not os.path.lexists(argument):
            try:
                # A pipe is not opened: what writes into it would see it closed again.
                if not stat.S_ISFIFO(os.stat(argument[1:]).st_mode):
                    open(argument[1:], "rb").close()
            except OSError as error:
                raise _unreadable_list(argument[1:], error) from error
            continue
        path = os.fsencode(argument)
        if os.path.isdir(path):
            try:
                os.scandir(path).close()
            except OSError as error:
                raise _unreadable_folder(path, error) from error
        elif not os.path.lexists(path):
            if not argument or not glob.has_magic(argument):
                raise _missing(argument)
            if not _matches(path):
                raise _no_match(argument)


def _missing(argument: str) -> InputError:
    if not argument:
        return InputError("an input is the empty string", hint="name a photo, a folder, a pattern, @list.txt or -")
    try:
        os.lstat(argument)
    except PermissionError as error:
        return InputError(
            f"{argument}: cannot be looked at: {(error.strerror or str(error)).lower()}",
            hint="make the folders that it lies in readable",
        )
    except (OSError, ValueError):
        pass
    return InputError(
        f"{argument}: there is no such file or folder", hint="check the path; --help shows what an input can be"
    )


def _no_match(argument: str) -> InputError:
    return InputError(
        f"{argument}: no file matches this pattern", hint="check it; it is relative to the current folder"
    )


def _unreadable_list(name: str, error: OSError) -> InputError:
    reason = (error.strerror or str(error)).lower()
    return InputError(
        f"@{name}: the list of inputs cannot be read: {reason}", hint="@ comes before the name of a file of paths"
    )


def _unreadable_folder(folder: bytes, error: OSError) -> InputError:
    reason = (error.strerror or str(error)).lower()
    return InputError(f"{os.fsdecode(folder)}: the folder cannot be read: {reason}", hint="make it readable")


def _from_path(argument: str) -> Iterator[Source]:
    path = os.fsencode(argument)
    if os.path.isdir(path):
        yield from _walk(path, set(), top=True)
    elif os.path.lexists(path):
        yield _source(path)
    elif glob.has_magic(argument):
        matches = _matches(path)
        if not matches:
            raise _no_match(argument)
        seen: set[tuple[int, int]] = set()
        walked: set[bytes] = set()
        for match in matches:
            # `**` may name a folder and, again, what is in it. The folder comes first, being shorter.
            if os.path.isdir(match):
                walked.add(match)
                yield from _walk(match, seen, top=False)
            elif _is_photo_name(match) and walked.isdisjoint(_parents(match)):
                yield _source(match)
    else:
        raise _missing(argument)


def _matches(pattern: bytes) -> list[bytes]:
    """What a glob pattern names, in byte order; a folder stands for all that is in it.

    `glob` itself knows `**` too, but goes round in loops of symbolic links, of which two already take it for ever.
    """
    parts = pattern.split(b"/")
    if b"**" not in parts:
        return sorted(glob.glob(pattern))
    at = parts.index(b"**")
    behind = list(itertools.dropwhile(lambda part: part == b"**", parts[at:]))
    before, after = b"/".join(parts[:at]), b"/".join(behind)
    tops = [b"/" if at else b""] if not before else [path for path in sorted(glob.glob(before)) if os.path.isdir(path)]
    if not after:
        return [top or b"." for top in tops]
    found: set[bytes] = set()
    seen: set[tuple[int, int]] = set()
    for top in tops:
        for folder in _folders(top, seen):
            found.update(_matches(os.path.join(glob.escape(folder), after)))
    return sorted(found)


def _folders(top: bytes, seen: set[tuple[int, int]]) -> Iterator[bytes]:
    """A folder and all below it, hidden ones left out, each once; those that cannot be read have nothing below."""
    pending = [top]
    while pending:
        folder = pending.pop()
        with contextlib.suppress(OSError):
            identity = _identity(folder or b".")
            if identity in seen:
                continue
            seen.add(identity)
            yield folder
            with os.scandir(folder or b".") as entries:
                names = sorted(entry.name for entry in entries if not entry.name.startswith(b".") and _is_folder(entry))
            pending += [os.path.join(folder, name) for name in reversed(names)]


def _parents(path: bytes) -> Iterator[bytes]:
    while (parent := os.path.dirname(path)) not in (path, b""):
        yield parent
        path = parent


def _identity(folder: bytes) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _from_list_file(name: str) -> Iterator[Source]:
    try:
        with open(name, "rb") as file:
            yield from _listed(file, name)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable_list(name, error) from error


def _listed(stream: BinaryIO, name: str) -> Iterator[Source]:
    """Paths from a stream: separated by NUL bytes if one is near the beginning, by line ends otherwise."""
    buffer = more = _read_some(stream)
    # A slow pipe may give less than one path at first.
    while more and b"\0" not in buffer and b"\n" not in buffer and len(buffer) <= _LONGEST_PATH:
        more = _read_some(stream)
        buffer += more
    # A path has no NUL byte and is shorter than this, so a NUL-separated list shows one here.
    separator = b"\0" if b"\0" in buffer[:_LONGEST_PATH] else b"\n"
    if buffer.startswith(b"\xef\xbb\xbf") and separator == b"\n":
        buffer = buffer[3:]
    finished = not buffer
    while True:
        *complete, buffer = buffer.split(separator)
        for line in complete:
            yield from _listed_path(line, separator)
        if finished:
            break
        if len(buffer) > _LONGEST_PATH:
            raise InputError(f"{name}: a line is longer than any path can be; is this a list of paths?")
        more = _read_some(stream)
        finished = not more
        buffer += more
    yield from _listed_path(buffer, separator)


def _read_some(stream: BinaryIO) -> bytes:
    # `read1` answers with what has arrived, so a pipe that goes on for hours is worked on as it fills.
    reader = getattr(stream, "read1", stream.read)
    return bytes(reader(_LONGEST_PATH))


def _listed_path(line: bytes, separator: bytes) -> Iterator[Source]:
    path = line.removesuffix(b"\r") if separator == b"\n" else line
    if not path:
        return
    if os.path.isdir(path):
        yield from _walk(path, set(), top=False)
    else:
        yield _source(path)


def _source(path: bytes) -> Source:
    """A named file. Whether it is there and is a photo turns out when it is read."""
    return Source(path, raw_problem(path))


def _is_photo_name(path: bytes) -> bool:
    suffix = os.path.splitext(path)[1].lower()
    return suffix in IMAGE_SUFFIXES or suffix in RAW_SUFFIXES


def _walk(folder: bytes, seen: set[tuple[int, int]], *, top: bool) -> Iterator[Source]:
    # A stack of its own: Python's would end at some 300 folders within folders.
    walking: list[tuple[bytes, Iterator[bytes]]] = []
    entered: bytes | None = folder
    while entered is not None or walking:
        if entered is not None:
            try:
                identity = _identity(entered)
                if identity not in seen:
                    seen.add(identity)
                    walking.append((entered, _sorted_names(entered)))
            except OSError as error:
                if top and not walking:
                    raise _unreadable_folder(entered, error) from error
                reason = (error.strerror or str(error)).lower()
                problem = ImageError("discover", "unreadable_folder", f"the folder cannot be read: {reason}")
                yield Source(entered, problem)
            entered = None
            continue
        parent, names = walking[-1]
        entry = next(names, None)
        if entry is None:
            walking.pop()
            continue
        # The last byte says what the entry is, see `_entries`.
        path = os.path.join(parent, entry[:-1])
        if entry.endswith(b"/"):
            entered = path
        else:
            yield Source(path, raw_problem(path))


def _entries(folder: bytes) -> Iterator[bytes]:
    """Names of a folder's photos and sub-folders, with one byte behind each: `/` for a folder, a space for a file."""
    with os.scandir(folder) as entries:
        for entry in entries:
            # Hidden ones are thumbnails, trash and macOS's resource forks (`._IMG_1.jpg`), never somebody's photos.
            if entry.name.startswith(b"."):
                continue
            if _is_folder(entry):
                yield entry.name + b"/"
            elif _is_photo_name(entry.name):
                yield entry.name + b" "


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _sorted_names(folder: bytes) -> Iterator[bytes]:
    """A folder's entries in byte order: in memory, or, past 200,000, as sorted runs on the disk that are merged."""
    with contextlib.ExitStack() as stack:
        runs: list[BinaryIO] = []
        batch: list[bytes] = []
        for name in _entries(folder):
            batch.append(name)
            if len(batch) >= _SORTED_IN_MEMORY:
                run = stack.enter_context(tempfile.TemporaryFile())
                run.writelines(name + b"\0" for name in sorted(batch))
                run.seek(0)
                runs.append(run)
                batch = []
        batch.sort()
        # They are closed by their readers from here on.
        stack.pop_all()
    return heapq.merge(batch, *(_read_run(run) for run in runs)) if runs else iter(batch)


def _read_run(run: BinaryIO) -> Iterator[bytes]:
    rest = b""
    with run:
        while chunk := run.read(1 << 16):
            *names, rest = (rest + chunk).split(b"\0")
            yield from names
