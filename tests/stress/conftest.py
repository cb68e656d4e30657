"""The real command under bad conditions; what every outcome must have in common."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

COMMAND = (sys.executable, "-m", "geoinfer", "predict")


@pytest.fixture
def kit() -> ModuleType:
    """What this file defines: test files have no names to import it by."""
    return sys.modules[__name__]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOINFER_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True)
class Outcome:
    """What is left of a run: exit code, what it said, and the rows by name of file."""

    code: int
    stderr: str
    rows: dict[str, dict[str, str]]
    codes: dict[str, str]
    output: bytes
    report: bytes


def arguments(photos: Path, output: Path, *more: object) -> list[str]:
    return [*COMMAND, str(photos), "-o", str(output), "--no-tune", "--summary-json", f"{output}.json", *map(str, more)]


def outcome(process: subprocess.CompletedProcess[str], output: Path, inputs: int) -> Outcome:
    """Of a run that came to its end, checked: no traceback, and each input has its row."""
    assert "Traceback" not in process.stderr
    assert process.returncode in (0, 1), process.stderr
    summary = json.loads(output.with_name(f"{output.name}.json").read_bytes())
    assert summary["inputs"] == inputs == summary["ok"] + summary["error"] + summary["skipped"]
    assert summary["exit_code"] == process.returncode == (1 if summary["error"] else 0)
    data, report = output.read_bytes(), output.with_name(f"{output.stem}.errors.csv").read_bytes()
    rows = list(csv.DictReader(data.decode().splitlines()))
    failed = list(csv.DictReader(report.decode().splitlines()))
    assert len(rows) == inputs
    assert sum(row["status"] == "error" for row in rows) == summary["error"] == len(failed)
    name = next(column for column in rows[0] if column in ("file", "path", "source", "input"))
    return Outcome(
        process.returncode,
        process.stderr,
        {os.path.basename(row[name]): row for row in rows},
        {os.path.basename(row[name]): row["code"] for row in failed},
        data,
        report,
    )


def run(
    photos: Path, output: Path, *more: object, timeout: float = 300, **popen: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(photos, output, *more), capture_output=True, text=True, timeout=timeout, check=False, **popen
    )


def start(photos: Path, output: Path, *more: object, **popen: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments(photos, output, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def ended(process: subprocess.Popen[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    stdout, stderr = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], limit: float = 120) -> bool:
    """Waits until `condition` holds (True) or the process has ended (False)."""
    end = time.monotonic() + limit
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)
    return True


def children(pid: int) -> list[int]:
    """Processes that a process has started and that live, at any depth."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                parents[int(name)] = int(parent)
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def gradient(width: int, height: int, channels: int = 3) -> np.ndarray:
    row = np.arange(width, dtype=np.uint32)[:, None] * (1 + np.arange(channels, dtype=np.uint32))
    rows = np.arange(height, dtype=np.uint32)[:, None, None]
    picture = np.empty((height, width, channels), np.uint8)
    for start_ in range(0, height, 1000):
        picture[start_ : start_ + 1000] = (row[None] + 3 * rows[start_ : start_ + 1000]) // 7 % 256
    return picture if channels > 1 else picture[..., 0]


def huge_png(path: Path, width: int, height: int, channels: int = 4) -> None:
    Image.fromarray(gradient(width, height, channels)).save(path, compress_level=1)


def limited(size_bytes: int) -> Iterator[Callable[[], None]]:
    """What a child calls to have no more memory than this: a control group of its own; skips where none can be made."""
    root = "/sys/fs/cgroup"
    first = os.path.isdir(f"{root}/memory")
    folder = f"{root}/memory/geoinfer-{os.getpid()}" if first else f"{root}/geoinfer-{os.getpid()}"
    try:
        os.mkdir(folder)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            with open(f"{folder}/{'memory.limit_in_bytes' if first else 'memory.max'}", "w") as file:
                file.write(str(size_bytes))
        except OSError as error:
            pytest.skip(f"memory cannot be limited here: {error}")

        def join() -> None:
            with open(f"{folder}/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))

        yield join
    finally:
        for _ in range(50):
            try:
                os.rmdir(folder)
                break
            except OSError:
                time.sleep(0.1)


@pytest.fixture
def examples(tmp_path: Path, example_photos: Path) -> Path:
    """A folder to fill, with thirty links to real photos in it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    originals = sorted(example_photos.glob("*.jpg"))
    for number in range(30):
        (folder / f"good-{number:02d}.jpg").symlink_to(originals[number % len(originals)])
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No process, and no shared memory, outlives what started it."""
    before = set(os.listdir("/dev/shm"))
    yield
    end = time.monotonic() + 10
    while left := [pid for pid in _processes() if str(tmp_path) in _command(pid)]:
        assert time.monotonic() < end, [_command(pid) for pid in left]
        time.sleep(0.1)
    assert set(os.listdir("/dev/shm")) - before == set()
    shutil.rmtree(tmp_path / "photos", ignore_errors=True)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
