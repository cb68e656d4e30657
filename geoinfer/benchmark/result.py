"""What a benchmark measured: plain values, written as JSON and read again by another run to compare with."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import numpy as np

from geoinfer.errors import InputError, OutputError
from geoinfer.integrity import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FORMAT: Final = 1
"""Version of the JSON."""

COLD: Final = "cold"
WARM: Final = "warm"

READ: Final = "read"
DECODE: Final = "decode"
RESIZE: Final = "resize"
EMBED: Final = "embed"
SEARCH: Final = "search"
WRITE: Final = "write"
DECODE_ON_DEVICE: Final = "decode on device"
EMBED_TOGETHER: Final = "embed, one session on all cores"
STAGES: Final = (READ, DECODE, RESIZE, EMBED, SEARCH, WRITE)
"""The stages of a photo. With `DECODE_ON_DEVICE` a GPU decodes and resizes some, or all, of them; `EMBED_TOGETHER` is
another way of embedding."""

_KEYS: Final = frozenset({"format", "geoinfer", "result"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of how long one item took, in milliseconds; of all values, none left out.

    Attributes:
        p50, p90, p95, p99: percentiles, interpolated between the two nearest values.
        max: the longest.
        count: how many were timed.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Percentiles:
        """Of durations in seconds, at least one."""
        values = np.asarray(seconds, dtype=np.float64) * 1e3
        p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99)).tolist()
        return cls(p50, p90, p95, p99, float(values.max()), len(values))


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage alone, with nothing else going on.

    Attributes:
        name: one of `STAGES`, `DECODE_ON_DEVICE` or `EMBED_TOGETHER`.
        rates: photos a second on all cores (or on the GPU), one a round.
        latency: how long one item takes while all cores are at it, over all rounds.
        batch: photos in an item: 1 where each photo is timed for itself.
        device: `cpu`, or the GPU that does it.
        share: of the inputs, those that come to this stage, 0 to 1: a photo that cannot be decoded is never embedded.
    """

    name: str
    rates: list[float]
    latency: Percentiles
    batch: int = 1
    device: str = "cpu"
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Queue:
    """How many items waited at a place of the pipeline, over the time of a run.

    Attributes:
        mean: weighted by how long each number lasted.
        p50: the number at or below which it was for half of the time.
        max: the most seen.
        empty_share: share of the time with nothing waiting, 0 to 1.
    """

    mean: float
    p50: float
    max: int
    empty_share: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run from files to rows.

    Attributes:
        kind: `cold`: a fresh process, and photos that were dropped from the page cache; `warm`: neither.
        round: counted from 0; the stages, bound and yardstick of the same round were measured next to it.
        seconds: from the first photo to the last row written; the opening of the model is not in it.
        photos: inputs.
        ok: located.
        failed: all others, skipped ones too.
        images_per_second: photos / seconds.
        cpu_share: processor time of the process over seconds x cores, 0 to 1.
        peak_memory_bytes: the most that was resident (VmHWM): of a cold run's own process; of a warm run what
            benchmark and run needed together. None where the system does not say.
        gpu_use: mean share of time that the GPU was busy, 0 to 1; None without a GPU or its library.
        gpu_watts: its mean power.
        gpu_memory_bytes: the most that was in use on the GPU, by whomever.
        queues: by name: `filling` (photos that wait for a thread), `to embed` (batches), `to finish` (blocks),
            `finished` (blocks that wait to be written), `idle threads`, and `to decode on device` where that is done.
        thread_seconds: by stage of the pipeline (`prepare` is read, decode and resize; `finish` is search), over all
            threads.
        idle_share: share of the threads' time in which they had nothing to do, 0 to 1.
        start_seconds: of a cold run: from the start of its process until the first photo could be taken: Python,
            imports, opening model and index.
        truly_cold: of a cold run: whether the photos really came from the disk.
        decoded: photos by who decoded them, `gpu`, `fell_back` (to the CPU) and `cpu`, where a GPU did some.
    """

    kind: Literal["cold", "warm"]
    round: int
    seconds: float
    photos: int
    ok: int
    failed: int
    images_per_second: float
    cpu_share: float
    peak_memory_bytes: int | None = None
    gpu_use: float | None = None
    gpu_watts: float | None = None
    gpu_memory_bytes: int | None = None
    queues: dict[str, Queue] = field(default_factory=dict)
    thread_seconds: dict[str, float] = field(default_factory=dict)
    idle_share: float = 0.0
    start_seconds: float | None = None
    truly_cold: bool = False
    decoded: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Any) -> Run:
        """The inverse of `dataclasses.asdict`; raises ValueError on anything else."""
        return _decoded(cls, values, "run")


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Embedding alone, by how many photos the model sees at once.

    Attributes:
        batch: photos in a call.
        rates: photos a second on all cores (or on the GPU), one a round.
    """

    batch: int
    rates: list[float]


