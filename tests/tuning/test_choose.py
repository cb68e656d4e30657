from __future__ import annotations

import numpy as np
import pytest

from geoinfer.answer import DEFAULT_ANSWER, Answer
from geoinfer.errors import UsageError
from geoinfer.tuning.choose import choose, split
from geoinfer.tuning.objective import Objective
from geoinfer.tuning.sweep import Sweep

MEDIAN = Objective.parse("median")
WAYS = [Answer(1, "top1"), Answer(5, "mean"), Answer(20, "median"), DEFAULT_ANSWER]


class TestSplit:
    @pytest.mark.parametrize("seed", range(8))
    def test_no_group_is_in_both_parts(self, seed):
        rng = np.random.default_rng(seed)
        groups = rng.integers(0, 30, 300) ** 2
        choosing = split(groups, "sequence", seed=seed)
        assert not set(groups[choosing].tolist()) & set(groups[~choosing].tolist())
        assert abs(int(choosing.sum()) - 150) <= 15

    def test_the_same_every_time(self):
        groups = np.arange(100) // 3
        assert np.array_equal(split(groups, "sequence"), split(groups, "sequence"))

    @pytest.mark.parametrize(
        ("groups", "message"),
        [
            (np.arange(39), "39 photos are too few to tune on; it takes at least 40"),
            (np.zeros(100, int), "the 100 photos are of 1 source only"),
            (np.arange(100) % 9, "the 100 photos are of 9 sources only"),
            (np.minimum(np.arange(1000), 12), "most of the 1000 photos are of one source"),
            (np.array([], int), "0 photos are too few"),
        ],
    )
    def test_too_little_is_refused(self, groups, message):
        with pytest.raises(UsageError, match=message):
            split(groups, "source")


class TestChoose:
    def make(self, seed=3, photos=200):
        rng = np.random.default_rng(seed)
        groups = np.arange(photos) // 4
        return rng.gamma(2.0, 100.0, (len(WAYS), photos)), groups, split(groups, "geocell")

    @pytest.mark.parametrize("text", ["median", "mean", "geoscore", "acc@100"])
    def test_the_best_on_the_part_that_chooses_wins(self, text):
        objective = Objective.parse(text)
        for seed in range(5):
            errors, groups, choosing = self.make(seed)
            choice = choose(Sweep(WAYS, errors), groups, choosing, objective, Answer(1, "top1"), DEFAULT_ANSWER)
            values = [objective.values(errors[row, choosing]) for row in range(len(WAYS))]
            best = max(values) if text in ("geoscore", "acc@100") else min(values)
            assert choice.winner.value_chosen_on == pytest.approx(best)
            row = WAYS.index(choice.winner.answer)
            assert choice.winner.value == pytest.approx(objective.values(errors[row, ~choosing]))
            assert choice.winner.low <= choice.winner.value <= choice.winner.high

    def test_the_part_that_judges_is_never_looked_at_to_choose(self):
        errors, groups, choosing = self.make()
        honest = choose(Sweep(WAYS, errors), groups, choosing, MEDIAN, WAYS[0], DEFAULT_ANSWER)
        for row in range(len(WAYS)):
            # A planted lie: this way is perfect on the photos that judge, so whoever peeks would choose it.
            planted = errors.copy()
            planted[row, ~choosing] = 0.0
            choice = choose(Sweep(WAYS, planted), groups, choosing, MEDIAN, WAYS[0], DEFAULT_ANSWER)
            assert choice.winner.answer == honest.winner.answer
            assert choice.winner.value_chosen_on == honest.winner.value_chosen_on

    def test_luck_shows_on_the_part_that_judges(self):
        errors, groups, choosing = self.make()
        errors[2, choosing] = 1.0
        errors[2, ~choosing] += 1000.0
        choice = choose(Sweep(WAYS, errors), groups, choosing, MEDIAN, WAYS[0], DEFAULT_ANSWER)
        assert choice.winner.answer == WAYS[2]
        assert not choice.better
        assert choice.better_high < 0
        assert choice.winner.value > 1000 > 1.0 == choice.winner.value_chosen_on

    def test_a_real_gain_is_sure_and_no_gain_is_not(self):
        errors, groups, choosing = self.make()
        errors[1] = errors[0] / 3
        choice = choose(Sweep(WAYS, errors), groups, choosing, MEDIAN, WAYS[0], DEFAULT_ANSWER)
        assert (choice.winner.answer, choice.better, choice.sure, choice.same) == (WAYS[1], True, True, False)
        same = choose(Sweep(WAYS, errors), groups, choosing, MEDIAN, WAYS[1], DEFAULT_ANSWER)
        assert (same.better, same.sure, same.same) == (False, False, True)
        assert same.better_low == same.better_high == 0

    def test_ways_that_answer_alike_leave_the_simpler(self):
        errors, groups, choosing = self.make()
        errors[:] = errors[0]
        errors[2:] -= 1e-9
        assert choose(Sweep(WAYS, errors), groups, choosing, MEDIAN, WAYS[1], DEFAULT_ANSWER).winner.answer == WAYS[0]

    def test_only_candidates_win(self):
        errors, groups, choosing = self.make()
        errors[3] = 0.0
        choice = choose(Sweep(WAYS, errors, 3), groups, choosing, MEDIAN, WAYS[0], DEFAULT_ANSWER)
        assert choice.winner.answer != WAYS[3]
        assert choice.default.value == 0.0

    def test_photos_of_one_group_that_fare_alike_widen_the_interval(self):
        rng = np.random.default_rng(1)
        groups = np.arange(400) // 20
        choosing = split(groups, "sequence")
        alike = np.repeat(rng.gamma(2.0, 100.0, 20), 20)[None].repeat(4, axis=0)
        apart = rng.permutation(alike[0])[None].repeat(4, axis=0)
        wide, narrow = (
            choose(Sweep(WAYS, errors), groups, choosing, MEDIAN, WAYS[0], DEFAULT_ANSWER).winner
            for errors in (alike, apart)
        )
        assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)

    def test_the_interval_holds_the_true_median(self):
        # 95% of intervals, give or take, hold the median of what the errors are drawn from.
        held = 0
        for seed in range(40):
            rng = np.random.default_rng(seed)
            errors = rng.exponential(100.0, (4, 160))
            groups = np.arange(160) // 2
            choice = choose(Sweep(WAYS, errors), groups, split(groups, "s"), MEDIAN, WAYS[0], DEFAULT_ANSWER)
            held += choice.current.low <= 100 * np.log(2) <= choice.current.high
        assert held >= 34
