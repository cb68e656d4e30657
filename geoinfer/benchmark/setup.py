"""What a benchmark runs: which model and index, where and how; opened alike in this process and in a cold one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True, slots=True)
class Setup:
    """Plain values, so that they can be handed to another process.

    Attributes:
        engine: as `Geolocator.open` takes it.
        index: likewise.
        device: likewise.
        precision: `auto`, `fp32` or `int8`, on a CPU.
        workers: CPU threads.
        plan: how the model runs on a CPU, once that is settled: `model`, `settings` and `note` of a `CpuPlan`.
    """

    engine: str | None = None
    index: str | None = None
    device: str = "auto"
    precision: str = "auto"
    workers: int = 0
    plan: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `Setup(**values)` is the inverse."""
        return asdict(self)

    def open(self, say: Callable[[str], None] = lambda _: None) -> Opened:
        """Opens model and index.

        On a CPU the model runs as self-tuning found before, if it did; nothing is tuned here.

        Args:
            say: takes lines for a reader.

        Raises:
            GeoInferError: as `Geolocator.open`.
        """
        settled: list[CpuPlan] = []
        measured = MeasuredPlan(precision=self.precision, say=say)

        def plan(model: Path) -> CpuPlan:
            found = measured(model) if self.plan is None else _plan_from(self.plan)
            settled.append(found)
            return found

        geolocator = Geolocator.open(self.engine, self.index, device=self.device, threads=1, plan=plan)
        embedder = geolocator.embedder
        on_cpu = embedder.device == "cpu"
        chosen = settled[0] if settled and on_cpu else None
        return Opened(
            geolocator,
            replace(
                self,
                workers=self.workers or available_cores(),
                plan=None if chosen is None else _plan_values(chosen),
            ),
            batch_size=embedder.best_batch or (CPU_BATCH if on_cpu else GPU_BATCH),
            plan=chosen,
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """A `Setup` that is open; a context manager.

    Attributes:
        geolocator: model and index.
        setup: with everything settled: opening it again gives the same.
        batch_size: photos that the model sees at once.
        plan: how the model runs, on a CPU; None on a GPU.
    """

    geolocator: Geolocator
    setup: Setup
    batch_size: int
    plan: CpuPlan | None

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
