"""The two flavours of TensorRT: which are installed, and which one an engine is built with.

`tensorrt` compiles for the GPU in the machine and takes minutes; `tensorrt-rtx` compiles for all RTX GPUs at once, in
seconds and without a GPU, and finishes the work when the engine is first used. Their Python packages have nearly one
interface, so the rest of geoinfer asks for `Flavor.api` and seldom for the name.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Final

from geoinfer.engines.gpu import find_gpu
from geoinfer.errors import DeviceError, MissingPackageError, UsageError

TENSORRT: Final = "tensorrt"
TENSORRT_RTX: Final = "tensorrt-rtx"
FLAVORS: Final = (TENSORRT, TENSORRT_RTX)
"""In order of preference where there is a GPU."""

MAGIC: Final = {TENSORRT: b"ftrt", TENSORRT_RTX: b"vtrt"}
"""The first four bytes of a plan, as found in those of TensorRT 10 and TensorRT-RTX 1; documented nowhere."""

TITLES: Final = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}
"""For sentences."""

INSTALL: Final = {
    TENSORRT: "pip install 'geoinfer-toolkit[tensorrt]'",
    TENSORRT_RTX: "pip install 'geoinfer-toolkit[rtx]'",
}

_MODULES: Final = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}


@dataclass(frozen=True, slots=True)
class Flavor:
    """An imported TensorRT.

    Attributes:
        name: one of `FLAVORS`.
        version: such as `10.13.3.9`; an engine runs with this one alone.
        api: its module.
        magic: the first four bytes of its plans.
    """

    name: str
    version: str
    api: Any
    magic: bytes

    @property
    def title(self) -> str:
        """Name and version for sentences: `TensorRT-RTX 1.7.1.116`."""
        return f"{TITLES[self.name]} {self.version}"


def load_flavor(name: str) -> Flavor:
    """Imports a flavour.

    Raises:
        UsageError: there is no such flavour.
        MissingPackageError: it is not installed, or its libraries cannot be loaded.
    """
    if name not in FLAVORS:
        raise UsageError(f"--flavor {name}: expected {' or '.join(FLAVORS)}")
    try:
        api = importlib.import_module(_MODULES[name])
    except (ImportError, OSError) as error:  # ctypes says OSError of a library that is not there
        there = importlib.util.find_spec(_MODULES[name]) is not None
        reason = f"cannot be imported: {' '.join(str(error).split())}" if there else "is not installed"
        raise MissingPackageError(
            f"{TITLES[name]} {reason}", hint=f"{INSTALL[name]}; `geoinfer doctor` tells more"
        ) from error
    version = getattr(api, "__version__", None)
    if not isinstance(version, str) or not hasattr(api, "Builder"):
        raise MissingPackageError(f"the Python package of {TITLES[name]} is broken", hint=f"{INSTALL[name]} again")
    return Flavor(name, version, api, MAGIC[name])


def installed_flavors() -> list[str]:
    """Those of `FLAVORS` whose Python package is there, in their order; nothing is imported."""
    return [name for name in FLAVORS if importlib.util.find_spec(_MODULES[name]) is not None]


def default_flavor() -> Flavor:
    """What an engine is built with when nobody says: the one installed.

    Of two it is `tensorrt` where there is a GPU, as its engines are compiled for that very GPU, and else
    `tensorrt-rtx`, which needs none.

    Raises:
        MissingPackageError: neither is installed.
    """
    installed = installed_flavors()
    if not installed:
        raise MissingPackageError(
            "neither TensorRT nor TensorRT-RTX is installed",
            hint=f"{INSTALL[TENSORRT]} for the GPU in this machine, or {INSTALL[TENSORRT_RTX]} for RTX GPUs",
        )
    if len(installed) == 1:
        return load_flavor(installed[0])
    try:
        find_gpu()
    except (DeviceError, MissingPackageError):
        return load_flavor(TENSORRT_RTX)
    return load_flavor(TENSORRT)
