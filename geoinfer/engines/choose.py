"""Which of the engines beside a model fits the machine. What was chosen, or why nothing was, is always said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geoinfer.engines.flavors import FLAVORS, load_flavor
from geoinfer.engines.gpu import find_gpu
from geoinfer.engines.sidecar import check_engine_file, check_fits, read_sidecar
from geoinfer.errors import DeviceError, GeoInferError, MismatchError, MissingPackageError
from geoinfer.model_metadata import PRECISIONS

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.engines.gpu import Gpu
    from geoinfer.engines.sidecar import Sidecar


@dataclass(frozen=True, slots=True)
class Picked:
    """What was chosen.

    Attributes:
        engine: the engine; None if none fits.
        reason: why this one, or why none; empty if there are no engines at all.
    """

    engine: Path | None
    reason: str


def engines_beside(folder: Path) -> list[Path]:
    """The `.trt` files of a folder, by name; those that a build is still writing are hidden and left out."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() == ".trt" and not path.name.startswith(".")]
    except OSError:
        return []
    return sorted(path for path in found if path.is_file())


def pick_engine(folder: Path, identity: dict[str, Any], ordinal: int = 0) -> Picked:
    """The engine of a folder that gives a model's embeddings on a GPU of this machine.

    fp16 goes before int8 before fp32; then `tensorrt` before `tensorrt-rtx`, then by name. Files are compared with
    their sidecars in size; their checksums are left to whoever opens the one that was picked.

    Args:
        folder: where the engines are.
        identity: `name`, `dim` and `preprocessing` of the embedder, as `EmbedderIdentity.as_dict`.
        ordinal: N of `cuda:N`.
    """
    engines = engines_beside(folder)
    if not engines:
        return Picked(None, "")
    try:
        gpu = find_gpu(ordinal)
    except (DeviceError, MissingPackageError) as error:
        return Picked(None, f"{_count(engines)} beside the model, but {error}")
    fitting: list[tuple[int, int, str, Path, str]] = []
    faults: list[str] = []
    for engine in engines:
        try:
            sidecar = read_sidecar(engine)
            remark = _fits(engine, sidecar, identity, gpu)
        except GeoInferError as error:
            faults.append(str(error).removeprefix(f"{folder}/"))
            continue
        order = (PRECISIONS.index(sidecar.precision), FLAVORS.index(sidecar.flavor), engine.name)
        note = f"; {remark}" if remark else ""
        fitting.append(
            (*order, engine, f"{engine.name} beside the model fits: {sidecar.precision}, {sidecar.title}{note}")
        )
    if not fitting:
        return Picked(None, f"{_count(engines)} beside the model, none fits: {'; '.join(faults)}")
    *_, engine, reason = min(fitting)
    return Picked(engine, reason)


def _fits(engine: Path, sidecar: Sidecar, identity: dict[str, Any], gpu: Gpu) -> str:
    """A remark, or what `check_engine_file` and `check_fits` raise."""
    own = {"name": sidecar.identity, "dim": sidecar.dim, "preprocessing": sidecar.preprocessing}
    for key, value in own.items():
        if value != identity.get(key):
            raise _other_embedder(engine, key, value, identity.get(key))
    check_engine_file(engine, sidecar, contents=False)
    try:
        version = load_flavor(sidecar.flavor).version
    except MissingPackageError:
        version = None
    return check_fits(engine, sidecar, version, gpu)


def _other_embedder(engine: Path, key: str, value: object, wanted: object) -> GeoInferError:
    said = {"name": "the embedder", "dim": "the dimension", "preprocessing": "the preprocessing"}[key]
    return MismatchError(f"{engine}: {said} is {value}, the model's {wanted}")


def _count(engines: list[Path]) -> str:
    return "an engine lies" if len(engines) == 1 else f"{len(engines)} engines lie"
