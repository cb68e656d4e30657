"""A bundle's model, or an engine that was built from it and lies beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geoinfer.backends import open_embedder
from geoinfer.backends.base import parse_device
from geoinfer.engines.choose import engines_beside, pick_engine
from geoinfer.errors import DeviceError, MismatchError, MissingPackageError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.backends.base import Embedder, EmbedderIdentity
    from geoinfer.images import Preprocessing


def open_beside(
    model: Path,
    identity: EmbedderIdentity,
    device: str = "auto",
    *,
    preprocessing: Preprocessing | None = None,
    threads: int = 0,
) -> tuple[Embedder, Path]:
    """Opens the engine beside a model that fits the GPU; where there is none, or on the CPU, the model itself.

    Where there are engines and none is used, `device_reason` says why.

    Args:
        model: the ONNX model.
        identity: what it is, before it is opened.
        device: as for `open_embedder`.
        preprocessing: likewise.
        threads: likewise.

    Returns:
        The embedder and the file that it runs.

    Raises:
        GeoInferError: as `open_embedder` does for the model. If an engine would have served, it says why that did not.
    """
    kind, ordinal = parse_device(device)
    if kind == "cpu" or not engines_beside(model.parent):
        return open_embedder(model, device, preprocessing=preprocessing, threads=threads), model
    picked = pick_engine(model.parent, identity.as_dict(), ordinal)
    reason = picked.reason
    if picked.engine is not None:
        try:
            return open_embedder(picked.engine, device, preprocessing=preprocessing), picked.engine
        except (DeviceError, MismatchError, MissingPackageError, ModelError) as error:
            reason = f"{picked.engine.name} beside the model was chosen, but: {error}"
    try:
        embedder = open_embedder(model, device, preprocessing=preprocessing, threads=threads)
    except (DeviceError, MissingPackageError) as error:
        raise type(error)(f"{error}; {reason}", hint=error.hint) from error
    embedder.device_reason += f"; {reason}"
    embedder.fell_back = embedder.fell_back or picked.engine is not None
    return embedder, model
