"""A model as it is, as a planner wants it on a CPU, or an engine that was built from it and lies beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geoinfer.backends import ENGINE_SUFFIX, open_embedder
from geoinfer.backends.base import parse_device
from geoinfer.engines.choose import engines_beside, pick_engine
from geoinfer.errors import DeviceError, MismatchError, MissingPackageError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.backends.base import Embedder, EmbedderIdentity
    from geoinfer.backends.cpu_settings import CpuSettings, Planner
    from geoinfer.images import Preprocessing


def open_planned(
    model: Path,
    device: str = "auto",
    *,
    preprocessing: Preprocessing | None = None,
    threads: int = 0,
    settings: CpuSettings | None = None,
    plan: Planner | None = None,
) -> tuple[Embedder, Path]:
    """Opens a model; if it comes to run on the CPU, as the planner says. What it notes is added to `device_reason`.

    Args:
        model: as for `open_embedder`, as is all that follows.
        device: likewise.
        preprocessing: likewise.
        threads: likewise.
        settings: likewise.
        plan: is asked how; None for `settings`.

    Returns:
        The embedder and the file that it runs.

    Raises:
        GeoInferError: as `open_embedder` does, or as the planner does.
    """
    note = ""
    if plan is not None and model.is_file() and model.suffix.lower() != ENGINE_SUFFIX:
        from geoinfer.backends.onnx_runtime import runs_on_cpu

        if runs_on_cpu(device):
            planned = plan(model)
            model, settings, note = planned.model, planned.settings, planned.note
    embedder = open_embedder(model, device, preprocessing=preprocessing, threads=threads, settings=settings)
    if note:
        embedder.device_reason += f"; {note}"
    return embedder, model


def open_beside(
    model: Path,
    identity: EmbedderIdentity,
    device: str = "auto",
    *,
    preprocessing: Preprocessing | None = None,
    threads: int = 0,
    settings: CpuSettings | None = None,
    plan: Planner | None = None,
) -> tuple[Embedder, Path]:
    """Opens the engine beside a model that fits the GPU; where there is none, or on the CPU, the model itself.

    Where there are engines and none is used, `device_reason` says why.

    Args:
        model: the ONNX model.
        identity: what it is, before it is opened.
        device: as for `open_embedder`.
        preprocessing: likewise.
        threads: likewise.
        settings: likewise.
        plan: as for `open_planned`.

    Returns:
        The embedder and the file that it runs.

    Raises:
        GeoInferError: as `open_embedder` does for the model. If an engine would have served, it says why that did not.
    """
    kind, ordinal = parse_device(device)
    if kind == "cpu" or not engines_beside(model.parent):
        return open_planned(model, device, preprocessing=preprocessing, threads=threads, settings=settings, plan=plan)
    picked = pick_engine(model.parent, identity.as_dict(), ordinal)
    reason = picked.reason
    if picked.engine is not None:
        try:
            return open_embedder(picked.engine, device, preprocessing=preprocessing), picked.engine
        except (DeviceError, MismatchError, MissingPackageError, ModelError) as error:
            reason = f"{picked.engine.name} beside the model was chosen, but: {error}"
    try:
        embedder, opened = open_planned(
            model, device, preprocessing=preprocessing, threads=threads, settings=settings, plan=plan
        )
    except (DeviceError, MissingPackageError) as error:
        raise type(error)(f"{error}; {reason}", hint=error.hint) from error
    embedder.device_reason += f"; {reason}"
    embedder.fell_back = embedder.fell_back or picked.engine is not None
    return embedder, opened
