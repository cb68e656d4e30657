"""Room for huge photos: how many at once, in which order, and what becomes of one that does not fit."""

from __future__ import annotations

import io
import threading
import time
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from geoinfer.errors import ImageError
from geoinfer.images.memory_gate import MemoryGate, decode_bytes
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.problems import NOT_ENOUGH_MEMORY

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 1 << 20
GB = 1 << 30
SIZE = Preprocessing(size=224)


class Crowd:
    """Threads that go through a gate and stay inside until they are let go."""

    def __init__(self, gate: MemoryGate) -> None:
        self.gate = gate
        self.inside: list[str] = []
        self.order: list[str] = []
        self.failures: dict[str, ImageError] = {}
        self.leave: dict[str, threading.Event] = {}
        self.threads: dict[str, threading.Thread] = {}

    def come(self, name: str, needed: int) -> None:
        self.leave[name] = threading.Event()
        self.threads[name] = threading.Thread(target=self._stay, args=(name, needed))
        self.threads[name].start()

    def _stay(self, name: str, needed: int) -> None:
        try:
            with self.gate.room(needed):
                self.inside.append(name)
                self.order.append(name)
                assert self.leave[name].wait(30)
                self.inside.remove(name)
        except ImageError as error:
            self.failures[name] = error

    def go(self, *names: str) -> None:
        for name in names:
            self.leave[name].set()
            self.threads[name].join(30)
            assert not self.threads[name].is_alive()


def soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


def test_as_many_as_fit_and_the_others_wait_in_order() -> None:
    crowd = Crowd(MemoryGate(lambda: 4 * GB))  # 3 GB of it may be promised
    for name in "abcd":
        crowd.come(name, GB)
        assert soon(lambda name=name: name in crowd.inside or name == "d")
    crowd.come("small", 1 * MB)
    time.sleep(0.05)
    # The small one would fit by now and waits behind the large one: or that would never have its turn.
    assert crowd.inside == ["a", "b", "c"]
    crowd.go("b")
    assert soon(lambda: "d" in crowd.inside)
    crowd.go("a", "c", "d")
    crowd.go("small")
    assert crowd.order[:4] == ["a", "b", "c", "d"]
    assert crowd.failures == {}


def test_memory_that_others_have_taken_meanwhile_is_seen() -> None:
    free = [4 * GB]
    crowd = Crowd(MemoryGate(lambda: free[0]))
    crowd.come("a", GB)
    assert soon(lambda: crowd.inside == ["a"])
    free[0] = GB
    crowd.come("b", GB)
    time.sleep(0.05)
    assert crowd.inside == ["a"]
    free[0] = 2 * GB  # nobody tells; it looks again
    assert soon(lambda: crowd.inside == ["a", "b"])
    crowd.go("a", "b")


def test_what_does_not_fit_alone_costs_itself() -> None:
    gate = MemoryGate(lambda: 1 * GB, patience_seconds=0.05)
    with (
        pytest.raises(ImageError, match=r"takes about 2\.0 GiB of memory, and 1\.0 GiB are free") as caught,
        gate.room(2 * GB),
    ):
        pass
    assert (caught.value.stage, caught.value.code, caught.value.status) == ("decode", NOT_ENOUGH_MEMORY, "error")
    with gate.room(GB // 2):
        pass


def test_patience_is_spent_once_a_minute() -> None:
    gate = MemoryGate(lambda: 1 * GB, patience_seconds=0.4)
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(ImageError), gate.room(2 * GB):
            pass
        seconds.append(time.monotonic() - started)
    assert seconds[0] >= 0.4
    assert max(seconds[1:]) < 0.4


def test_waiting_ends_when_memory_comes_back() -> None:
    free = [1 * GB]
    crowd = Crowd(MemoryGate(lambda: free[0], patience_seconds=30))
    crowd.come("a", 2 * GB)
    time.sleep(0.05)
    assert crowd.inside == []
    free[0] = 4 * GB
    assert soon(lambda: crowd.inside == ["a"])
    crowd.go("a")


def test_small_photos_pass_on_a_machine_without_any_memory() -> None:
    gate = MemoryGate(lambda: 0, patience_seconds=0)
    with gate.room(10 * MB):
        pass


def test_a_memory_error_within_is_the_photos_own() -> None:
    gate = MemoryGate(lambda: GB)
    with pytest.raises(ImageError, match="more memory than there is") as caught, gate.room(MB):
        raise MemoryError
    assert caught.value.code == NOT_ENOUGH_MEMORY
    with pytest.raises(ZeroDivisionError), gate.room(MB):
        raise ZeroDivisionError
    with gate.room(GB // 2):  # both gave back what they had
        pass


def test_small_photos_ask_the_system_nothing() -> None:
    asked = []
    gate = MemoryGate(lambda: asked.append(1) or 4 * GB)  # type: ignore[func-returns-value]
    for _ in range(1000):
        with gate.room(10 * MB):
            pass
    assert len(asked) == 1


def test_never_more_than_the_share_is_inside_and_nobody_is_forgotten() -> None:
    gate = MemoryGate(lambda: 4 * GB)
    lock = threading.Lock()
    now, most, done = [0], [0], [0]

    def visit(seed: int) -> None:
        for step in range(40):
            needed = (1 + (seed * 7 + step * 13) % 9) * 300 * MB
            with gate.room(needed):
                with lock:
                    now[0] += needed
                    most[0] = max(most[0], now[0])
                time.sleep(0.0005)
                with lock:
                    now[0] -= needed
                    done[0] += 1

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done[0] == 8 * 40
    assert 2 * GB < most[0] <= 3 * GB


def encoded(kind: str, size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, format=kind, **options)
    return stream.getvalue()


def test_jpegs_take_what_their_scale_takes() -> None:
    pixels = 4000 * 3000
    plain = decode_bytes(encoded("jpeg", (4000, 3000)), "jpeg", SIZE)
    progressive = decode_bytes(encoded("jpeg", (4000, 3000), progressive=True, subsampling=0), "jpeg", SIZE)
    print_colours = decode_bytes(encoded("jpeg", (4000, 3000), "CMYK"), "jpeg", SIZE)
    assert plain < 1.5 * pixels  # a quarter by a quarter of it, and some tables
    assert 6 * pixels < progressive - plain < 8 * pixels  # all coefficients, shorts
    assert print_colours > 8 * pixels


def test_a_header_that_lies_large_is_believed() -> None:
    png = bytearray(encoded("png", (8, 8), "RGBA"))
    png[16:24] = (10_000).to_bytes(4, "big") * 2
    assert decode_bytes(bytes(png), "png", SIZE) > 16 * 10_000**2


@pytest.mark.parametrize(("side", "huge"), [(13_377, True), (13_378, False)])
def test_what_the_decoder_refuses_takes_nothing(side: int, huge: bool) -> None:
    png = bytearray(encoded("png", (8, 8)))
    png[16:24] = side.to_bytes(4, "big") * 2
    assert (decode_bytes(bytes(png), "png", SIZE) > 500 * MB) is huge


def test_no_header_no_memory() -> None:
    assert decode_bytes(b"\xff\xd8\xff", "jpeg", SIZE) < 16 * MB
