from __future__ import annotations

import builtins
import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from geoinfer.backends.cpu_settings import CpuSettings
from geoinfer.self_tuning import cache
from geoinfer.self_tuning.cache import CacheKey, Int8Kept, Kept

if TYPE_CHECKING:
    from pathlib import Path

KEY = CacheKey("a" * 64, "x86_64, A Processor, 6, 1, 2", "f" * 16, 4, "1.22.0", "0.1.0")
CHOICE = Kept(CpuSettings(batch_size=4), 1.08, Int8Kept("b" * 64, 2.3, ""))


def test_what_is_stored_is_found(own_cache: Path) -> None:
    assert cache.load(KEY) == (None, "")
    assert cache.store(KEY, CHOICE) == ""
    assert cache.load(KEY) == (CHOICE, "")
    assert KEY.path.parent == own_cache / "tuning"
    without = Kept(CpuSettings(), 1.0)
    assert cache.store(KEY, without) == ""
    assert cache.load(KEY) == (without, "")
    assert [path.name for path in KEY.path.parent.iterdir()] == [KEY.path.name]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(CacheKey)])
def test_whatever_a_choice_depends_on_makes_it_another(name: str) -> None:
    cache.store(KEY, CHOICE)
    value = getattr(KEY, name)
    other = dataclasses.replace(KEY, **{name: value + 1 if isinstance(value, int) else value + "x"})
    assert other.path != KEY.path
    assert cache.load(other) == (None, "")


def test_a_file_that_was_copied_from_another_machine_is_not_believed() -> None:
    cache.store(KEY, CHOICE)
    other = dataclasses.replace(KEY, processor="another")
    KEY.path.rename(other.path)
    kept, complaint = cache.load(other)
    assert kept is None
    assert complaint == f"{other.path}: is of another machine or model; it is not used"


def _changed(**changes: object) -> bytes:
    values = {"key": KEY.as_dict(), "choice": CHOICE.as_dict()}
    values["choice"] |= changes
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"null", b"[]", b"5", b'{"key": {}}', b"[" * 100_000,
        _changed(settings=None), _changed(settings={}), _changed(settings=CpuSettings().as_dict() | {"graph": ""}),
        _changed(gain="much"), _changed(int8=5), _changed(int8={}), _changed(gain=None),
    ],
    ids=range(15),
)  # fmt: skip
def test_a_damaged_file_costs_a_line(content: bytes) -> None:
    KEY.path.parent.mkdir(parents=True)
    KEY.path.write_bytes(content)
    kept, complaint = cache.load(KEY)
    assert kept is None
    assert complaint.startswith(f"{KEY.path}: ")
    assert cache.store(KEY, CHOICE) == ""
    assert cache.load(KEY) == (CHOICE, "")


def test_a_file_that_cannot_be_read_costs_a_line() -> None:
    KEY.path.mkdir(parents=True)
    assert cache.load(KEY) == (None, f"{KEY.path}: cannot be read: is a directory")


def test_a_cache_that_cannot_be_written_costs_a_line(own_cache: Path) -> None:
    own_cache.write_text("a file where a folder should be")
    assert cache.load(KEY) == (None, "")
    complaint = cache.store(KEY, CHOICE)
    assert complaint == f"{KEY.path}: cannot be written: not a directory; the next run measures again"
    assert not cache.forget(KEY)
    with cache.one_at_a_time(KEY, at_most_seconds=1):
        pass


def test_forgetting() -> None:
    cache.store(KEY, CHOICE)
    assert cache.forget(KEY)
    assert not cache.forget(KEY)
    assert cache.load(KEY) == (None, "")


def test_the_folder_is_the_systems_unless_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(cache.ENVIRONMENT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.cache_folder() == tmp_path / "geoinfer"
    assert not (tmp_path / "geoinfer").exists()


CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9354
stepping\t: 1
flags\t\t: {flags}

processor\t: 1
model name\t: not looked at
"""


def _with_cpuinfo(monkeypatch: pytest.MonkeyPatch, text: str | None) -> CacheKey:
    real = builtins.open

    def opened(name, *arguments, **named):
        if name != "/proc/cpuinfo":
            return real(name, *arguments, **named)
        if text is None:
            raise FileNotFoundError(name)
        return io.StringIO(text)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        return CacheKey.here("a" * 64)


def test_a_processor_is_its_name_and_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    one = _with_cpuinfo(monkeypatch, CPUINFO.format(flags="fpu avx2 avx512f"))
    assert "AMD EPYC 9354, 25, 17, 1" in one.processor
    assert one == _with_cpuinfo(monkeypatch, CPUINFO.format(flags="avx512f fpu avx2"))
    assert one != _with_cpuinfo(monkeypatch, CPUINFO.format(flags="fpu avx2"))
    assert one != _with_cpuinfo(monkeypatch, CPUINFO.format(flags="fpu avx2 avx512f").replace("9354", "9754"))
    arm = _with_cpuinfo(monkeypatch, "processor: 0\nFeatures: fp asimd\nCPU implementer: 0x41\nCPU part: 0xd40\n")
    assert "0x41, 0xd40" in arm.processor
    assert arm != _with_cpuinfo(monkeypatch, None)


def test_the_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    here = CacheKey.here("a" * 64)
    assert here.cores == len(os.sched_getaffinity(0))
    monkeypatch.setattr(cache, "available_cores", lambda: here.cores + 1)
    assert CacheKey.here("a" * 64).path != here.path


def test_one_measures_at_a_time_and_who_waits_finds_what_was_kept() -> None:
    found = []

    def second() -> None:
        with cache.one_at_a_time(KEY, at_most_seconds=30):
            found.append(cache.load(KEY)[0])

    with cache.one_at_a_time(KEY, at_most_seconds=30):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        assert found == []
        cache.store(KEY, CHOICE)
    thread.join(30)
    assert found == [CHOICE]
    assert [path.suffix for path in KEY.path.parent.iterdir()] == [".json"]


def test_who_waits_too_long_goes_on() -> None:
    with cache.one_at_a_time(KEY, at_most_seconds=30):
        began = time.monotonic()
        done = threading.Event()

        def second() -> None:
            with cache.one_at_a_time(KEY, at_most_seconds=0.2):
                done.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert done.wait(30)
        assert time.monotonic() - began >= 0.2
        thread.join()


def test_a_process_that_dies_holds_nothing() -> None:
    code = f"""
import os, signal
from geoinfer.self_tuning import cache
key = cache.CacheKey(**{KEY.as_dict()!r})
with cache.one_at_a_time(key, at_most_seconds=1):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    began = time.monotonic()
    with cache.one_at_a_time(KEY, at_most_seconds=30):
        assert time.monotonic() - began < 10
