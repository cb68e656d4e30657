"""Runs a program as a user would, and says how long it took, what it left behind and what memory it had."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]
_SAMPLE_SECONDS = 0.02
# What the threads of libraries would be limited by: every program gets the machine as it comes.
_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Done:
    """A program that has ended.

    Attributes:
        seconds: from its start to its end.
        exit_code: negative for a signal.
        stdout: what it wrote there.
        last_words: the last line of standard error.
        peak_bytes: the most memory that it and its processes had; None where it was not looked at.
    """

    seconds: float
    exit_code: int
    stdout: str
    last_words: str
    peak_bytes: int | None


def run(argv: list[str], *, environment: dict[str, str], measure_memory: bool = False) -> Done:
    """Runs `python ARGV` in a session of its own and waits for it.

    Looking at memory fifty times a second takes its share of a core, so the runs that are timed go without.
    """
    env = {name: value for name, value in os.environ.items() if name not in _LIMITS}
    env |= environment | {"PYTHONPATH": str(BENCHMARKS)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, *argv], stdout=out, stderr=err, env=env, start_new_session=True)
        sampler = _Sampler(process.pid) if measure_memory else None
        exit_code = process.wait()
        seconds = time.perf_counter() - started
        peak = None if sampler is None else sampler.stop()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace").strip())
    return Done(seconds, exit_code, texts[0], texts[1].rpartition("\n")[2], peak)


class _Sampler:
    def __init__(self, session: int) -> None:
        self._session = session
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, session_bytes(self._session))


def session_bytes(session: int) -> int:
    """Memory of all processes of a session, in bytes.

    The resident memory of the largest, and of the others what they share with nobody: workers that were forked share
    most of theirs with their parent.
    """
    whole, own = [], []
    for name in os.listdir("/proc"):
        try:
            if not name.isdigit() or os.getsid(int(name)) != session:
                continue
            text = Path(f"/proc/{name}/smaps_rollup").read_text()
        except OSError:
            continue  # it has ended meanwhile
        fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
        kib = {name: int(value.split()[0]) for name, value in fields.items()}
        if kib:
            whole.append(kib["Rss"] * 1024)
            own.append((kib["Private_Clean"] + kib["Private_Dirty"]) * 1024)
    if not whole:
        return 0
    largest = max(range(len(whole)), key=whole.__getitem__)
    return whole[largest] + sum(own) - own[largest]
