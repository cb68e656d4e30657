"""A fake embedder for the pipeline's own tests, and folders of photos and driver processes for the runs."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
from PIL import Image

from geoinfer.answer import Answer
from geoinfer.backends.base import EmbedderIdentity
from geoinfer.errors import ImageError
from geoinfer.geolocator import Geolocator
from geoinfer.images import Preprocessing
from geoinfer.index import References, open_index, write_index
from geoinfer.places import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

COMMAND = (sys.executable, "-m", "geoinfer")
"""`geoinfer` itself, as a process of its own."""


class FakeEmbedder:
    """Answers row i with a code of the picture in row i, so that a mix-up shows. `size` is kept tiny."""

    def __init__(self, *, device: str = "cpu", size: int = 2) -> None:
        self.identity = EmbedderIdentity("fake", 3, Preprocessing(size=size))
        self.device, self.device_reason, self.fingerprint = device, "fake", "0" * 64
        self.best_batch, self.calls_at_once = None, 64 if device == "cpu" else 1
        self.pins_threads = False
        self.batches: list[int] = []
        self.concurrent = self.most_concurrent = 0
        self.lock = threading.Lock()
        self.hook: Callable[[np.ndarray], None] = lambda pixels: None

    @property
    def dim(self) -> int:
        return 3

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        with self.lock:
            self.batches.append(len(pixels))
            self.concurrent += 1
            self.most_concurrent = max(self.most_concurrent, self.concurrent)
        try:
            self.hook(pixels)
            result = pixels[:, 0, 0, :].astype(np.float32)
            result[pixels[:, 1, 1, 0] == 255] = np.nan  # see `paint`
            return result
        finally:
            with self.lock:
                self.concurrent -= 1

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...


def code_of(number: int) -> tuple[int, int, int]:
    """A colour that no other number has."""
    return number % 256, number // 256 % 256, number // 65536


def paint(pixels: np.ndarray, number: int, *, nan: bool = False) -> None:
    pixels[...] = 0
    pixels[0, 0] = code_of(number)
    pixels[1, 1, 0] = 255 if nan else 0


@pytest.fixture
def kit() -> ModuleType:
    """What this file defines: test files have no names to import it by."""
    return sys.modules[__name__]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every test of this folder leaves as many pipeline threads as it found: none."""
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    assert [thread.name for thread in left if thread.name.startswith("geoinfer-")] == []


def fill_input(folder: Path, number: int, examples: list[Path]) -> None:
    if number % 8 == 3:
        (folder / f"{number:03d}-broken.jpg").write_bytes(examples[0].read_bytes()[: 900 + number])
    elif number % 16 == 7:
        (folder / f"{number:03d}-not-an-image.jpg").write_text("no photo, only words")
    elif number % 16 == 13:
        (folder / f"{number:03d}-camera.nef").write_bytes(b"II*\0raw")
    else:
        (folder / f"{number:03d}.jpg").symlink_to(examples[number % 10])


def driver(folder: Path, *, rows: int = 32, seconds: float = 1e9, prelude: str = "") -> tuple[str, ...]:
    """The real command with small parts, so that forty photos are several of them."""
    path = folder / "driver.py"
    path.write_text(
        "import geoinfer.batch.predict as predict\n"
        f"predict._COMMIT_ROWS, predict._COMMIT_SECONDS, predict._BLOCK = {rows}, {seconds}, {min(rows, 8)}\n"
        f"{prelude}\n"
        "from geoinfer.cli import main\n"
        "main()\n"
    )
    return (sys.executable, str(path))


def run(
    command: tuple[str, ...], *arguments: object, cwd: Path | None = None, timeout: float = 120, **more: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, **more
    )


def start(command: tuple[str, ...], *arguments: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], limit: float = 60) -> bool:
    """Waits until `condition` holds (True) or the process has ended (False)."""
    end = time.monotonic() + limit
    while not condition():
        if process.poll() is not None:
            return bool(condition())
        if time.monotonic() > end:
            process.kill()
            raise AssertionError("it never came to that")
        time.sleep(0.002)
    return True


def parts_in(output: Path) -> int:
    """Parts that the ledger of an unfinished run has entered."""
    try:
        return (output.with_name(output.name + ".run") / "ledger.jsonl").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def table(data: bytes) -> list[dict[str, str]]:
    """A CSV by the csv module alone."""
    return list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline="")))


def failure(message: str = "it is broken", **more: Any) -> ImageError:
    return ImageError("decode", "broken", message, **more)


class ColourEmbedder(FakeEmbedder):
    """The direction of a picture's mean colour: with `colour_photos`, each photo has a place of its own."""

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        super().embed(pixels)
        vectors = pixels.mean(axis=(1, 2)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def colour_of(number: int) -> tuple[int, int, int]:
    return 12 + number % 10 * 24, 12 + number // 10 * 24, 130


def place_of(number: int) -> tuple[float, float]:
    """Latitude and longitude of the photo of this colour."""
    return -20 + number * 0.5, 150.25 - number


def colour_photo(path: bytes | Path, number: int) -> None:
    with open(path, "wb") as file:
        Image.new("RGB", (5, 4), colour_of(number)).save(file, "PNG")


@pytest.fixture(scope="session")
def colour_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 references, one of each colour."""
    folder = tmp_path_factory.mktemp("colours") / "index"
    colours = np.array([colour_of(number) for number in range(100)], np.float32)
    hashes = np.random.default_rng(1).integers(0, 256, (100, 32), np.uint8)
    references = References(
        ids=[f"colour {number}" for number in range(100)],
        coordinates=np.array([place_of(number) for number in range(100)]),
        sources=[""] * 100,
        attributions=[""] * 100,
        content_sha256=hashes,
        perceptual_hashes=hashes,
    )
    vectors = colours / np.linalg.norm(colours, axis=1, keepdims=True)
    write_index(folder, vectors, references, ColourEmbedder(size=4).identity)
    return folder


@pytest.fixture
def colour_locator(colour_index: Path) -> Geolocator:
    return Geolocator(ColourEmbedder(size=4), open_index(colour_index), answer=Answer(1, "top1"))


class Cities:
    """Names places without a list of them."""

    def names(self, coordinates: np.ndarray) -> list[Place]:
        return [Place("Land", "LA", "Asia", "", f"{south:.1f}", east) for south, east in coordinates.tolist()]


class Quiet:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.done = self.failed = 0
        self._lock = threading.Lock()

    def started(self, resumed: int, failed: int) -> None:
        self.events.append(("started", resumed, failed))

    def progressed(self, inputs: int, failed: int) -> None:
        with self._lock:
            self.done += inputs
            self.failed += failed

    def writing(self) -> None:
        self.events.append(("writing",))

    def say(self, line: str) -> None:
        self.events.append(("say", line))

    def step(self, name: str, done: float) -> None:
        self.events.append(("step", name, done))
