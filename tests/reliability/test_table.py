from __future__ import annotations

import math

import numpy as np
import pytest

from geoinfer.answer import Answer
from geoinfer.calibration import calibrate, leave_one_out_errors_km
from geoinfer.errors import UsageError
from geoinfer.index import LeaveOneOut
from geoinfer.reliability import LEVELS, group_folds, reliability, reliability_on_new, wilson
from geoinfer.reliability.table import ALL

ANSWER = Answer(10, "density")


def test_each_photo_is_judged_by_what_the_other_folds_teach(world, kit):
    """The same by hand: a calibration for each fold, of a `LeaveOneOut` without it."""
    groups = world.groups // 3
    result = reliability(world.held_out, world.places, ANSWER, groups, folds=4)
    fold_of = group_folds(groups, 4)
    errors = leave_one_out_errors_km(world.held_out, world.places, ANSWER)
    assert result.judged.errors_km == pytest.approx(errors)
    assert result.judged.levels == LEVELS
    places = world.places[world.held_out.ids[:, :10]]
    top1 = world.held_out.similarities[:, 0].astype(float)
    from geoinfer.aggregate import aggregate
    from geoinfer.calibration import neighbor_spread_km

    spread = neighbor_spread_km(aggregate(places, world.held_out.similarities[:, :10], ANSWER), places)
    for fold in range(4):
        tested = fold_of == fold
        assert not {*groups[tested].tolist()} & {*groups[~tested].tolist()}
        learnt = calibrate(kit.some_of(world.held_out, ~tested), world.places, ANSWER)
        for number, level in enumerate(LEVELS):
            wanted = learnt.radius_km(spread[tested], top1[tested], level)
            assert result.judged.radius_km[number, tested] == pytest.approx(wanted)
        assert result.judged.scores[tested] == pytest.approx(learnt.score(spread[tested], top1[tested]))
        assert (result.judged.unlike[tested] == learnt.unlike_references(top1[tested])).all()
    for row, level in zip(result.rows, LEVELS, strict=True):
        inside = errors <= result.judged.radius_km[LEVELS.index(level)]
        assert (row.region, row.level, row.photos, row.groups) == (ALL, level, 800, len({*groups.tolist()}))
        assert row.coverage == pytest.approx(sum(inside.tolist()) / 800)
        assert row.low < row.coverage < row.high
        assert row.mean_radius_km == pytest.approx(result.judged.radius_km[LEVELS.index(level)].mean())
        assert row.median_radius_km == pytest.approx(np.median(result.judged.radius_km[LEVELS.index(level)]))


@pytest.mark.parametrize("method", ["top1", "density"])
def test_what_is_promised_is_found_in_made_up_worlds(kit, method):
    inside, photos = dict.fromkeys(LEVELS, 0.0), 0
    for seed in range(3):
        world = kit.make_world(seed)
        result = reliability(world.held_out, world.places, Answer(10, method), world.groups)
        photos += 800
        for row in result.rows:
            inside[row.level] += row.coverage * row.photos
    for level in LEVELS:
        # 3 worlds of 800 photos, and calibrations on half of 640 each.
        deviation = math.sqrt(level * (1 - level) * (1 / 2400 + 1 / 960))
        assert abs(inside[level] / photos - level) <= 3.5 * deviation + 1 / 320


def test_new_photos_are_judged_by_the_calibration_as_it_is(world, kit):
    learnt_from = np.arange(800) < 500
    calibration = calibrate(kit.some_of(world.held_out, learnt_from), world.places, ANSWER)
    new = kit.some_of(world.held_out, ~learnt_from)
    result = reliability_on_new(calibration, new, world.places, ANSWER, np.arange(300))
    errors = leave_one_out_errors_km(new, world.places, ANSWER)
    for row, radius in zip(result.rows, result.judged.radius_km, strict=True):
        count = int((errors <= radius).sum())
        assert row.coverage == pytest.approx(count / 300)
        assert (row.low, row.high) == pytest.approx(wilson(count / 300, 300))
        assert abs(row.coverage - row.level) < 4 * math.sqrt(row.level * (1 - row.level) * (1 / 300 + 1 / 250))


def test_photos_of_one_occasion_widen_the_interval(kit):
    world = kit.make_world(2, photos=1200, shots=6)
    together = reliability(world.held_out, world.places, ANSWER, world.groups)
    apart = reliability(world.held_out, world.places, ANSWER, np.arange(1200))
    for one, other in zip(together.rows, apart.rows, strict=True):
        assert (one.groups, other.groups) == (200, 1200)
        assert one.high - one.low > 1.5 * (other.high - other.low)


def test_regions_have_rows_of_their_own(world):
    regions = ["north" if latitude > 0 else "south" for latitude in world.photo_places[:, 0]]
    result = reliability(world.held_out, world.places, ANSWER, world.groups, regions=regions)
    assert [(row.region, row.level) for row in result.rows] == [
        (region, level) for region in ("all", "north", "south") for level in LEVELS
    ]
    by = {(row.region, row.level): row for row in result.rows}
    for level in LEVELS:
        north, south, everywhere = (by[region, level] for region in ("north", "south", "all"))
        assert north.photos == regions.count("north")
        assert north.photos + south.photos == everywhere.photos
        together = north.coverage * north.photos + south.coverage * south.photos
        assert together == pytest.approx(everywhere.coverage * everywhere.photos)


def test_photos_without_neighbours_enough_are_left_out(world, kit):
    short = LeaveOneOut(
        world.held_out.rows, world.held_out.ids.copy(), world.held_out.similarities, world.held_out.places
    )
    short.ids[::4, 5:] = -1
    regions = [str(number % 4) for number in range(800)]
    result = reliability(short, world.places, ANSWER, world.groups, regions=regions)
    assert len(result.judged) == 600
    assert {row.region for row in result.rows} == {"all", "1", "2", "3"}


def test_too_few_photos_promise_only_what_they_can(world, kit):
    # Five folds of 30: 24 to learn from, 12 ratios: 0.5, 0.8 and 0.9 can be promised, 0.95 needs 19.
    few = reliability(kit.some_of(world.held_out, np.arange(30)), world.places, ANSWER, np.arange(30))
    assert few.judged.levels == (0.5, 0.8, 0.9)
    with pytest.raises(UsageError, match="too few to learn from"):
        reliability(kit.some_of(world.held_out, np.arange(30)), world.places, ANSWER, np.arange(30), levels=[0.99])
    with pytest.raises(UsageError, match="belong together"):
        reliability(world.held_out, world.places, ANSWER, np.zeros(800, np.int64))
    with pytest.raises(UsageError, match="no photo has neighbours enough"):
        reliability(LeaveOneOut.empty(), world.places, ANSWER, np.empty(0, np.int64))
