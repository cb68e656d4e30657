"""`Sidecar`: everything about an engine, as values, and from the plain ones of its file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from geoinfer.engines.flavors import FLAVORS, TITLES
from geoinfer.engines.onnx_metadata import TensorSpec
from geoinfer.errors import UsageError
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.model_metadata import PRECISIONS

FORMAT: Final = "geoinfer-engine"
VERSION: Final = 1
DEFAULT_PROFILE: Final = (1, 64, 64)
"""Smallest, best and largest batch. geoinfer never computes more at once than the best."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that the sidecar was written for; `name` is empty for the engine, which may be renamed."""

    bytes: int
    sha256: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """Batches: the smallest and largest that the engine takes, and the one that it is tuned for."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, slots=True)
class BuiltOn:
    """The GPU that an engine was built on."""

    name: str
    compute_capability: str


@dataclass(frozen=True, slots=True)
class Parity:
    """What comparisons found: of the ONNX model with the weights it came from, and of the engine with the ONNX model.

    Attributes:
        onnx: as the export wrote it into the model's metadata; None if it did not.
        engine: `min_cosine`, `pictures` and `against`; None if the engine was not checked.
    """

    onnx: dict[str, Any] | None
    engine: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Everything about an engine; docs/file-formats.md describes the file.

    Attributes:
        geoinfer: version that built it.
        flavor: one of `FLAVORS`.
        flavor_version: of the TensorRT that built it, the only one that runs it.
        engine: the plan.
        platform: such as `linux-x86_64`.
        gpu: what it was built on; None where there was none.
        portable: whether it was built for more than the GPU it was built on.
        compute_capabilities: what it runs on: `8.9`, or `8.0+` for that one and all later ones.
        precision: of the arithmetic, as the ONNX model has it.
        profile: batches.
        workspace_bytes: the limit it was built with, None without one.
        input: uint8 (-1, size, size, 3).
        output: (-1, dim).
        onnx: the model it was built from.
        identity: name of the embedding space.
        dim: length of an embedding.
        preprocessing: as `Preprocessing.as_dict`.
        source: where the weights come from.
        licence: of the weights.
        weights_sha256: of the weights.
        parity: what comparisons found.
        build_seconds: how long TensorRT took.
    """

    geoinfer: str
    flavor: str
    flavor_version: str
    engine: StoredFile
    platform: str
    gpu: BuiltOn | None
    portable: bool
    compute_capabilities: tuple[str, ...]
    precision: str
    profile: Profile
    workspace_bytes: int | None
    input: TensorSpec
    output: TensorSpec
    onnx: StoredFile
    identity: str
    dim: int
    preprocessing: dict[str, Any]
    source: str
    licence: str
    weights_sha256: str
    parity: Parity
    build_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the file."""
        values = asdict(self)
        del values["engine"]["name"]
        return {"format": FORMAT, "version": VERSION, **json.loads(json.dumps(values))}

    def runs_on(self, compute_capability: tuple[int, int]) -> bool:
        """Whether it was built for GPUs of this compute capability."""
        for entry in self.compute_capabilities:
            built_for = parsed_capability(entry.removesuffix("+"))
            if compute_capability == built_for or (entry.endswith("+") and compute_capability > built_for):
                return True
        return False

    @property
    def title(self) -> str:
        """Flavour and version for sentences."""
        return f"{TITLES[self.flavor]} {self.flavor_version}"


def parsed_capability(text: str) -> tuple[int, int]:
    """`8.9` to (8, 9).

    Raises:
        UsageError: anything else.
    """
    major, dot, minor = text.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal() and len(text) <= 6):
        raise UsageError(f"compute capability {text!r}: expected two numbers, as in 8.9")
    return int(major), int(minor)


def parsed_sidecar(values: dict[str, Any]) -> Sidecar:
    """The inverse of `Sidecar.as_dict`; format and version are the caller's to look at.

    Raises:
        KeyError: a field is missing.
        TypeError: one is of another type.
        ValueError: one makes no sense.
    """
    engine, onnx, parity = (_object(values, key) for key in ("engine", "onnx", "parity"))
    gpu = None if values["gpu"] is None else _object(values, "gpu")
    flavor = _text(values, "flavor")
    if flavor not in FLAVORS:
        raise ValueError(f"flavor is {flavor!r}; expected {' or '.join(FLAVORS)}")
    precision = _text(values, "precision")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(sorted(PRECISIONS))}")
    profile = Profile(*(_whole(_object(values, "profile"), key) for key in ("min", "opt", "max")))
    if not 1 <= profile.min <= profile.opt <= profile.max:
        raise ValueError(f"the profile's batches are {profile.min}, {profile.opt} and {profile.max}")
    capabilities = values["compute_capabilities"]
    if not isinstance(capabilities, list) or not capabilities or not all(isinstance(c, str) for c in capabilities):
        raise ValueError("compute_capabilities is no list of texts")
    for capability in capabilities:
        parsed_capability(capability.removesuffix("+"))
    portable, seconds = values["portable"], values["build_seconds"]
    if not isinstance(portable, bool) or isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError("portable or build_seconds is of another type")
    if not 0 <= seconds < 1e12:
        raise ValueError(f"build_seconds is {seconds}")
    preprocessing = Preprocessing.from_dict(_object(values, "preprocessing"))
    sidecar = Sidecar(
        geoinfer=_text(values, "geoinfer"),
        flavor=flavor,
        flavor_version=_text(values, "flavor_version"),
        engine=StoredFile(_whole(engine, "bytes"), _text(engine, "sha256")),
        platform=_text(values, "platform"),
        gpu=None if gpu is None else BuiltOn(_text(gpu, "name"), _text(gpu, "compute_capability")),
        portable=portable,
        compute_capabilities=tuple(capabilities),
        precision=precision,
        profile=profile,
        workspace_bytes=None if values["workspace_bytes"] is None else _whole(values, "workspace_bytes"),
        input=_tensor(_object(values, "input")),
        output=_tensor(_object(values, "output")),
        onnx=StoredFile(_whole(onnx, "bytes"), _text(onnx, "sha256"), _file_name(onnx)),
        identity=_text(values, "identity"),
        dim=_whole(values, "dim"),
        preprocessing=preprocessing.as_dict(),
        source=_text(values, "source"),
        licence=_text(values, "licence"),
        weights_sha256=_text(values, "weights_sha256"),
        parity=Parity(_object_or_none(parity, "onnx"), _object_or_none(parity, "engine")),
        build_seconds=float(seconds),
    )
    size = preprocessing.size
    if (sidecar.input.dtype, sidecar.input.shape) != ("uint8", (-1, size, size, 3)):
        raise ValueError(f"the input is {sidecar.input}, the preprocessing gives {size} pixels")
    if sidecar.output.dtype not in ("float32", "float16") or sidecar.output.shape != (-1, sidecar.dim):
        raise ValueError(f"the output is {sidecar.output}, an embedding has {sidecar.dim} numbers")
    return sidecar


def _object(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values[key]
    if not isinstance(value, dict):
        raise TypeError(f"{key} is no object")
    return value


def _object_or_none(values: dict[str, Any], key: str) -> dict[str, Any] | None:
    return None if values[key] is None else _object(values, key)


def _text(values: dict[str, Any], key: str) -> str:
    value = values[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is no text")
    return value


def _whole(values: dict[str, Any], key: str) -> int:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {value!r}; expected a whole number above 0")
    return value


def _file_name(values: dict[str, Any]) -> str:
    name = _text(values, "name")
    if not name or "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
        raise ValueError(f"{name!r} is no name of a file")
    return name


def _tensor(values: dict[str, Any]) -> TensorSpec:
    shape = values["shape"]
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in shape):
        raise TypeError("shape is no list of whole numbers")
    return TensorSpec(_text(values, "name"), _text(values, "dtype"), tuple(shape))
