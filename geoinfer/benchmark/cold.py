"""Cold runs: a process of its own, from Python's start, on photos that are not in the page cache."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from geoinfer.benchmark.end_to_end import run_once
from geoinfer.benchmark.resources import GpuMeter
from geoinfer.benchmark.result import COLD, Run
from geoinfer.benchmark.setup import Setup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geoinfer.benchmark.setup import DecodingOpener

OPTION: Final = "--cold-run"
"""Of `geoinfer benchmark`: how a process learns that it is one of these."""

_LOOKED_AT: Final = 8
_ATTEMPTS: Final = 3
_PAUSE_SECONDS: Final = 0.05
_RESULT: Final = "run.json"


@dataclass(frozen=True, slots=True)
class ColdRun:
    """What a cold process is to do; written as JSON for it to read.

    Attributes:
        setup: with everything settled, see `Opened.setup`.
        source: the photos, as `run_predict` takes them.
        folder: for what it writes.
        number: of the round.
    """

    setup: Setup
    source: str
    folder: str
    number: int


class ColdRunFailedError(Exception):
    """The process ended without a result; the text says how."""


def measure_cold(cold: ColdRun, *, truly_cold: bool) -> Run:
    """Starts the process and waits for it.

    Args:
        cold: what it is to do.
        truly_cold: whether the photos were dropped from the cache.

    Raises:
        ColdRunFailedError: it failed.
    """
    folder = Path(cold.folder)
    order = folder / "cold.json"
    order.write_text(json.dumps(dataclasses.asdict(cold)))
    (folder / _RESULT).unlink(missing_ok=True)
    command = [sys.executable, "-m", "geoinfer", "benchmark", OPTION, str(order)]
    began = time.monotonic()
    # Our own command, in a process of its own.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # noqa: S603
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise ColdRunFailedError(f"{how}{': ' + said[0] if said else ''}")
    values: dict[str, Any] = json.loads((folder / _RESULT).read_bytes())
    run = Run.from_dict(values["run"])
    return dataclasses.replace(run, start_seconds=values["ready"] - began, truly_cold=truly_cold)


def run_cold(order: Path, *, decoding: DecodingOpener | None = None) -> None:
    """What the process does: opens model and index as the run of the parent has them, and runs once.

    `time.monotonic` counts from the same moment in every process of the machine, so the parent knows what the start
    took.

    Args:
        order: the file of a `ColdRun`.
        decoding: as for `Setup.open`.

    Raises:
        OSError, ValueError: the order cannot be read.
        GeoInferError: as `run_once`.
    """
    values = json.loads(order.read_bytes())
    cold = ColdRun(Setup(**values["setup"]), values["source"], values["folder"], values["number"])
    folder = Path(cold.folder)
    with cold.setup.open(decoding=decoding) as opened:
        ready = time.monotonic()
        gpu = GpuMeter.open(opened.geolocator.embedder.device)
        run, _ = run_once(opened, cold.source, folder, gpu, kind=COLD, number=cold.number)
    (folder / _RESULT).write_text(json.dumps({"run": dataclasses.asdict(run), "ready": ready}))


def drop_from_cache(paths: Sequence[bytes]) -> str:
    """Drops files from the page cache, so that they are read from the disk the next time. They are only read.

    Returns:
        Empty if that worked, as far as a look at some of them tells; else why it did not. What lies below the
        operating system, such as a virtual machine's host, may still hold them.
    """
    if not hasattr(os, "posix_fadvise"):
        return "this system has no way to drop a file from its cache"
    files = [path for path in paths if _drop(path)]
    if not files:
        return "no file of them could be opened"
    for _ in range(_ATTEMPTS):
        looked_at = files[:: max(1, len(files) // _LOOKED_AT)]
        known = [held for path in looked_at if (held := _in_cache(path)) is not None]
        if not known:
            return "whether they left the page cache cannot be told on this file system"
        # The question itself makes the system fetch what was asked for; and a page in use stays at the first attempt.
        time.sleep(_PAUSE_SECONDS)
        files = [path for path in files if _drop(path)]
        if 2 * sum(known) <= len(known):
            return ""
    return "they stay in the page cache: their file system is in memory, or somebody else has them open"


def _drop(path: bytes) -> bool:
    # Not waited for: what is no regular file is no photo either.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        # Pages that are not on the disk yet cannot be dropped.
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _in_cache(path: bytes) -> bool | None:
    """Whether the last byte of a file can be had without the disk; None where nobody says, or the file is empty.

    The last, as the question may make the system read on from there.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        size = os.fstat(descriptor).st_size
        if not size:
            return None
        return os.preadv(descriptor, [bytearray(1)], size - 1, os.RWF_NOWAIT) == 1
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    finally:
        os.close(descriptor)
