from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from geoinfer.errors import ImageError
from geoinfer.images import Preprocessing, decode_pixels, read_image_file
from geoinfer.images.isolated import ISOLATED_KINDS, DecodePool

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("pi_heif")

SMALL = Preprocessing(size=32)


def noise(side: int) -> bytes:
    """A JPEG 2000 that takes a while."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG2000")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def quick() -> bytes:
    return noise(64)


@pytest.fixture(scope="module")
def slow() -> bytes:
    return noise(1500)


def slot(preprocessing: Preprocessing = SMALL) -> np.ndarray:
    return np.full((preprocessing.size, preprocessing.size, 3), 7, np.uint8)


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def outcome(task: Callable[[], object]) -> object:
    """What a task returns, or what its error says."""
    try:
        return task()
    except ImageError as error:
        return error.stage, error.code, str(error), error.hint, error.size_bytes


def failure(pool: DecodePool, data: bytes, kind: str = "jpeg2000") -> ImageError:
    with pytest.raises(ImageError) as caught:
        pool.load(data, kind, SMALL, slot())
    assert caught.value.size_bytes == len(data)
    return caught.value


def test_shared_photos_come_out_as_in_this_process(shared_formats: Path) -> None:
    seen = set()
    with DecodePool(1) as pool:
        for path in sorted(shared_formats.iterdir()):
            if path.is_dir():
                continue
            data, kind = read_image_file(bytes(path))
            if kind not in ISOLATED_KINDS:
                continue
            preprocessing = Preprocessing(48, "squash")
            expected = outcome(lambda: decode_pixels(data, kind, preprocessing))  # noqa: B023
            out = slot(preprocessing)
            found = outcome(lambda: pool.load(data, kind, preprocessing, out))  # noqa: B023
            if found is True:
                np.testing.assert_array_equal(out, expected)
                seen.add(kind)
            else:
                assert found == expected
                seen.add("error")
        assert len(pool.pids) == 1
    assert seen >= {"heif", "jpeg2000"}


def test_damaged_photo_costs_no_process(quick: bytes) -> None:
    with DecodePool(1) as pool:
        pool.load(quick, "jpeg2000", SMALL, slot())
        before = pool.pids
        assert failure(pool, quick[: len(quick) // 2]).code == "truncated"
        assert failure(pool, b"\xff\x4f\xff\x51" + b"\0" * 90).stage == "decode"
        out = slot()
        pool.load(quick, "jpeg2000", SMALL, out)
        np.testing.assert_array_equal(out, decode_pixels(quick, "jpeg2000", SMALL))
        assert pool.pids == before


def test_nothing_is_started_before_the_first_photo() -> None:
    with DecodePool(4) as pool:
        assert pool.pids == []


def test_as_many_processes_as_asked_for_serve_more_threads(quick: bytes) -> None:
    expected = decode_pixels(quick, "jpeg2000", SMALL)

    def load(_: int) -> np.ndarray:
        out = slot()
        assert pool.load(quick, "jpeg2000", SMALL, out)
        assert len(pool.pids) <= 2
        return out

    with DecodePool(2) as pool, ThreadPoolExecutor(6) as threads:
        for out in threads.map(load, range(40)):
            np.testing.assert_array_equal(out, expected)
        pids = pool.pids
        assert len(pids) == 2
    until(lambda: not any(map(is_there, pids)))


def test_process_killed_at_a_photo_is_replaced_and_the_photo_done(slow: bytes) -> None:
    out = slot()
    with DecodePool(1) as pool, ThreadPoolExecutor(1) as threads:
        pool.load(noise(32), "jpeg2000", SMALL, slot())
        (first,) = pool.pids
        loading = threads.submit(pool.load, slow, "jpeg2000", SMALL, out)
        time.sleep(0.05)
        os.kill(first, signal.SIGKILL)
        assert loading.result(60)
        assert pool.pids != [first]
    np.testing.assert_array_equal(out, decode_pixels(slow, "jpeg2000", SMALL))


def test_idle_process_that_was_killed_costs_no_photo(quick: bytes) -> None:
    with DecodePool(1) as pool:
        for _ in range(4):
            out = slot()
            assert pool.load(quick, "jpeg2000", SMALL, out)
            (pid,) = pool.pids
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not is_there(pid))  # type: ignore[misc]


def test_photo_that_ends_every_process_is_an_error_of_its_own(slow: bytes, quick: bytes) -> None:
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        while not done.is_set():
            for pid in pool.pids:
                if pid not in killed:
                    time.sleep(0.02)
                    os.kill(pid, signal.SIGSEGV)
                    killed.append(pid)
            time.sleep(0.001)

    with DecodePool(1) as pool:
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            caught = failure(pool, slow)
        finally:
            done.set()
            killer.join()
        assert (caught.stage, caught.code) == ("decode", "decoder_died")
        assert "SIGSEGV" in str(caught)
        assert len(killed) == 2
        assert pool.load(quick, "jpeg2000", SMALL, slot())


def test_photo_that_takes_too_much_processor_time_fails(slow: bytes, quick: bytes) -> None:
    with DecodePool(1, cpu_seconds=0.1) as pool:
        caught = failure(pool, slow)
        assert caught.code == "decoder_died"
        assert "0.1 seconds of processor time" in str(caught)
        assert pool.load(quick, "jpeg2000", SMALL, slot())


def test_decoder_that_waits_for_ever_fails(quick: bytes) -> None:
    with DecodePool(1, seconds=2.0) as pool:
        pool.load(quick, "jpeg2000", SMALL, slot())
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        caught = failure(pool, quick)
        assert caught.code == "decoder_died"
        assert "2 seconds" in str(caught)
        until(lambda: not is_there(pid))
        assert pool.load(quick, "jpeg2000", SMALL, slot())


def test_idle_processes_are_ended(quick: bytes) -> None:
    with DecodePool(1, idle_seconds=0.0) as pool:
        pool.load(quick, "jpeg2000", SMALL, slot())
        (pid,) = pool.pids
        pool.end_idle()
        assert pool.pids == []
        until(lambda: not is_there(pid))
        assert pool.load(quick, "jpeg2000", SMALL, slot())
    with DecodePool(1) as pool:
        pool.load(quick, "jpeg2000", SMALL, slot())
        pool.end_idle()
        assert len(pool.pids) == 1


@pytest.mark.parametrize("executable", ["", "/nowhere/python", "/bin/false"])
def test_where_no_process_starts_it_says_so(executable: str, quick: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    out = slot()
    with DecodePool(1) as pool:
        for _ in range(5):
            assert not pool.load(quick, "jpeg2000", SMALL, out)
        monkeypatch.undo()
        # After three failures in a row no more are tried.
        assert not pool.load(quick, "jpeg2000", SMALL, out)
    assert (out == 7).all()


def test_closing_ends_a_photo_at_work(slow: bytes) -> None:
    pool = DecodePool(1)
    with ThreadPoolExecutor(1) as threads:
        pool.load(noise(32), "jpeg2000", SMALL, slot())
        (pid,) = pool.pids
        loading = threads.submit(pool.load, slow, "jpeg2000", SMALL, slot())
        time.sleep(0.05)
        pool.close()
        with pytest.raises(ImageError):
            loading.result(20)
    assert not is_there(pid)
    assert not pool.load(slow, "jpeg2000", SMALL, slot())


PARENT = """
import sys, threading
from geoinfer.images import Preprocessing
from geoinfer.images.isolated import DecodePool
import numpy as np
data = open(sys.argv[1], "rb").read()
pool = DecodePool(2)
def load():
    while True:
        pool.load(data, "jpeg2000", Preprocessing(8), np.empty((8, 8, 3), np.uint8))
for _ in range(2):
    threading.Thread(target=load, daemon=True).start()
while len(pool.pids) < 2:
    pass
print(*pool.pids, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_parent_is_killed(number: int, slow: bytes, tmp_path: Path) -> None:
    photo = tmp_path / "slow.jp2"
    photo.write_bytes(slow)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(photo)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_there, pids))
        parent.send_signal(number)
        parent.wait(20)
        until(lambda: not any(map(is_there, pids)))
    if os.path.isdir("/dev/shm"):
        assert not [name for name in os.listdir("/dev/shm") if "geoinfer" in name]


def test_process_uses_every_core_though_the_thread_that_starts_it_may_not(quick: bytes) -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system ties no threads to cores")
    cores = os.sched_getaffinity(0)

    def load() -> None:
        os.sched_setaffinity(0, {min(cores)})  # of this thread alone
        pool.load(quick, "jpeg2000", SMALL, slot())

    with DecodePool(1) as pool:
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        assert os.sched_getaffinity(pool.pids[0]) == cores
