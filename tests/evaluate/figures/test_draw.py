"""The pictures of an evaluation as files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from geoinfer.errors import MissingPackageError, OutputError, UsageError
from geoinfer.evaluate.bands import BANDS
from geoinfer.evaluate.figures import draw_figures
from geoinfer.evaluate.figures.cumulative import cumulative
from geoinfer.maps import save_map

if TYPE_CHECKING:
    from pathlib import Path

NAN = np.nan
EUROPE, KANSAS, PEKING = [48.9, 2.3], [38.5, -98.0], [39.9, 116.4]


def test_names_and_files(tmp_path: Path, make_evaluation) -> None:
    evaluation = make_evaluation(
        [EUROPE, KANSAS, PEKING, EUROPE], [KANSAS, KANSAS, EUROPE, [NAN, NAN]],
        scores=[0.1, 0.9, 0.3, NAN], countries=["FR", "US", "CN", "FR"],
        sets={"Europe": [1, 0, 0, 1], "North America": [0, 1, 0, 0], "Asia": [0, 0, 1, 0], "source=x": [1, 1, 0, 0]},
    )  # fmt: skip
    drawn = draw_figures(evaluation, tmp_path / "maps")
    names = [figure.name for figure in drawn]
    expected = ["errors_world", "errors_europe", "errors_north_america", "errors_asia", "arrows_world", "cumulative",
                "error_by_score"]  # fmt: skip
    assert [name for name in names if name != "confusion"] == expected
    for figure in drawn:
        assert [path.name for path in figure.paths] == [f"{figure.name}.png", f"{figure.name}.svg"]
        with Image.open(figure.paths[0]) as image:
            image.verify()
    assert len(list((tmp_path / "maps").iterdir())) == 2 * len(drawn)


def test_the_few_stand_out_among_the_many(tmp_path: Path, make_evaluation) -> None:
    """A PNG of fewer colours keeps those of single points."""
    generator = np.random.default_rng(0)
    truth = np.column_stack([generator.uniform(-50, 70, 2000), generator.uniform(-180, 180, 2000)])
    truth[:3] = [[0, -140], [0, -130], [0, -120]]
    predicted = truth.copy()
    predicted[:3, 1] += [9, 18, 100]
    (world, *_) = draw_figures(make_evaluation(truth, predicted), tmp_path, formats=[".png"], arrows=0)
    pixels = np.asarray(Image.open(world.paths[0]).convert("RGB")).astype(int)
    pixels = pixels[: len(pixels) - 70]  # the legend has them, too
    for band in BANDS:
        colour = [int(band.colour_light[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - colour).max(axis=-1) < 9).sum() >= 3


def test_svgs_are_xml_and_need_no_network(tmp_path: Path, make_random) -> None:
    drawn = draw_figures(make_random(3500), tmp_path, formats=[".svg"])
    for figure in drawn:
        (path,) = figure.paths
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert root.tag.endswith("svg")
        assert "<dc:date>" not in text
        for element in root.iter():
            assert element.tag.rpartition("}")[2] not in ("script", "foreignObject", "style@import")
            for name, value in element.attrib.items():
                if name.rpartition("}")[2] in ("href", "src"):
                    assert value.startswith(("#", "data:image/png;base64,"))
                assert "url(http" not in value


def test_svgs_do_not_grow_with_the_photos(tmp_path: Path, make_random) -> None:
    sizes = []
    for count in (3_100, 40_000):
        evaluation = make_random(count)
        evaluation.outcomes.scores[:] = NAN
        drawn = draw_figures(evaluation, tmp_path / str(count), formats=[".svg"], arrows=0)
        assert [figure.name for figure in drawn][:2] == ["errors_world", "cumulative"]
        sizes.append([figure.paths[0].stat().st_size for figure in drawn[:2]])
    for small, large in zip(*sizes, strict=True):
        assert large < small + 1_500_000  # the picture within it is fuller


def test_same_evaluation_same_bytes(tmp_path: Path, make_random) -> None:
    written = [
        {path.name: path.read_bytes() for figure in draw_figures(make_random(60), tmp_path / name)
         for path in figure.paths}
        for name in ("one", "two")
    ]  # fmt: skip
    assert written[0] == written[1]


def test_what_makes_no_sense_is_left_out(tmp_path: Path, make_evaluation) -> None:
    unanswered = make_evaluation([EUROPE, PEKING], [[NAN, NAN]] * 2, sets={"Asia": [0, 1]})
    assert [figure.name for figure in draw_figures(unanswered, tmp_path, formats=[".png"])] == [
        "errors_world", "errors_asia",
    ]  # fmt: skip
    exact = make_evaluation([EUROPE], [EUROPE], scores=[0.5], countries=["France"])
    assert [figure.name for figure in draw_figures(exact, tmp_path, formats=[".png"])] == ["errors_world", "cumulative"]
    # A photo of Europe by its label that is nowhere near: nothing would be on the map.
    far = make_evaluation([[64.0, 177.0]], [PEKING], sets={"Europe": [1]})
    assert "errors_europe" not in [figure.name for figure in draw_figures(far, tmp_path, formats=[".png"])]
    assert draw_figures(make_evaluation([], []), tmp_path / "none") == []


@pytest.mark.parametrize(
    "name", ["_hidden", "$x^2", "$", "a\nb\tc", "国の写真 ไทย", "x" * 500, "", "\\frac{1}", "Åsa % & <b>", "\ud800"]
)
def test_any_name_can_be_drawn(tmp_path: Path, make_evaluation, name: str) -> None:
    evaluation = make_evaluation([EUROPE, PEKING], [PEKING, PEKING], scores=[1, 2], name=name, sets={name: [1, 1]})
    save_map(cumulative(evaluation), tmp_path / "plot.svg")
    assert ET.parse(tmp_path / "plot.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_errors(tmp_path: Path, make_evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = make_evaluation([EUROPE], [PEKING])
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        draw_figures(evaluation, tmp_path, formats=[".gif"])
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: cannot be written"):
        draw_figures(evaluation, tmp_path / "file")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(MissingPackageError, match="matplotlib") as caught:
        draw_figures(evaluation, tmp_path)
    assert "[report]" in caught.value.hint


def test_nothing_is_drawn_by_pyplot(tmp_path: Path, make_evaluation) -> None:
    before = "matplotlib.pyplot" in sys.modules
    draw_figures(make_evaluation([EUROPE, KANSAS], [PEKING, EUROPE], scores=[1, 2]), tmp_path, formats=[".png"])
    assert ("matplotlib.pyplot" in sys.modules) == before
