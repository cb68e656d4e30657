"""Self-tuning: a model under each candidate's settings, in turns, until it is clear which is fastest or time is out."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from geoinfer.backends import open_embedder
from geoinfer.engine_check import drawn_pictures
from geoinfer.errors import GeoInferError
from geoinfer.machine import available_cores, free_memory_bytes
from geoinfer.self_tuning.candidates import DEFAULT, candidates, combined, needs_own_session, session_key
from geoinfer.self_tuning.choose import LEAST_GAIN, LEAST_ROUNDS, Trial, choose, hopeless, surely_faster, winners
from geoinfer.self_tuning.measure import images_per_second
from geoinfer.self_tuning.precision import Verdict, int8_verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.backends import Embedder
    from geoinfer.backends.cpu_settings import CpuSettings
    from geoinfer.images import Preprocessing

# What self-tuning by itself takes for a model as quick as the shipped one; a slower one gets the time of so many calls.
_SHORT_SECONDS: Final = 4.0
_SHORT_CALLS: Final = 80
_LONGEST_SHORT_SECONDS: Final = 12.0

_TURN_SECONDS: Final = 0.06
_LOOKED_AT: Final = 8  # pictures: as many as the largest batch
_MOST_ROUNDS: Final = 31
# A model in memory takes its file's size and about as much again, for weights that are packed for the kernels.
_TIMES_ITS_FILE: Final = 2.5
_SHARE_OF_MEMORY: Final = 0.3


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was found out about one model.

    Attributes:
        trials: of every candidate; the default is the first, and is compared with itself.
        settings: the fastest that gives the default's bits.
        int8: the trial of the int8 sibling with the default's settings, if there is one.
        int8_verdict: on its embeddings, if it was looked at.
        int8_why_not: why it does not take the model's place; empty if it does.
        seconds: that it took.
    """

    trials: list[Trial]
    settings: CpuSettings
    int8: Trial | None = None
    int8_verdict: Verdict | None = None
    int8_why_not: str = "there is no int8 sibling"
    seconds: float = 0.0

    @property
    def prefers_int8(self) -> bool:
        """Whether the int8 sibling is surely faster than the model at its best, and close enough."""
        return not self.int8_why_not

    @property
    def gain(self) -> float:
        """How many times as fast as the default the settings are, 1 for the default."""
        return next((t.ratio.value for t in self.trials[1:] if t.settings == self.settings), 1.0)


def tune(
    model: Path,
    *,
    int8: Path | None = None,
    preprocessing: Preprocessing | None = None,
    pixels: NDArray[np.uint8] | None = None,
    seconds: float | None = None,
    all_rounds: bool = False,
    cores: int | None = None,
) -> Tuned:
    """Measures how a model runs fastest on this CPU, all of its cores at work.

    Args:
        model: an ONNX model.
        int8: its int8 sibling, if that is wanted.
        preprocessing: for a model whose metadata has none.
        pixels: (n, size, size, 3) uint8, n at least 8: what embeddings are compared on; drawn pictures if left out.
        seconds: how long it may take, about; if left out some 4 s, for slow models up to 12 s.
        all_rounds: go on with candidates that cannot win, and with those whose last digits differ: for a table.
        cores: that the process may use.

    Raises:
        GeoInferError: the model itself cannot be opened, or fails. A candidate that does is left out.
    """
    began = time.perf_counter()
    with _Contest(model, preprocessing, pixels, cores or available_cores(), all_rounds=all_rounds) as contest:
        contest.limit(began, seconds)
        wanted = candidates(contest.cores, all_of_them=all_rounds)[1:]
        if int8 is not None:
            contest.enter_int8(int8)
        for settings in wanted:
            contest.enter(settings)
        contest.rounds()
        together = combined(trial.settings for trial in winners([e.trial for e in contest.of_model()]))
        if together is not None and contest.enter(together, contest.grace):
            contest.rounds(only=together)
        chosen = contest.check_counts(choose([entry.trial for entry in contest.of_model()]))
        eight, verdict = contest.judge_int8()
        default = contest.default_trial()
        trials = [default, *(entry.trial for entry in contest.of_model())]
    return Tuned(
        trials=trials,
        settings=DEFAULT if chosen is None else chosen.settings,
        int8=eight,
        int8_verdict=verdict,
        int8_why_not=_why_not_int8(eight, verdict, chosen),
        seconds=time.perf_counter() - began,
    )


def _why_not_int8(eight: Trial | None, verdict: Verdict | None, chosen: Trial | None) -> str:
    if eight is None:
        return "there is no int8 sibling"
    if verdict is not None and not verdict.passes:
        return verdict.reason
    if len(eight.rates) < LEAST_ROUNDS:
        return eight.left_out or "there was no time to measure it"
    best = 1.0 if chosen is None else chosen.ratio.value
    if surely_faster(eight) and eight.ratio.low > best and eight.ratio.value >= LEAST_GAIN * best:
        return ""
    return f"it is {eight.ratio.value:.2f} times as fast as fp32 by the default, which is not surely faster"


