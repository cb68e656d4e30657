"""How a model runs on a CPU: what of it can be chosen, what runs where nobody measured, and who is asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Graph: TypeAlias = Literal["all", "extended"]
"""How far ONNX Runtime rewrites a graph: `extended` leaves out the changes of memory layout."""

_MOST: Final = 4096


@dataclass(frozen=True, slots=True)
class CpuSettings:
    """Settings of one embedder on a CPU. The default is what runs where nothing was measured.

    None of them is meant to change an embedding, but the order of sums can depend on each, and with it the last digits.

    Attributes:
        threads_per_call: threads that one call of `embed` uses.
        calls_at_once: how many calls run side by side; 0 for as many as the cores allow with their threads.
        batch_size: photos of one call.
        pinned: whether each of the threads that embed stays on a core of its own.
        arena: whether ONNX Runtime keeps the memory of a call for the next, rather than give it back.
        graph: how far it rewrites the graph.
    """

    threads_per_call: int = 1
    calls_at_once: int = 0
    batch_size: int = 1
    pinned: bool = False
    arena: bool = True
    graph: Graph = "all"

    def __post_init__(self) -> None:
        """Raises ValueError for what makes no sense."""
        for name, least in (("threads_per_call", 1), ("calls_at_once", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= _MOST:
                raise ValueError(f"{name} is {value!r}; expected {least} to {_MOST}")
        for name in ("pinned", "arena"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected true or false")
        if self.graph not in get_args(Graph):
            raise ValueError(f"graph is {self.graph!r}; expected one of {', '.join(get_args(Graph))}")
        if self.pinned and self.threads_per_call != 1:
            raise ValueError("pinned is for calls of one thread: a call's other threads are not pinned")

    def calls_on(self, cores: int) -> int:
        """How many calls run side by side where there are so many cores."""
        return self.calls_at_once or max(1, cores // self.threads_per_call)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CpuSettings:
        """The inverse of `as_dict`; raises TypeError or ValueError on anything else."""
        if set(values) != set(cls.__dataclass_fields__):
            raise ValueError("expected " + ", ".join(cls.__dataclass_fields__))
        return cls(**values)

    def __str__(self) -> str:
        """For people: `1 thread a call, one call a core`, and what else differs from the default."""
        calls = self.calls_at_once
        if calls == 0:
            side_by_side = "one call a core" if self.threads_per_call == 1 else "as many calls as fit the cores"
        else:
            side_by_side = f"{calls} call{'s' * (calls != 1)} at once"
        threads = f"{self.threads_per_call} thread{'s' * (self.threads_per_call != 1)} a call"
        return ", ".join([threads, side_by_side, *self._rest()])

    @property
    def changes(self) -> str:
        """For people: what differs from the default, `default` where nothing does."""
        layout = (self.threads_per_call, self.calls_at_once) != (1, 0)
        return str(self) if layout else ", ".join(self._rest()) or "default"

    def _rest(self) -> list[str]:
        parts = []
        if self.batch_size != 1:
            parts.append(f"batches of {self.batch_size}")
        if self.pinned:
            parts.append("threads pinned")
        if not self.arena:
            parts.append("no arena")
        if self.graph != "all":
            parts.append(f"graph {self.graph}")
        return parts


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """How a model is run on this CPU.

    Attributes:
        model: the file to open: the model, or its int8 sibling.
        settings: how.
        note: what a user should know of it, as a clause; may be empty.
    """

    model: Path
    settings: CpuSettings = CpuSettings()
    note: str = ""


Planner: TypeAlias = "Callable[[Path], CpuPlan]"
"""Is asked, once it is known that an ONNX model comes to run on the CPU, how."""
