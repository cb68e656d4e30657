from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from geoinfer.errors import OutputError
from trainer.data.examples import Examples, make_examples
from trainer.data.split_map import draw_split_map

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

BLUE, ORANGE, RED = (0x5B, 0x7C, 0x99), (0xF2, 0x8E, 0x1C), (0xD6, 0x27, 0x28)


def points(coordinates: list[list[float]] | np.ndarray, splits: list[int] | np.ndarray) -> Examples:
    n = len(splits)
    return make_examples(
        [str(i) for i in range(n)], [b""] * n, coordinates, splits=splits, leaf_cells=np.zeros(n, np.uint64)
    )


def where(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    """(m, 2) rows and columns of the pixels of a colour, below the legend."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    found = np.argwhere(np.abs(pixels - colour).max(axis=-1) < 12)
    return found[found[:, 0] > 70]


def test_each_split_is_where_its_photos_are(tmp_path: Path) -> None:
    # Berlin trains, Sydney validates, Lima tests: right and left, above and below on a map of the world.
    draw_split_map(points([[52.5, 13.4], [-33.9, 151.2], [-12.0, -77.0]], [0, 1, 2]), tmp_path / "map.png")
    train, validation, test = (where(tmp_path / "map.png", colour).mean(axis=0) for colour in (BLUE, ORANGE, RED))
    assert test[1] < train[1] < validation[1]
    assert train[0] < test[0] < validation[0]
    # The scale is the same everywhere: degrees per pixel from two points give the third.
    scale = (train[1] - test[1]) / (13.4 + 77.0)
    assert validation[1] - train[1] == pytest.approx((151.2 - 13.4) * scale, abs=2)
    assert test[0] - train[0] == pytest.approx((52.5 + 12.0) * scale, abs=2)


def test_many_photos_are_thinned_out(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    n = 300_000
    coordinates = np.stack([generator.uniform(-50, 70, n), generator.uniform(-170, 170, n)], axis=1)
    draw_split_map(points(coordinates, (generator.random(n) < 0.2).astype(np.int8)), tmp_path / "map.png")
    assert len(where(tmp_path / "map.png", BLUE)) > len(where(tmp_path / "map.png", ORANGE)) > 1000


@pytest.mark.parametrize(
    "coordinates",
    [[], [[0.0, 0.0]], [[90.0, 180.0], [-90.0, -180.0]], [[89.9, 10.0]], [[-89.9, -179.9]], [[10.0, 179.9]] * 3,
     [[10.0, 179.9], [10.0, -179.9]]],
)  # fmt: skip
def test_any_set_has_a_map(tmp_path: Path, coordinates: list[list[float]]) -> None:
    examples = points(np.reshape(coordinates, (-1, 2)), [1] * len(coordinates))
    draw_split_map(examples, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert 1400 < image.width < 1700
        assert 400 < image.height < 1400
    assert (len(where(tmp_path / "map.png", ORANGE)) > 0) == (len(coordinates) > 0)


def test_same_photos_same_bytes(tmp_path: Path) -> None:
    examples = points([[1.0, 2.0], [3.0, 4.0]], [0, 1])
    draw_split_map(examples, tmp_path / "a.png")
    draw_split_map(examples, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_map_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        draw_split_map(points([[1.0, 2.0]], [0]), tmp_path / "none" / "map.png")