@dataclass(slots=True)
class _Entry:
    trial: Trial
    embedder: Embedder | None
    rates: list[float] = field(default_factory=list)
    default_rates: list[float] = field(default_factory=list)

    def leave_out(self, why: str) -> None:
        self.trial = replace(self.trial, left_out=why)
        self.embedder = None

    def ran(self, rate: float, default_rate: float) -> None:
        self.rates.append(rate)
        self.default_rates.append(default_rate)
        self.trial = replace(self.trial, rates=tuple(self.rates), default_rates=tuple(self.default_rates))


class _Contest:
    """The candidates of one model, the sessions that they need, and the time that is left. A context manager."""

    def __init__(
        self,
        model: Path,
        preprocessing: Preprocessing | None,
        pixels: NDArray[np.uint8] | None,
        cores: int,
        *,
        all_rounds: bool,
    ) -> None:
        self.cores = cores
        self.entries: list[_Entry] = []
        self._model, self._preprocessing, self._all_rounds = model, preprocessing, all_rounds
        self._opened = contextlib.ExitStack()
        self._sessions: dict[Any, Embedder] = {}
        self._sibling: Embedder | None = None
        self._given = pixels
        self._bytes_left = free_memory_bytes() * _SHARE_OF_MEMORY
        self._default = self._open(model, DEFAULT)
        self._default_rates: list[float] = []
        try:
            size = self._default.identity.preprocessing.size
            self._pixels = drawn_pictures(size) if pixels is None else pixels
            before = time.perf_counter()
            self._expected = np.concatenate(
                [self._default.embed(picture[None]) for picture in self._pixels[:_LOOKED_AT]]
            )
            self._call_seconds = (time.perf_counter() - before) / len(self._expected)
        except BaseException:
            self._opened.close()
            raise
        self._ends = self.grace = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def limit(self, began: float, seconds: float | None) -> None:
        """Sets when time is out, by `time.perf_counter()`."""
        short = min(max(_SHORT_SECONDS, _SHORT_CALLS * self._call_seconds), _LONGEST_SHORT_SECONDS)
        most = short if seconds is None else seconds
        self._ends, self.grace = began + most, most / 4
        if self._all_rounds:
            # What is left is for those that turn out to be faster, together.
            self._ends -= self.grace

    def of_model(self) -> list[_Entry]:
        """All but the int8 sibling."""
        return [entry for entry in self.entries if entry.trial.precision == "fp32"]

    def default_trial(self) -> Trial:
        """The default, compared with itself."""
        rates = tuple(self._default_rates)
        return Trial(DEFAULT, rates=rates, default_rates=rates, same_bits=True)

    def enter(self, settings: CpuSettings, late: float = 0.0) -> bool:
        """Opens what a candidate needs and looks at its bits; whether it takes part, for which it may be that late."""
        entry = _Entry(Trial(settings), None)
        self.entries.append(entry)
        batch = settings.batch_size
        if self._turn(batch) * LEAST_ROUNDS > self._ends + late - time.perf_counter():
            entry.leave_out("no time was left for it")
            return False
        try:
            entry.embedder = self._default
            if needs_own_session(settings):
                if not self._has_room(self._model):
                    entry.leave_out("the model is too large to be loaded once more")
                    return False
                entry.embedder = self._open(self._model, settings)
            # A call of its own size is the warm-up, too.
            same = _same_bits(entry.embedder.embed(self._pixels[:batch]), self._expected[:batch])
        except GeoInferError as error:
            entry.leave_out(str(error))
            return False
        entry.trial = replace(entry.trial, same_bits=same)
        if not same and not self._all_rounds:
            entry.leave_out("other last digits")
            return False
        return True

    def enter_int8(self, sibling: Path) -> None:
        """Opens the int8 sibling, which takes part by the default settings."""
        entry = _Entry(Trial(DEFAULT, "int8"), None)
        self.entries.append(entry)
        try:
            if not self._has_room(sibling):
                entry.leave_out("the model is too large to be loaded once more")
                return
            entry.embedder = self._open(sibling, DEFAULT)
            entry.embedder.embed(self._pixels[:1])
            self._sibling = entry.embedder
        except GeoInferError as error:
            entry.leave_out(str(error))

    def judge_int8(self) -> tuple[Trial | None, Verdict | None]:
        """The int8 sibling's trial, and whether its embeddings are close enough, which is looked at if it matters."""
        entry = next((entry for entry in self.entries if entry.trial.precision == "int8"), None)
        if entry is None or self._sibling is None or not (self._all_rounds or surely_faster(entry.trial)):
            return None if entry is None else entry.trial, None
        try:
            return entry.trial, int8_verdict(self._default, self._sibling, self._given)
        except GeoInferError as error:
            entry.trial = replace(entry.trial, rates=(), default_rates=(), left_out=str(error))
            return entry.trial, None

    def rounds(self, only: CpuSettings | None = None) -> None:
        """Round after round until time is out, or nobody is left who could win."""
        # Processors take a while to reach their speed under load; the first turn of all would pay for that.
        images_per_second(self._default, DEFAULT, self._pixels, cores=self.cores, seconds=2 * _TURN_SECONDS)
        for number in range(_MOST_ROUNDS):
            running = [e for e in self.entries if e.embedder is not None and only in (None, e.trial.settings)]
            if not running:
                return
            needed = sum(self._turn(entry.trial.settings.batch_size) for entry in running) + self._turn(1)
            late = 0.0 if only is None else self.grace
            if number >= LEAST_ROUNDS and needed > self._ends + late - time.perf_counter():
                return
            self._round(running, backwards=number % 2 == 1)
            self._drop(running)

    def _round(self, running: Sequence[_Entry], *, backwards: bool) -> None:
        """One turn each, every other round in the other order, so that what drifts favours nobody."""
        rates: dict[int, float] = {}
        order = [None, *running]
        for entry in reversed(order) if backwards else order:
            trial = self.default_trial() if entry is None else entry.trial
            embedder = self._default if entry is None else entry.embedder
            assert embedder is not None
            try:
                rates[id(entry)] = images_per_second(
                    embedder, trial.settings, self._pixels, cores=self.cores, seconds=_TURN_SECONDS
                )
            except GeoInferError as error:
                if entry is None:
                    raise
                entry.leave_out(str(error))
        self._default_rates.append(rates[id(None)])
        for entry in running:
            if id(entry) in rates:
                entry.ran(rates[id(entry)], rates[id(None)])

    def _drop(self, running: Sequence[_Entry]) -> None:
        """Takes no more of those that cannot win; and of those that find no time, the slowest so far first.

        The int8 sibling is the last to go: where processors have instructions for bytes, nothing else gains as much.
        """
        if not self._all_rounds:
            for entry in running:
                if hopeless(entry.trial):
                    entry.leave_out("no faster")
        left = self._ends - time.perf_counter()
        short = [e for e in running if e.embedder is not None and len(e.rates) < LEAST_ROUNDS]
        short.sort(key=lambda entry: (entry.trial.precision != "int8", -entry.trial.ratio.value))
        while short:
            a_round = sum(self._turn(entry.trial.settings.batch_size) for entry in short) + self._turn(1)
            # The most promising alone may take a little longer, rather than that nothing comes of it all.
            more = self.grace if len(short) == 1 else 0.0
            if (LEAST_ROUNDS - len(short[0].rates)) * a_round <= left + more:
                break
            short.pop().leave_out("no time was left for it")

    def check_counts(self, trial: Trial | None) -> Trial | None:
        """The trial, unless its embeddings turn out to be others for fewer photos than a batch: then the next best.

        A run's last batch is short, and so is one in which a photo failed.
        """
        trials = [entry.trial for entry in self.of_model()]
        while trial is not None:
            embedder = self._sessions[self._key(self._model, trial.settings)]
            try:
                if all(
                    _same_bits(embedder.embed(self._pixels[:count]), self._expected[:count])
                    for count in range(1, trial.settings.batch_size + 1)
                ):
                    return trial
            except GeoInferError:
                pass
            entry = next(entry for entry in self.of_model() if entry.trial is trial)
            entry.trial = replace(trial, same_bits=False)
            trials = [entry.trial for entry in self.of_model()]
            trial = choose(trials)
        return None

    def _turn(self, batch: int) -> float:
        """Seconds of one turn, about: the call that is under way when it ends, and one that waits for others."""
        return _TURN_SECONDS + 1.5 * batch * self._call_seconds

    def _has_room(self, model: Path) -> bool:
        return _TIMES_ITS_FILE * _file_bytes(model) <= self._bytes_left

    def _key(self, model: Path, settings: CpuSettings) -> Any:
        return model, session_key(settings)

    def _open(self, model: Path, settings: CpuSettings) -> Embedder:
        key = self._key(model, settings)
        if key not in self._sessions:
            embedder = open_embedder(model, "cpu", preprocessing=self._preprocessing, settings=settings)
            self._sessions[key] = self._opened.enter_context(embedder)
            self._bytes_left -= _TIMES_ITS_FILE * _file_bytes(model)
        return self._sessions[key]


def _same_bits(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    return found.shape == expected.shape and found.tobytes() == expected.tobytes()


def _file_bytes(model: Path) -> int:
    """Of a model, and of the weights beside it that a large one has."""
    beside = model.with_name(model.name + ".data")
    return sum(os.path.getsize(path) for path in (model, beside) if path.exists())
