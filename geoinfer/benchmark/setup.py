"""What a benchmark runs: which model and index, where and how; opened alike in this process and in a cold one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from geoinfer.backends import ENGINE_SUFFIX
from geoinfer.backends.cpu_settings import CpuPlan, CpuSettings
from geoinfer.batch.predict import CPU_BATCH, GPU_BATCH
from geoinfer.engines.onnx_metadata import read_onnx
from geoinfer.engines.sidecar import read_sidecar
from geoinfer.geolocator import Geolocator
from geoinfer.machine import available_cores
from geoinfer.model_metadata import precision_of
from geoinfer.self_tuning.plan import MeasuredPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from geoinfer.backends import Embedder
    from geoinfer.batch.device_decoding import DeviceDecoding
    from geoinfer.images.loader import PhotoLoader


class DecodingOpener(Protocol):
    """Makes what `run_predict` opens its decoding with; None where the CPU decodes."""

    def __call__(
        self, mode: str, embedder: Embedder, /, *, workers: int, batch_size: int, tell: Callable[[str], None]
    ) -> Callable[[PhotoLoader], DeviceDecoding | None] | None:
        """For `--decode`, a model, and what a run is told; `tell` takes lines for a reader."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Plain values, so that they can be handed to another process.

    Attributes:
        engine: as `Geolocator.open` takes it.
        index: likewise.
        device: likewise.
        precision: `auto`, `fp32` or `int8`, on a CPU.
        decode: where JPEGs are decoded: `auto`, `cpu` or `gpu`.
        workers: CPU threads; 0 for one a core.
        ignore_kept: run the model by the default settings, whatever self-tuning found.
        plan: how the model runs on a CPU, once that is settled: `model`, `settings` and `note` of a `CpuPlan`.
    """

    engine: str | None = None
    index: str | None = None
    device: str = "auto"
    precision: str = "auto"
    decode: str = "auto"
    workers: int = 0
    ignore_kept: bool = False
    plan: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `Setup(**values)` is the inverse."""
        return asdict(self)

    def open(self, say: Callable[[str], None] = lambda _: None, *, decoding: DecodingOpener | None = None) -> Opened:
        """Opens model and index.

        On a CPU the model runs as self-tuning found before, if it did; nothing is tuned here.

        Args:
            say: takes lines for a reader, none of them twice.
            decoding: makes what decodes on a GPU; without it the CPU does.

        Raises:
            GeoInferError: as `Geolocator.open`.
        """
        settled: list[CpuPlan] = []
        said: set[str] = set()

        def say_once(line: str) -> None:
            if line not in said:
                said.add(line)
                say(line)

        measured = MeasuredPlan(precision=self.precision, say=say_once, ignore_kept=self.ignore_kept)

        def plan(model: Path) -> CpuPlan:
            found = measured(model) if self.plan is None else _plan_from(self.plan)
            settled.append(found)
            return found

        geolocator = Geolocator.open(self.engine, self.index, device=self.device, threads=1, plan=plan)
        embedder = geolocator.embedder
        on_cpu = embedder.device == "cpu"
        chosen = settled[0] if settled and on_cpu else None
        workers = self.workers or available_cores()
        batch_size = embedder.best_batch or (CPU_BATCH if on_cpu else GPU_BATCH)
        open_decoding = None
        if decoding is not None:
            open_decoding = decoding(self.decode, embedder, workers=workers, batch_size=batch_size, tell=say_once)
        plan_values = None if chosen is None else _plan_values(chosen)
        return Opened(
            geolocator,
            replace(self, workers=workers, plan=plan_values),
            batch_size=batch_size,
            plan=chosen,
            open_decoding=open_decoding,
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """A `Setup` that is open; a context manager.

    Attributes:
        geolocator: model and index.
        setup: with everything settled: opening it again gives the same.
        batch_size: photos that the model sees at once.
        plan: how the model runs, on a CPU; None on a GPU.
        open_decoding: as `run_predict` takes it.
    """

    geolocator: Geolocator
    setup: Setup
    batch_size: int
    plan: CpuPlan | None
    open_decoding: Callable[[PhotoLoader], DeviceDecoding | None] | None = None

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.geolocator.close()

    @property
    def precision(self) -> str:
        """Of the model that runs, as its own metadata or its sidecar say."""
        model = self.geolocator.model_file
        assert model is not None
        if model.suffix.lower() == ENGINE_SUFFIX:
            return read_sidecar(model).precision
        return precision_of(model, read_onnx(model).metadata, "")


def _plan_values(plan: CpuPlan) -> dict[str, Any]:
    return {"model": str(plan.model), "settings": plan.settings.as_dict(), "note": plan.note}


def _plan_from(values: dict[str, Any]) -> CpuPlan:
    return CpuPlan(Path(values["model"]), CpuSettings.from_dict(values["settings"]), values["note"])
