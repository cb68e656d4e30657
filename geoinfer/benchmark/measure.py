"""All of a benchmark, in rounds: yardstick, stages, a warm run and a cold one next to each other.

A machine that slows down between two rounds slows everything of a round alike, so ratios are taken within a round.
"""

from __future__ import annotations

import datetime as dt
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from geoinfer.backends import open_embedder
from geoinfer.benchmark.cold import ColdRun, ColdRunFailedError, drop_from_cache, measure_cold
from geoinfer.benchmark.end_to_end import run_once
from geoinfer.benchmark.peaks import measure_peaks
from geoinfer.benchmark.resources import GpuMeter, machine_of
from geoinfer.benchmark.result import (
    DECODE,
    DECODE_ON_DEVICE,
    EMBED,
    EMBED_TOGETHER,
    READ,
    RESIZE,
    SEARCH,
    WARM,
    WRITE,
    BatchSize,
    Percentiles,
    Result,
    Roofline,
    Run,
    Stage,
    Yardstick,
)
from geoinfer.benchmark.roofline import operations_of, roofline
from geoinfer.benchmark.stages import StageBench
from geoinfer.benchmark.timing import Timings, bound
from geoinfer.benchmark.yardstick import YardstickBench
from geoinfer.errors import DeviceError, MissingPackageError, ModelError
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from geoinfer.benchmark.photos import Photos
    from geoinfer.benchmark.setup import Opened

_ORDER: Final = (READ, DECODE, DECODE_ON_DEVICE, RESIZE, EMBED, EMBED_TOGETHER, SEARCH, WRITE)
_NOT_COLD: Final = "The cold runs are not cold: {why}."


