from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("reverse_geocode")

from geoinfer.places import Places, measure_coverage

PARIS, LYON, TOKYO, WINDHOEK, LIMA = (48.857, 2.352), (45.76, 4.84), (35.69, 139.69), (-22.57, 17.08), (-12.05, -77.04)


@pytest.fixture(scope="module")
def places() -> Places:
    return Places.open()


def test_countries_and_continents_most_first(places: Places) -> None:
    coverage = measure_coverage(places, np.array([TOKYO, PARIS, LYON, PARIS, WINDHOEK, TOKYO]))
    assert (coverage.total, coverage.counted) == (6, 6)
    assert list(coverage.countries.items()) == [("FR", 3), ("JP", 2), ("NA", 1)]
    assert list(coverage.continents.items()) == [("Europe", 3), ("Asia", 2), ("Africa", 1)]


def test_one_and_none(places: Places) -> None:
    one = measure_coverage(places, np.array([PARIS]))
    assert (one.total, one.countries, one.continents) == (1, {"FR": 1}, {"Europe": 1})
    none = measure_coverage(places, np.empty((0, 2)))
    assert (none.total, none.counted, none.countries, none.continents) == (0, 0, {}, {})


def test_a_sample_stands_for_many(places: Places) -> None:
    """Sorted by country, as a table often is: 60% in France, 30% in Japan, 10% in Peru."""
    coordinates = np.repeat([PARIS, TOKYO, LIMA], [6000, 3000, 1000], axis=0)
    coverage = measure_coverage(places, coordinates, most=1000)
    assert (coverage.total, coverage.counted) == (10_000, 1000)
    # A row of each ten: at most one at each border may fall on the other side.
    assert coverage.countries["FR"] == pytest.approx(600, abs=1)
    assert coverage.countries["JP"] == pytest.approx(300, abs=2)
    assert coverage.countries["PE"] == pytest.approx(100, abs=1)
    assert coverage == measure_coverage(places, coordinates, most=1000)


@pytest.mark.parametrize(("total", "most"), [(10, 9), (10, 10), (10, 11), (1001, 1000), (7, 1)])
def test_rows_drawn_are_different_ones(places: Places, total: int, most: int) -> None:
    drawn = []

    class Recording:
        def count(self, coordinates: np.ndarray) -> dict[str, int]:
            drawn.append(coordinates)
            return {}

    rows = np.stack([np.arange(total) / 100, np.zeros(total)], axis=1)
    coverage = measure_coverage(Recording(), rows, most=most)
    assert coverage.counted == len(drawn[0]) == min(total, most)
    assert len(np.unique(drawn[0][:, 0])) == min(total, most)
