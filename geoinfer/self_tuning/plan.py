"""How a model is to be run on this CPU: what was asked for, what is kept from before, or what is measured now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from geoinfer.backends.cpu_settings import CpuPlan, CpuSettings
from geoinfer.engines.int8_beside import int8_beside, require_int8
from geoinfer.errors import GeoInferError, ModelError
from geoinfer.integrity import sha256_of
from geoinfer.self_tuning import cache
from geoinfer.self_tuning.cache import Int8Kept, Kept

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from geoinfer.images import Preprocessing
    from geoinfer.self_tuning.tune import Tuned

PRECISIONS: Final = ("auto", "fp32", "int8")
WORTH_MEASURING: Final = 256
"""A run of fewer photos is over before a measurement has paid."""

_OTHERS_AT_MOST_SECONDS: Final = 30.0


@dataclass(slots=True)
class MeasuredPlan:
    """A `geoinfer.backends.cpu_settings.Planner`.

    Attributes:
        precision: `fp32` for the model itself, `int8` for its int8 sibling, `auto` for whichever was measured to be
            fast and close enough here; where nothing was, fp32.
        measure: whether to measure where nothing is kept; asked only then, as the answer may take a while. None to
            use what is kept alone.
        say: takes lines for a reader.
        preprocessing: for a model whose metadata has none.
        made_with: SHA-256 of the model file of a run that is gone on with: `auto` stays with that file.
        ignore_kept: run the model itself by the default settings, whatever is kept.
    """

    precision: str = "auto"
    measure: Callable[[], bool] | None = None
    say: Callable[[str], None] = lambda _: None
    preprocessing: Preprocessing | None = None
    made_with: str | None = None
    ignore_kept: bool = False

    def __call__(self, model: Path) -> CpuPlan:
        """See `Planner`.

        Raises:
            InputError, MismatchError: int8 was asked for and there is no sibling, or it is another model's.
            ModelError: the model cannot be read, or fails while it is measured.
        """
        if self.precision == "int8":
            sibling = require_int8(model)
            return CpuPlan(sibling, _settings(self._kept(sibling, measure=self.measure)), "int8, as asked")
        kept = self._kept(model, measure=self.measure)
        plain = CpuPlan(model, _settings(kept))
        if self.precision == "fp32":
            return plain
        if self.made_with is not None:
            begun = usable_sibling(model)
            if begun is None or sha256(begun) != self.made_with:
                return plain
            return CpuPlan(begun, _settings(self._kept(begun)), "int8, as this run was begun")
        eight = None if kept is None else kept.int8
        # Only where int8 won are the two files looked at: most models have none, and reading costs start-up.
        if eight is None or eight.why_not:
            return plain
        faster = usable_sibling(model)
        if faster is None or sha256(faster) != eight.fingerprint:
            return plain
        note = f"int8 ({eight.ratio:.1f} times as fast as fp32 here)"
        return CpuPlan(faster, _settings(self._kept(faster)), note)

    def _kept(self, model: Path, *, measure: Callable[[], bool] | None = None) -> Kept | None:
        if self.ignore_kept:
            return None
        key = cache.CacheKey.here(sha256(model))
        kept, complaint = cache.load(key)
        if complaint:
            self.say(complaint)
        if kept is not None or measure is None or not measure():
            return kept
        with cache.one_at_a_time(key, at_most_seconds=_OTHERS_AT_MOST_SECONDS):
            kept, _ = cache.load(key)
            if kept is None:
                kept = self._measured(model, key)
        return kept

    def _measured(self, model: Path, key: cache.CacheKey) -> Kept:
        from geoinfer.self_tuning.tune import tune

        self.say("Measuring how this model runs fastest here (once)…")
        sibling = usable_sibling(model)
        tuned = tune(model, int8=sibling, preprocessing=self.preprocessing)
        kept = to_keep(tuned, sibling)
        self.say(f"  {chosen_words(kept)}; measured in {tuned.seconds:.1f} s")
        if kept.int8 is not None and kept.int8.why_not:
            self.say(f"  int8 is not used: {kept.int8.why_not}")
        if complaint := cache.store(key, kept):
            self.say(complaint)
        return kept


def to_keep(tuned: Tuned, sibling: Path | None) -> Kept:
    """What of a measurement is kept."""
    eight = None
    if sibling is not None and tuned.int8 is not None:
        ratio = tuned.int8.ratio.value if tuned.int8.rates else 0.0
        eight = Int8Kept(sha256(sibling), round(ratio, 4), tuned.int8_why_not)
    return Kept(tuned.settings, round(tuned.gain, 4), eight)


def chosen_words(kept: Kept) -> str:
    """What was chosen, for a reader."""
    if kept.int8 is not None and not kept.int8.why_not:
        return f"int8, {kept.int8.ratio:.1f} times as fast as fp32"
    if kept.settings == CpuSettings():
        return f"the default ({kept.settings}); nothing was surely faster"
    return f"{kept.settings.changes}: {kept.gain:.2f} times as fast as the default"


def _settings(kept: Kept | None) -> CpuSettings:
    return CpuSettings() if kept is None else kept.settings


def usable_sibling(model: Path) -> Path | None:
    """The int8 sibling; one that is not the model's is as good as none to somebody who did not ask for it."""
    try:
        return int8_beside(model)
    except GeoInferError:
        return None


def sha256(path: Path) -> str:
    """Of a model's file; raises ModelError if it cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