@dataclass(slots=True)
class _Measured:
    """What the rounds have brought so far."""

    stages: defaultdict[str, list[Timings]] = field(default_factory=lambda: defaultdict(list))
    batches: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    runs: list[Run] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    yardsticks: list[Yardstick] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cold: bool = True

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def run_benchmark(
    opened: Opened,
    photos: Photos,
    folder: Path,
    *,
    repeat: int,
    batch_sizes: Sequence[int] = (),
    say: Callable[[str], None],
) -> Result:
    """Measures; the verdict is left to `geoinfer.benchmark.bottleneck`.

    Args:
        opened: model, index and settings.
        photos: the photos; they are only read.
        folder: an empty one, for everything that is written.
        repeat: rounds.
        batch_sizes: embedding alone is measured with these, too.
        say: takes lines for a reader.

    Raises:
        InputError: none of the photos can be decoded.
        InterruptedRunError: Ctrl-C.
        GeoInferError: model, index or outputs fail.
    """
    gpu = GpuMeter.open(opened.geolocator.embedder.device)
    source = photos.write_list(folder / "photos.list")
    say("warming up")
    # Not counted: it fills the page cache and sets up what is set up once, and shows how many are searched for at once.
    _, watch = run_once(opened, source, folder, gpu, kind=WARM, number=0)
    bench = StageBench(
        opened,
        photos.paths,
        block_size=max(watch.largest["finish"], 1),
    )
    yardstick = YardstickBench()
    measured = _Measured()
    for number in range(repeat):
        measured.yardsticks.append(yardstick.measure())
        _measure_stages(opened, bench, folder, batch_sizes, measured)
        run, _ = run_once(opened, source, folder, gpu, kind=WARM, number=number)
        measured.runs.append(run)
        words = f"round {number + 1} of {repeat}: {run.images_per_second:.1f} photos/s"
        if measured.cold:
            cold = _cold_run(opened, photos, source, folder, number, measured)
            words += "" if cold is None else f", cold {cold.images_per_second:.1f}"
        say(f"{words}, bound {measured.bounds[-1]:.1f}")
    return Result(
        settings=_settings(opened, photos, repeat),
        machine=machine_of(gpu),
        stages=[_stage(name, measured.stages[name]) for name in _ORDER if name in measured.stages],
        runs=measured.runs,
        batch_sizes=[BatchSize(batch, rates) for batch, rates in measured.batches.items()],
        bounds=measured.bounds,
        yardsticks=measured.yardsticks,
        roofline=_roofline(opened, measured),
        notes=measured.notes,
        measured_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def _measure_stages(
    opened: Opened, bench: StageBench, folder: Path, batch_sizes: Sequence[int], measured: _Measured
) -> None:
    stages = bench.prepare()
    stages[EMBED], embeddings = bench.embed()
    together = _embed_together(opened, bench)
    if together is not None:
        stages[EMBED_TOGETHER] = together
    if not len(embeddings):
        raise ModelError("the model gave none of the photos an embedding: there is nothing to measure")
    stages[SEARCH] = bench.search(embeddings)
    stages[WRITE] = bench.write(folder)
    for batch in batch_sizes:
        try:
            measured.batches[batch].append(bench.embed(batch_size=batch)[0].rate)
        except ModelError as error:
            measured.batches.pop(batch, None)
            measured.note(f"A batch of {batch} was not measured: {error}.")
    for name, timings in stages.items():
        measured.stages[name].append(timings)
    measured.bounds.append(bound(stages))


def _embed_together(opened: Opened, bench: StageBench) -> Timings | None:
    """One session on all cores; None where a run does it that way already, or on a GPU."""
    plan = opened.plan
    cores = available_cores()
    if plan is None or cores == 1 or plan.settings.threads_per_call >= cores:
        return None
    # Opened anew each time: for as long as it is not measured, it would only take memory.
    with open_embedder(plan.model, "cpu") as embedder:
        return bench.embed_together(embedder)


def _cold_run(
    opened: Opened, photos: Photos, source: str, folder: Path, number: int, measured: _Measured
) -> Run | None:
    why_not = drop_from_cache(photos.paths)
    if why_not:
        measured.note(_NOT_COLD.format(why=why_not))
    try:
        run = measure_cold(ColdRun(opened.setup, source, str(folder), number), truly_cold=not why_not)
    except ColdRunFailedError as error:
        measured.note(f"There are no cold runs: the process of one failed, {error}.")
        measured.cold = False
        return None
    measured.runs.append(run)
    return run


def _stage(name: str, rounds: Sequence[Timings]) -> Stage:
    return Stage(
        name,
        [timings.rate for timings in rounds],
        Percentiles.of([second for timings in rounds for second in timings.seconds]),
        rounds[0].batch,
        rounds[0].device,
        statistics.fmean(timings.share for timings in rounds),
    )


def _roofline(opened: Opened, measured: _Measured) -> Roofline | None:
    model = opened.geolocator.model_file
    assert model is not None
    device = opened.geolocator.embedder.device
    reached = statistics.median(timings.rate for timings in measured.stages[EMBED])
    try:
        return roofline(
            operations_of(model), measure_peaks(device), batch=opened.batch_size, reached=reached, device=device
        )
    except (ModelError, DeviceError, MissingPackageError) as error:
        measured.note(f"There is no roofline: {error}.")
        return None


def _settings(opened: Opened, photos: Photos, repeat: int) -> dict[str, Any]:
    geolocator = opened.geolocator
    embedder = geolocator.embedder
    return {
        "engine": embedder.identity.name,
        "engine_sha256": embedder.fingerprint,
        "precision": opened.precision,
        "device": embedder.device,
        "device_reason": embedder.device_reason,
        "workers": opened.setup.workers,
        "decode": opened.setup.decode,
        "batch_size": opened.batch_size,
        "calls_at_once": embedder.calls_at_once,
        "cpu_settings": None if opened.plan is None else opened.plan.settings.as_dict(),
        "k": geolocator.answer.k,
        "aggregate": geolocator.answer.aggregate,
        "index_references": geolocator.index.index.size,
        "index_device": geolocator.index_device.name,
        "repeat": repeat,
        "photos": photos.as_dict(),
    }
