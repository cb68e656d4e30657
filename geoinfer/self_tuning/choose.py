"""From timings to a choice; pure functions.

Rates of one candidate and of the default are taken in the same rounds, so that what else the machine does in a round
falls on both. What is judged is their ratio, round by round: its mean in logarithms and an interval of that by
Student's t (Student, "The probable error of a mean", Biometrika 6, 1908), which does not need the noise to be known.
The interval is of 99.5%, so that with ten candidates there is one false winner in twenty measurements at most
(Bonferroni's bound; only intervals that are above 1 matter, so it is half of that).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geoinfer.backends.cpu_settings import CpuSettings

LEAST_GAIN: Final = 1.03
"""A candidate that is not this much faster is not worth a choice that might be another the next time."""

LEAST_ROUNDS: Final = 4
_ABOUT_THE_SAME: Final = 1.01

# 99.75th percentile of Student's t for 1, 2, ... degrees of freedom, and what it comes to.
_T: Final = (
    127.321, 14.089, 7.453, 5.598, 4.773, 4.317, 4.029, 3.833, 3.690, 3.581, 3.497, 3.428, 3.372, 3.326, 3.286, 3.252,
    3.222, 3.197, 3.174, 3.153, 3.135, 3.119, 3.104, 3.091, 3.078, 3.067, 3.057, 3.047, 3.038, 3.030,
)  # fmt: skip
_T_LIMIT: Final = 2.807


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast as the default, with its interval, which is 0 to infinity for fewer than two rounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate's timings.

    Attributes:
        settings: of the candidate.
        precision: `fp32` for the model itself, `int8` for its sibling.
        rates: images a second, round by round.
        default_rates: of the default in the same rounds.
        same_bits: whether its embeddings are the default's bit by bit; None where nobody looked.
        left_out: why it was not timed, or not to the end; may be empty.
    """

    settings: CpuSettings
    precision: str = "fp32"
    rates: tuple[float, ...] = ()
    default_rates: tuple[float, ...] = ()
    same_bits: bool | None = None
    left_out: str = ""

    @property
    def ratio(self) -> Ratio:
        """Against the default."""
        return paired_ratio(self.rates, self.default_rates)


def paired_ratio(rates: Sequence[float], default_rates: Sequence[float]) -> Ratio:
    """The ratio of rates that were taken in pairs.

    Args:
        rates: images a second, all above 0.
        default_rates: as many.

    Raises:
        ValueError: they are not as many.
    """
    logs = [math.log(rate / default) for rate, default in zip(rates, default_rates, strict=True)]
    if not logs:
        return Ratio(math.nan, 0.0, math.inf)
    mean = sum(logs) / len(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean), 0.0, math.inf)
    variance = sum((value - mean) ** 2 for value in logs) / (len(logs) - 1)
    freedom = len(logs) - 1
    half = (_T[freedom - 1] if freedom <= len(_T) else _T_LIMIT) * math.sqrt(variance / len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def surely_faster(trial: Trial) -> bool:
    """Whether it is `LEAST_GAIN` faster than the default, and faster beyond the noise, in enough rounds."""
    ratio = trial.ratio
    return len(trial.rates) >= LEAST_ROUNDS and ratio.value >= LEAST_GAIN and ratio.low > 1


def hopeless(trial: Trial) -> bool:
    """Whether more rounds are a waste: no round of at least two was faster, or the interval is below `LEAST_GAIN`."""
    if len(trial.rates) < 2:
        return False
    slower = all(rate <= default for rate, default in zip(trial.rates, trial.default_rates, strict=True))
    return slower or trial.ratio.high < LEAST_GAIN


def winners(trials: Sequence[Trial]) -> list[Trial]:
    """Those that are surely faster and give the same bits, the fastest first; the earlier of two that are as fast."""
    return sorted(
        (trial for trial in trials if trial.same_bits and surely_faster(trial)), key=lambda trial: -trial.ratio.value
    )


def choose(trials: Sequence[Trial]) -> Trial | None:
    """The candidate to use; None for the default.

    Args:
        trials: in the order of their simplicity. Of those within 1% of the fastest, the first is taken.
    """
    best = winners(trials)
    if not best:
        return None
    as_fast = [trial for trial in best if trial.ratio.value * _ABOUT_THE_SAME >= best[0].ratio.value]
    return min(as_fast, key=list(trials).index)
