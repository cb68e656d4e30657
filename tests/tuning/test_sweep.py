from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from geoinfer.aggregate import aggregate
from geoinfer.answer import METHODS, Answer
from geoinfer.errors import UsageError
from geoinfer.tuning.sweep import Grid, sweep


def arc_km(a, b):
    lat1, lon1, lat2, lon2 = (math.radians(float(v)) for v in (*a, *b))
    h = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371.0 * math.asin(min(1.0, math.sqrt(h)))


SMALL = Grid(ks=(1, 3, 12), temperatures=(0.02, 0.2), bandwidths_km=(100.0, 800.0))


class TestWays:
    def test_every_combination_that_differs_once(self):
        ways = SMALL.ways(12)
        expected = {(1, "top1", None, None)}
        for k in (3, 12):
            expected |= {(k, "mean", t, None) for t in (None, 0.02, 0.2)}
            expected |= {(k, m, t, None) for m in ("median", "cells", "geoscore") for t in (0.02, 0.2)}
            expected |= {(k, "density", t, b) for t in (0.02, 0.2) for b in (100.0, 800.0)}
        assert {dataclasses.astuple(way) for way in ways} == expected
        assert len(ways) == len(expected)

    def test_no_more_neighbors_than_there_are(self):
        assert {way.k for way in SMALL.ways(11)} == {1, 3}
        assert Grid(ks=(50,), methods=("median", "top1")).ways(11) == [Answer(1, "top1")]
        with pytest.raises(UsageError, match="--k 50: there are only 11 neighbours"):
            Grid(ks=(50,), methods=("median",)).ways(11)

    @pytest.mark.parametrize(
        "grid",
        [
            Grid(ks=(0,)),
            Grid(ks=(101,)),
            Grid(methods=("mode",)),
            Grid(temperatures=(0.0,)),
            Grid(bandwidths_km=(-1.0,)),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, grid):
        with pytest.raises(UsageError, match="expected"):
            grid.ways(100)


@pytest.mark.parametrize("threads", [1, 2])
def test_equals_a_plain_loop(world, threads):
    held_out, coordinates, truth = world(photos=25)
    ways = SMALL.ways(12)
    tried = sweep(held_out, coordinates, ways, threads=threads)
    assert tried.ways == ways
    assert tried.errors_km.shape == (len(ways), 25)
    for row, way in enumerate(ways):
        for photo in range(25):
            ids = held_out.ids[photo, : way.k]
            place = aggregate(coordinates[ids][None], held_out.similarities[photo, : way.k][None], way)[0]
            assert tried.errors_km[row, photo] == pytest.approx(arc_km(place, truth[photo]), abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_photo_with_few_neighbors_left_is_located_by_those(world, method):
    held_out, coordinates, truth = world(photos=6)
    ids, similarities = held_out.ids.copy(), held_out.similarities.copy()
    ids[2, 4:], similarities[2, 4:] = -1, 0
    short = dataclasses.replace(held_out, ids=ids, similarities=similarities)
    way = Answer(12, method)
    place = aggregate(coordinates[ids[2:3, :4]], similarities[2:3, :4], way)[0]
    found = sweep(short, coordinates, [way]).errors_km[0]
    assert found[2] == pytest.approx(arc_km(place, truth[2]), abs=1e-3)
    others = np.arange(6) != 2
    assert found[others] == pytest.approx(sweep(held_out, coordinates, [way]).errors_km[0, others])


def test_progress_ends_at_one(world):
    held_out, coordinates, _ = world(photos=5)
    shares = []
    sweep(held_out, coordinates, SMALL.ways(12), on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_what_the_caller_raises_ends_it(world):
    held_out, coordinates, _ = world(photos=5)

    def stop(_share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(held_out, coordinates, SMALL.ways(12), on_progress=stop)
