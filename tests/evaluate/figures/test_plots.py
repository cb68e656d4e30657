"""Distributions, scores and countries: the numbers that are drawn, against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

from geoinfer.evaluate.figures.by_score import error_by_score, running_median
from geoinfer.evaluate.figures.confusion import MOST_COUNTRIES, OTHER, confuse, confusion_figure
from geoinfer.evaluate.figures.cumulative import MOST_SETS, MOST_STEPS, cumulative, steps
from geoinfer.evaluate.figures.style import plain
from geoinfer.evaluate.measure import measure
from geoinfer.evaluate.outcomes import Run
from geoinfer.metrics import RADII_KM, convention

NAN = np.nan


def lines(figure: Any, gid: str) -> list[Any]:
    return [line for line in figure.axes[0].get_lines() if line.get_gid() == gid]


@settings(deadline=None)
@given(st.lists(st.floats(0, 20015), min_size=1, max_size=60), st.floats(0.5, 20015))
def test_the_line_says_how_many_are_within(distances: list[float], radius: float):
    x, y = steps(np.array(distances))
    within = 100.0 * sum(distance <= radius for distance in distances) / len(distances)
    assert y[np.searchsorted(x, radius, side="right") - 1] == pytest.approx(within)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= -1e-9).all()
    assert y[-1] == 100.0


def test_a_line_of_many_photos_is_short_and_true():
    distances = np.exp(np.random.default_rng(0).uniform(0, np.log(20000), 50_000))
    x, y = steps(distances)
    assert len(x) <= MOST_STEPS + 2
    for radius in (1.5, 25, 200, 750, 2500, 15_000):
        assert y[np.searchsorted(x, radius, side="right") - 1] == pytest.approx(
            100 * np.mean(distances <= radius), abs=0.1
        )


def test_one_line_a_set_and_baselines_dashed(make_random):
    made = make_random(200, sets={"Europe": [1, 0] * 100, "empty": [0] * 200})
    figure = cumulative(made)
    answered = int(np.isfinite(made.distances_km).sum())
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names[0] == f"Global ({answered} of 200 photos)"
    assert len(lines(figure, "set")) == len(names) == 2
    evaluation = measure(made.outcomes, Run("m"), convention("osv5m"))
    (baseline,) = lines(cumulative(evaluation), "baseline")
    assert baseline.get_linestyle() == "--"
    metrics = evaluation.baselines["constant"]["Global"]
    drawn = dict(zip(baseline.get_xdata(), baseline.get_ydata(), strict=True))
    for radius in RADII_KM:
        assert drawn[radius] == metrics.accuracy[float(radius)].value
    assert drawn[metrics.median_km.value] == 50.0


def test_many_sets_are_said_to_be_left_out(make_random):
    figure = cumulative(make_random(50, sets={f"c={i}": [1] * (i + 1) + [0] * (49 - i) for i in range(12)}))
    assert len(lines(figure, "set")) == MOST_SETS
    assert figure.axes[0].get_legend().get_title().get_text().startswith("and 5 ")


def test_nothing_answered_is_no_line(make_evaluation):
    assert cumulative(make_evaluation([[0, 0]], [[NAN, NAN]])) is None


def test_the_running_median_is_of_equal_parts():
    generator = np.random.default_rng(1)
    scores, distances = generator.random(103), generator.random(103)
    x, y = running_median(scores, distances)
    assert len(x) == 4
    ordered = sorted(zip(scores, distances, strict=True))
    sizes, start = [26, 26, 26, 25], 0
    for i, size in enumerate(sizes):
        part = ordered[start : start + size]
        assert (x[i], y[i]) == (np.median([s for s, _ in part]), np.median([d for _, d in part]))
        start += size
    assert [len(values) for values in running_median(scores[:24], distances[:24])] == [0, 0]


@pytest.mark.parametrize("count", [6, 300, 4000])
def test_all_scored_answers_are_drawn(make_random, count: int):
    evaluation = make_random(count)
    evaluation.outcomes.scores[0] = NAN
    figure = error_by_score(evaluation)
    known = int((np.isfinite(evaluation.distances_km) & np.isfinite(evaluation.outcomes.scores)).sum())
    (photos,) = [artist for artist in figure.axes[0].collections if artist.get_gid() == "photos"]
    if count < 2000:
        assert len(photos.get_offsets()) == known
    else:
        assert photos.get_array().sum() == known
    assert len(lines(figure, "median")) == (known >= 75)


@pytest.mark.parametrize("scores", [[NAN, NAN, NAN], [0.5, 0.5, 0.5], [0.5, NAN, NAN], [np.inf, 0.5, NAN]])
def test_scores_that_say_nothing_are_not_drawn(make_evaluation, scores: list[float]):
    assert error_by_score(make_evaluation([[0, 0]] * 3, [[0, 1]] * 3, scores=scores)) is None


def test_an_error_of_nothing_is_drawn_on_the_logarithmic_scale(make_evaluation):
    figure = error_by_score(make_evaluation([[0, 0], [0, 0]], [[0, 0], [0, 1]], scores=[1, 2]))
    (photos,) = figure.axes[0].collections
    assert np.asarray(photos.get_offsets())[:, 1].min() == 0.1


def test_confusion_by_hand():
    table = confuse(["FR", "FR", "DE", "FR", "ES"], ["FR", "DE", "DE", "FR", "IT"])
    assert table.names == ["France", "Germany", "Spain", OTHER]
    assert table.counts.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert confuse(["FR"], ["FR"]).names == ["France"]
    assert confuse([], []).names == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=80))
def test_every_photo_is_in_one_cell(pairs: list[tuple[int, int]]):
    true, predicted = ([chr(65 + pair[i]) * 2 for pair in pairs] for i in (0, 1))
    table = confuse(true, predicted)
    assert table.counts.sum() == len(pairs)
    assert len(table.names) <= MOST_COUNTRIES + 1
    totals = table.counts.sum(axis=1)[: len(set(true))][:MOST_COUNTRIES]
    assert (np.diff(totals) <= 0).all()
    if OTHER not in table.names:
        assert np.trace(table.counts) == sum(a == b for a, b in zip(true, predicted, strict=True))


class Somewhere:
    """Places by longitude alone: France to the west, Germany to the east."""

    def names(self, coordinates: Any) -> list[Any]:
        from geoinfer.places import Place

        codes = ["FR" if longitude < 5 else "DE" for _, longitude in coordinates]
        return [Place(code, code, "Europe", "", "", 0.0) for code in codes]


def test_labels_come_before_coordinates(make_evaluation):
    evaluation = make_evaluation(
        [[48, 2], [48, 2], [50, 10], [50, 10]], [[48, 2], [50, 10], [50, 10], [NAN, NAN]],
        countries=["Spain", "", "de", "de"],
    )  # fmt: skip
    figure = confusion_figure(evaluation, Somewhere())
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Germany (1)", "Spain (1)", "France (1)"]
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert cells == {(0, 0): "100", (1, 2): "100", (2, 0): "100"}
    assert confusion_figure(make_evaluation([[0, 0]], [[NAN, NAN]]), Somewhere()) is None


def test_no_names_of_places_no_confusion(make_evaluation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("geoinfer.evaluate.figures.confusion.open_places", lambda: None)
    assert confusion_figure(make_evaluation([[0, 0]], [[0, 9]], countries=["FR"])) is None


@pytest.mark.parametrize(
    ("name", "shown"),
    [("plain", "plain"), ("a\n b", "a b"), ("$x$", r"\$x\$"), ("_x", " _x"), ("страна", "страна"), ("国x", "□x"),
     ("abcdefghij", "abcdefg…")],
)  # fmt: skip
def test_names_as_they_are_drawn(name: str, shown: str):
    assert plain(name, 8) == shown