@dataclass(frozen=True, slots=True)
class Yardstick:
    """How fast the machine was in a round, by work that no version of geoinfer changes.

    Attributes:
        matmul_gflops: float32 matrix products by NumPy on all cores.
        decode_per_second: full decodes of one picture by Pillow on all cores.
    """

    matmul_gflops: float
    decode_per_second: float


@dataclass(frozen=True, slots=True)
class Roofline:
    """What the device allows for the model, and how much of it is reached.

    Attributes:
        flop_per_image: floating-point operations of the model for one photo (a multiplication and an addition are two).
        bytes_per_image: bytes that must come from memory for it.
        peak_flops: FLOP/s of the device, measured.
        peak_bytes_per_second: of its memory, measured.
        images_per_second: the most that these allow.
        share: of that, reached by embedding alone, 0 to 1.
        device: of what these figures are.
    """

    flop_per_image: float
    bytes_per_image: float
    peak_flops: float
    peak_bytes_per_second: float
    images_per_second: float
    share: float
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Result:
    """All that a benchmark measured.

    Attributes:
        settings: what was run. `engine`, `engine_sha256`, `precision`, `device`, `device_reason`, `workers`,
            `decode`, `batch_size`, `calls_at_once`, `cpu_settings` (plain values, or None), `k`, `aggregate`,
            `index_references`, `index_device`, `repeat`, and `photos`: a dict of `description`, `count`, `total_bytes`,
            `mean_bytes`, `classes` (how many of each kind and size), `digest` (of their names and sizes), `generated`
            (its kind, count and seed, or None).
        machine: where. `cpu`, `cores`, `memory_bytes`, `system`, `python`, `geoinfer`, `packages` (name to version),
            `gpu` (name, driver and memory, or None).
        stages: see `Stage`.
        runs: cold and warm, in the order they were made.
        batch_sizes: what `--batch-sizes` asked for.
        bounds: photos a second, one a round: what all cores (and the GPU) would do if nothing ever waited for anything.
        yardsticks: one a round.
        roofline: None where the model's operations cannot be counted.
        notes: sentences for a reader, such as that files could not be dropped from the page cache.
        verdict: one sentence: what holds it back, and what to change.
        measured_at: UTC, ISO 8601.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    stages: list[Stage]
    runs: list[Run]
    batch_sizes: list[BatchSize] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    yardsticks: list[Yardstick] = field(default_factory=list)
    roofline: Roofline | None = None
    notes: list[str] = field(default_factory=list)
    verdict: str = ""
    measured_at: str = ""

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, if it was measured."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def runs_of(self, kind: str) -> list[Run]:
        """The cold runs, or the warm ones."""
        return [run for run in self.runs if run.kind == kind]

    def shares_of_bound(self) -> list[float]:
        """Each warm run's photos a second over its own round's bound."""
        return [run.images_per_second / self.bounds[run.round] for run in self.runs_of(WARM) if self.bounds]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the version of the format."""
        return {"format": FORMAT, "geoinfer": "benchmark", "result": dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> Result:
        """The inverse of `as_dict`.

        Raises:
            ValueError: they are of another format, or damaged; the message says what.
        """
        if not isinstance(values, dict) or set(values) != _KEYS or values["geoinfer"] != "benchmark":
            raise ValueError("it is no result of `geoinfer benchmark`")
        if values["format"] != FORMAT:
            raise ValueError(f"it has format {values['format']!r}; this geoinfer reads format {FORMAT}")
        return _decoded(cls, values["result"], "result")


def write_result(path: Path, result: Result) -> None:
    """Writes a result as JSON, atomically.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        write_json(path, result.as_dict())
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"--json {path}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def read_result(path: Path) -> Result:
    """Reads what `write_result` wrote.

    Raises:
        InputError: the file is missing, unreadable or no such result.
    """
    try:
        return Result.from_dict(json.loads(path.read_bytes()))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        reason = str(error) if not isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else "it is not JSON"
        raise InputError(f"{path}: {reason}", hint="`geoinfer benchmark --json FILE` writes one") from error


def _decoded(kind: type[T], value: Any, where: str) -> T:
    """`value` from JSON as a dataclass, every field checked against its annotation; ValueError says which is wrong."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")  # noqa: TRY004 - of what a file holds, like all the others
    known = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]  # only dataclasses come here
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"{where} has a field {unknown[0]!r} that this geoinfer does not know")
    hints = typing.get_type_hints(kind)
    needed = [
        name
        for name, item in known.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in value]:
        raise ValueError(f"{where} lacks {missing[0]!r}")
    return kind(**{name: _checked(hints[name], found, f"{where}.{name}") for name, found in value.items()})


def _checked(hint: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        kinds = [kind for kind in inner if kind is not type(None)]
        return None if value is None else _checked(kinds[0], value, where)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{where} is {value!r}, none of {', '.join(map(str, inner))}")
        return value
    if origin is list and isinstance(value, list):
        return [_checked(inner[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(key): _checked(inner[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _decoded(typing.cast("type[Any]", hint), value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ValueError(f"{where} is {value!r}; expected {getattr(hint, '__name__', hint)}")
