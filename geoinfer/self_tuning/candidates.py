"""Which settings are worth a measurement."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from geoinfer.backends.cpu_settings import CpuSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT = CpuSettings()

# What belongs together: a candidate changes one of these, and a combination takes each from one winner at most.
_GROUPS = (("threads_per_call", "calls_at_once", "pinned"), ("batch_size",), ("arena",), ("graph",))


def candidates(cores: int, *, all_of_them: bool = True) -> list[CpuSettings]:
    """The default, and what differs from it in one respect, the most promising first: the last may find no time.

    Args:
        cores: that the process may use.
        all_of_them: also what no machine so far gained by: the narrower graph, without the memory layout that
            convolutions are made for, takes three times as long, and changes last digits besides.
    """
    found = [DEFAULT]
    if cores > 1:
        found.append(CpuSettings(threads_per_call=cores, calls_at_once=1))
    found += [CpuSettings(batch_size=size) for size in (2, 4)]
    if cores > 1:
        found.append(CpuSettings(pinned=True))
    found.append(CpuSettings(arena=False))
    # Between one thread and all: two, and half of the cores, which on many machines is one socket or one L3 cache.
    between = sorted({2, cores // 2}) if cores >= 4 else []
    found += [CpuSettings(threads_per_call=threads) for threads in between]
    found.append(CpuSettings(batch_size=8))
    if all_of_them:
        found.append(CpuSettings(graph="extended"))
    return found


def combined(winners: Iterable[CpuSettings]) -> CpuSettings | None:
    """What several settings have that the default has not, in one; None where that is no more than one of them has.

    Args:
        winners: the fastest first: where two change the same thing, it is the first one's that is taken.
    """
    taken: dict[str, Any] = {}
    alone = 0
    for settings in winners:
        for group in _GROUPS:
            changed = {name: getattr(settings, name) for name in group}
            if changed == {name: getattr(DEFAULT, name) for name in group} or group[0] in taken:
                continue
            taken |= changed
            alone += 1
    return replace(DEFAULT, **taken) if alone > 1 else None


def needs_own_session(settings: CpuSettings) -> bool:
    """Whether the model must be loaded once more to run so; else the default's session does."""
    return session_key(settings) != session_key(DEFAULT)


def session_key(settings: CpuSettings) -> tuple[Any, ...]:
    """What of the settings ONNX Runtime is told when a model is loaded; the rest is how it is called."""
    called = {"calls_at_once", "batch_size", "pinned"}
    return tuple(getattr(settings, field.name) for field in fields(settings) if field.name not in called)
