from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from geoinfer.errors import UsageError
from geoinfer.maps import Window, base, draw_reference_map, map_window
from geoinfer.maps.references import count_squares

if TYPE_CHECKING:
    from pathlib import Path

LAND, SEA = (0xE3, 0xE1, 0xD8), (0xF6, 0xF9, 0xFB)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def coloured(path: Path) -> np.ndarray:
    """(m, 2) rows and columns of the pixels of a strong colour, below the scale: points and squares."""
    picture = pixels(path)
    found = np.argwhere(picture.max(axis=-1) - picture.min(axis=-1) > 60)
    return found[found[:, 0] > 56]


@pytest.mark.parametrize(
    "coordinates",
    [[], [[0.0, 0.0]], [[90.0, 180.0], [-90.0, -180.0]], [[89.9, 10.0]], [[-89.9, -179.9]], [[10.0, 179.9]] * 3,
     [[10.0, 179.9], [10.0, -179.9]], [[-17.0, 180.0]]],
)  # fmt: skip
def test_any_set_has_a_map(tmp_path: Path, coordinates: list[list[float]]) -> None:
    draw_reference_map(np.reshape(np.array(coordinates, np.float64), (-1, 2)), tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert 1400 < image.width < 1700
        assert 400 < image.height < 1400
    assert (len(coloured(tmp_path / "map.png")) > 20) == (len(coordinates) > 0)


def test_points_are_where_they_are_on_the_world(tmp_path: Path) -> None:
    # Each alone, with two invisible neighbours that make the map one of the world: degrees become pixels linearly.
    middles = []
    for place in ([52.5, 13.4], [-33.9, 151.2], [-12.0, -77.0]):
        draw_reference_map(np.array([[0.0, -170.0], [0.0, 0.0], [0.0, 170.0], place]), tmp_path / "map.png")
        draw_reference_map(np.array([[0.0, -170.0], [0.0, 0.0], [0.0, 170.0], [0.0, 0.0]]), tmp_path / "without.png")
        changed = np.argwhere(np.abs(pixels(tmp_path / "map.png") - pixels(tmp_path / "without.png")).max(axis=-1) > 60)
        middles.append(changed[changed[:, 0] < 600].mean(axis=0))
    berlin, sydney, lima = middles
    scale = (berlin[1] - lima[1]) / (13.4 + 77.0)
    assert sydney[1] - berlin[1] == pytest.approx((151.2 - 13.4) * scale, abs=4)
    assert lima[0] - berlin[0] == pytest.approx((52.5 + 12.0) * scale, abs=4)


def test_few_are_points_and_many_are_squares(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    coordinates = np.stack([generator.uniform(-50, 70, 30_000), generator.uniform(-170, 170, 30_000)], axis=1)
    draw_reference_map(coordinates[:500], tmp_path / "few.png")
    draw_reference_map(coordinates, tmp_path / "many.png")
    top = pixels(tmp_path / "few.png")[:50], pixels(tmp_path / "many.png")[:50]
    # Only squares come with a scale above the map.
    assert (top[0] == 255).all()
    assert not (top[1] == 255).all()
    assert len(coloured(tmp_path / "many.png")) > 10 * len(coloured(tmp_path / "few.png"))


def test_squares_of_a_set_across_the_antimeridian(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    longitudes = np.concatenate([generator.uniform(178, 179, 15_000), generator.uniform(-178, -177, 15_000)])
    coordinates = np.stack([generator.uniform(-18, -16, 30_000), longitudes], axis=1)
    draw_reference_map(coordinates, tmp_path / "map.png")
    columns = np.unique(coloured(tmp_path / "map.png")[:, 1])
    # Two blocks a degree wide, three degrees from the left of one to the left of the other.
    gap = np.argmax(np.diff(columns))
    first, second = columns[: gap + 1], columns[gap + 1 :]
    degree = len(first)
    assert len(second) == pytest.approx(degree, rel=0.1)
    assert second[0] - first[0] == pytest.approx(4 * degree, rel=0.1)


def test_counts_are_those_of_a_loop() -> None:
    points = np.random.default_rng(2).uniform([-60, -180], [85, 180], (500, 2))
    window = Window(-60.0, -180.0, 85.0, 180.0)
    counts = count_squares(window, points)
    rows, columns = counts.shape
    expected = np.zeros((rows, columns), int)
    for latitude, longitude in points.tolist():
        expected[int((latitude + 60) / 145 * rows), int((longitude + 180) / 360 * columns)] += 1
    assert np.array_equal(counts, expected)
    assert columns == 360
    # A square looks square.
    assert 145 / rows == pytest.approx(1.0, rel=0.02)


def test_every_point_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_BLOCK", 100)
    generator = np.random.default_rng(3)
    for low, high in (([-90, -180], [90, 180]), ([80, -180], [90, 180]), ([-18, 175], [-16, 180])):
        points = generator.uniform(low, high, (1234, 2))
        points[:2] = [[high[0], high[1]], [low[0], low[1]]]
        assert count_squares(map_window(points), points).sum() == 1234


def test_an_svg_is_xml_and_names_no_day(tmp_path: Path) -> None:
    draw_reference_map(np.array([[1.0, 2.0], [3.0, 4.0]]), tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    assert ET.fromstring(text).tag.endswith("svg")
    assert "<dc:date>" not in text


@pytest.mark.parametrize("name", ["map.png", "map.svg"])
def test_same_references_same_bytes(tmp_path: Path, name: str) -> None:
    written = []
    for _ in range(2):
        draw_reference_map(np.array([[1.0, 2.0], [3.0, 4.0]]), tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_bad_coordinates_and_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1 "):
        draw_reference_map(np.array([[0.0, 0.0], [91.0, 0.0]]), tmp_path / "map.png")
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        draw_reference_map(np.array([[0.0, 0.0]]), tmp_path / "map.gif")
    assert not [*tmp_path.iterdir()]
