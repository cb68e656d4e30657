"""One run from files to rows, as `geoinfer predict` does it, watched from within."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Literal

from geoinfer.batch.predict import PredictOptions, run_predict
from geoinfer.benchmark.resources import GpuMeter, Meter
from geoinfer.benchmark.result import Queue, Run
from geoinfer.errors import InterruptedRunError, OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from geoinfer.batch.monitor import Stage
    from geoinfer.batch.predict import PredictSummary
    from geoinfer.benchmark.setup import Opened

OUTPUT = "predictions.csv"


class Watch:
    """A `PipelineMonitor` that adds up, in memory that does not grow with the run."""

    def __init__(self) -> None:
        self.thread_seconds: defaultdict[str, float] = defaultdict(float)
        self.largest: Counter[str] = Counter()
        self._threads: set[int] = set()
        self._lock = threading.Lock()
        self._lasted: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._now: dict[str, int] = {}
        self._since = 0

    def task(self, stage: Stage, started: float, ended: float, photos: int) -> None:
        """See `PipelineMonitor`."""
        with self._lock:
            self.thread_seconds[stage] += ended - started
            self.largest[stage] = max(self.largest[stage], photos)
            self._threads.add(threading.get_ident())

    def queues(self, sizes: Mapping[str, int]) -> None:
        """See `PipelineMonitor`."""
        now = time.perf_counter_ns()
        for name, size in self._now.items():
            self._lasted[name][size] += now - self._since
        self._now, self._since = dict(sizes), now

    def queue(self, name: str) -> Queue:
        """One queue, each number weighted by how long it lasted, from the first task's start to the last one's."""
        lasted = self._lasted[name]
        whole = sum(lasted.values())
        if not whole:
            size = self._now.get(name, 0)
            return Queue(float(size), float(size), size, float(size == 0))
        passed, half = 0, 0
        for size in sorted(lasted):
            passed += lasted[size]
            if 2 * passed >= whole:
                half = size
                break
        mean = sum(size * span for size, span in lasted.items()) / whole
        return Queue(mean, float(half), max(*lasted, self._now[name]), lasted[0] / whole)

    def all_queues(self) -> dict[str, Queue]:
        """Every queue that was told of."""
        return {name: self.queue(name) for name in self._now}

    def idle_share(self, seconds: float) -> float:
        """Share of the time of all threads that did anything in which they did nothing, 0 to 1."""
        whole = len(self._threads) * seconds
        return max(0.0, 1 - sum(self.thread_seconds.values()) / whole) if whole else 0.0


class Silent:
    """A `RunObserver` that says nothing."""

    def started(self, resumed: int, failed: int) -> None:
        """See `RunObserver`."""

    def progressed(self, inputs: int, failed: int) -> None:
        """See `RunObserver`."""

    def writing(self) -> None:
        """See `RunObserver`."""


def run_once(
    opened: Opened, source: str, folder: Path, gpu: GpuMeter | None, *, kind: Literal["cold", "warm"], number: int
) -> tuple[Run, Watch]:
    """Locates the photos, and measures that.

    Args:
        opened: model, index and settings.
        source: the photos, as `run_predict` takes them; only read.
        folder: for what the run writes; an earlier run's result there is replaced.
        gpu: asked meanwhile.
        kind: of the run, for its record.
        number: of the round, likewise.

    Raises:
        InterruptedRunError: Ctrl-C.
        OutputError: there is no room in `folder`.
        GeoInferError: as `run_predict`.
    """
    watch = Watch()
    options = PredictOptions(
        sources=(source,),
        output=folder / OUTPUT,
        errors=folder / "errors.csv",
        batch_size=opened.batch_size,
        workers=opened.setup.workers,
        restart=True,
    )
    with Meter(gpu) as meter:
        summary = _predict(opened, options, watch)
    usage = meter.usage
    run = Run(
        kind=kind,
        round=number,
        seconds=summary.seconds,
        photos=summary.inputs,
        ok=summary.ok,
        failed=summary.inputs - summary.ok,
        images_per_second=summary.images_per_second,
        cpu_share=usage.cpu_share,
        peak_memory_bytes=usage.peak_memory_bytes,
        gpu_use=usage.gpu_use,
        gpu_watts=usage.gpu_watts,
        gpu_memory_bytes=usage.gpu_memory_bytes,
        queues=watch.all_queues(),
        thread_seconds=dict(watch.thread_seconds),
        idle_share=watch.idle_share(summary.seconds),
        decoded=dict(summary.decoded),
    )
    return run, watch


def _predict(opened: Opened, options: PredictOptions, watch: Watch) -> PredictSummary:
    try:
        return run_predict(opened.geolocator, options, Silent(), monitor=watch, open_decoding=opened.open_decoding)
    except InterruptedRunError as error:
        # Its hints are for a run that can go on; this one's folder goes with it.
        if isinstance(error.__cause__, OSError):
            reason = (error.__cause__.strerror or str(error.__cause__)).lower()
            raise OutputError(
                f"{options.output.parent}: cannot be written: {reason}",
                hint="make room, or set TMPDIR to a folder with more",
            ) from error
        raise InterruptedRunError("interrupted; nothing is kept of a benchmark that did not end") from None
