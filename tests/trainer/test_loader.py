"""The loader: the runtime's own pixels, in order, a bounded way ahead, whatever single photos do."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch")

from geoinfer.errors import ImageError
from geoinfer.images import Preprocessing, load_pixels
from trainer.data.examples import make_examples, open_examples
from trainer.data.loader import BatchLoader

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trainer.tiny_runs import PhotoSet

pytestmark = pytest.mark.slow

SMALL = Preprocessing(size=32)


def decoding_threads() -> int:
    return sum(thread.name.startswith("decode") for thread in threading.enumerate())


class Slow:
    """Examples whose photos are their own row number, and that count."""

    def __init__(self, fails: Any = (), seconds: float = 0.0) -> None:
        self.ids = [f"{i}" for i in range(10_000)]
        self.asked: list[int] = []
        self.fails = fails
        self.seconds = seconds

    def load_pixels(self, row: int, preprocessing: Preprocessing) -> np.ndarray:
        self.asked.append(row)
        time.sleep(self.seconds)
        if row in self.fails:
            raise ImageError("decode", "truncated", f"photo {row}")
        return np.full((preprocessing.size, preprocessing.size, 3), row % 251, np.uint8)


def batches_of(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(start, start + size) for start in range(0, count * size, size)]


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("size", [96, 224])
def test_pixels_are_those_of_prediction(shared_photos: Path, resize: Any, size: int) -> None:
    paths = sorted(path for path in shared_photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[::12]
    assert len(paths) > 20
    preprocessing = Preprocessing(size=size, resize=resize)
    examples = make_examples(
        [str(i) for i in range(len(paths))], [bytes(path) for path in paths], np.zeros((len(paths), 2))
    )
    rows = np.random.default_rng(0).permutation(len(paths))
    with BatchLoader(examples, preprocessing, workers=3) as loader:
        seen = 0
        for batch in loader.batches(rows[i : i + 7] for i in range(0, len(rows), 7)):
            assert batch.valid.all()
            for row, pixels in zip(batch.rows, batch.pixels, strict=True):
                np.testing.assert_array_equal(pixels.numpy(), load_pixels(bytes(paths[row]), preprocessing))
                seen += 1
    assert seen == len(paths)


def test_batches_come_in_order(photo_set: PhotoSet) -> None:
    rows = batches_of(9, 5)
    with BatchLoader(Slow(seconds=0.001), SMALL, workers=4) as loader:  # type: ignore[arg-type]
        for wanted, batch in zip(rows, loader.batches(rows), strict=True):
            np.testing.assert_array_equal(batch.rows, wanted)
            assert batch.pixels[:, 0, 0, 0].tolist() == [row % 251 for row in wanted]
            assert batch.waited_seconds >= 0
            assert batch.bad == ()


@pytest.mark.parametrize(("size", "most"), [(1, 64), (16, 64), (100, 200)])
def test_it_reads_no_further_ahead_than_it_must(size: int, most: int) -> None:
    examples = Slow()
    with BatchLoader(examples, SMALL, workers=2) as loader:  # type: ignore[arg-type]
        batches = loader.batches(batches_of(50, size))
        for taken in range(1, 4):
            next(batches)
            time.sleep(0.05)
            assert len(examples.asked) <= taken * size + most
            assert len(examples.asked) > taken * size


def test_bad_photos_leave_their_rows_empty(photo_set: PhotoSet) -> None:
    photo_set.spoil("p003")
    (photo_set.photos / "p007.jpg").unlink()
    (photo_set.photos / "p011.jpg").write_bytes(b"")
    (photo_set.photos / "p012.jpg").write_text("not a picture")
    examples = open_examples(photo_set.prepared)
    with BatchLoader(examples, SMALL, workers=2) as loader:
        (batch,) = loader.batches([np.arange(14)])
    assert np.flatnonzero(~batch.valid.numpy()).tolist() == [3, 7, 11, 12]
    assert not batch.pixels[~batch.valid].any()
    assert all(pixels.any() for pixels in batch.pixels[batch.valid])
    assert [(photo.id, photo.code) for photo in batch.bad] == [
        ("p003", "truncated"), ("p007", "missing"), ("p011", "empty_file"), ("p012", "not_an_image"),
    ]  # fmt: skip
    assert all(photo.message for photo in batch.bad)


def test_filling_rows_are_neither_read_nor_bad() -> None:
    examples = Slow()
    with BatchLoader(examples, SMALL, workers=2) as loader:  # type: ignore[arg-type]
        (batch,) = loader.batches([np.array([5, -1, -1])])
    assert batch.valid.tolist() == [True, False, False]
    assert batch.bad == ()
    assert examples.asked == [5]


def test_no_rows_are_no_batches() -> None:
    with BatchLoader(Slow(), SMALL, workers=1) as loader:  # type: ignore[arg-type]
        assert list(loader.batches([])) == []


def test_a_batch_that_is_bad_throughout_does_not_stop_the_others() -> None:
    with BatchLoader(Slow(fails=range(5, 10)), SMALL, workers=2) as loader:  # type: ignore[arg-type]
        batches = list(loader.batches(batches_of(3, 5)))
    assert [int(batch.valid.sum()) for batch in batches] == [5, 0, 5]
    assert [photo.id for photo in batches[1].bad] == ["5", "6", "7", "8", "9"]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_no_thread_is_left_when_it_is_closed_early(taken: int) -> None:
    before = decoding_threads()
    examples = Slow(seconds=0.002)
    with BatchLoader(examples, SMALL, workers=3) as loader:  # type: ignore[arg-type]
        batches = loader.batches(batches_of(1000, 8))
        for _ in range(taken):
            next(batches)
    assert decoding_threads() == before
    assert len(examples.asked) < 200
    asked = len(examples.asked)
    time.sleep(0.05)
    assert len(examples.asked) == asked


def test_a_fault_of_the_program_is_raised_and_leaves_no_thread() -> None:
    class Broken(Slow):
        def load_pixels(self, row: int, preprocessing: Preprocessing) -> np.ndarray:
            if row == 9:
                raise ZeroDivisionError
            return super().load_pixels(row, preprocessing)

    before = decoding_threads()
    with BatchLoader(Broken(), SMALL, workers=3) as loader, pytest.raises(ZeroDivisionError):  # type: ignore[arg-type]
        list(loader.batches(batches_of(20, 8)))
    assert decoding_threads() == before


def test_two_streams_at_once() -> None:
    with BatchLoader(Slow(), SMALL, workers=2) as loader:  # type: ignore[arg-type]
        one, other = loader.batches(batches_of(4, 6)), loader.batches([rows + 100 for rows in batches_of(4, 6)])
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first.rows + 100, second.rows)
