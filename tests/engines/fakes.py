"""Stand-ins for what a machine without TensorRT and without a GPU lacks, and a sidecar written by hand."""

from __future__ import annotations

import hashlib
import json
from enum import IntEnum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from geoinfer.engines.flavors import MAGIC, Flavor

if TYPE_CHECKING:
    from pathlib import Path

PREPROCESSING = {
    "size": 8,
    "resize": "squash",
    "interpolation": "bilinear",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "colour": "rgb",
}
IDENTITY = {"name": "tiny:0", "dim": 4, "preprocessing": PREPROCESSING}


def plan_bytes(flavor: str = "tensorrt", version: tuple[int, ...] = (10, 13, 3, 9), length: int = 200) -> bytes:
    """What the first bytes of a plan say; the rest is anything."""
    header = MAGIC[flavor].ljust(24, b"\0") + bytes(version) + MAGIC[flavor]
    return header + bytes(i % 251 for i in range(length - len(header)))


def sidecar_values(data: bytes, **changes: Any) -> dict[str, Any]:
    """docs/file-formats.md, by hand."""
    values: dict[str, Any] = {
        "format": "geoinfer-engine",
        "version": 1,
        "geoinfer": "0.1.0",
        "flavor": "tensorrt",
        "flavor_version": "10.13.3.9",
        "engine": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "platform": "linux-x86_64",
        "gpu": {"name": "NVIDIA A10", "compute_capability": "8.6"},
        "portable": False,
        "compute_capabilities": ["8.6"],
        "precision": "fp16",
        "profile": {"min": 1, "opt": 64, "max": 256},
        "workspace_bytes": None,
        "input": {"name": "pixels", "dtype": "uint8", "shape": [-1, 8, 8, 3]},
        "output": {"name": "embeddings", "dtype": "float32", "shape": [-1, 4]},
        "onnx": {"name": "vit.onnx", "bytes": 7, "sha256": "0" * 64},
        "identity": "tiny:0",
        "dim": 4,
        "preprocessing": dict(PREPROCESSING),
        "source": "somewhere",
        "licence": "MIT",
        "weights_sha256": "1" * 64,
        "parity": {"onnx": {"min_cosine": 0.9999}, "engine": None},
        "build_seconds": 4.7,
    }
    return {**values, **changes}


def put_engine(path: Path, data: bytes | None = None, **changes: Any) -> Path:
    """An engine and its sidecar; of a flavour in `changes`, the plan is one of it too."""
    content = plan_bytes(changes.get("flavor", "tensorrt")) if data is None else data
    path.write_bytes(content)
    path.with_name(path.name + ".json").write_text(json.dumps(sidecar_values(content, **changes)))
    return path


class FakeRuntime:
    """`cuda.bindings.runtime` with as many GPUs as there are names."""

    def __init__(self, *gpus: tuple[str, int, int], error: int = 0) -> None:
        self.gpus = gpus
        self.error = error
        self.used: list[int] = []

    def cudaGetDeviceCount(self) -> tuple[int, int | None]:  # noqa: N802
        return (self.error, None) if self.error else (0, len(self.gpus))

    def cudaGetDeviceProperties(self, ordinal: int) -> tuple[int, Any]:  # noqa: N802
        name, major, minor = self.gpus[ordinal]
        return 0, SimpleNamespace(name=name.encode(), major=major, minor=minor, totalGlobalMem=24 << 30)

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, f"CUDA error {error}".encode()

    def cudaSetDevice(self, ordinal: int) -> tuple[int]:  # noqa: N802
        self.used.append(ordinal)
        return (0,)


class FakeApi:
    """As much of TensorRT's Python interface as building needs; it notes what it is told.

    Attributes:
        said: by name of the call.
        refuses: operators that its parser does not know.
        fails: what it logs instead of building.
    """

    __version__ = "10.13.3.9"

    class ILogger:
        def __init__(self) -> None:
            pass

    class NetworkDefinitionCreationFlag(IntEnum):
        STRONGLY_TYPED = 1

    class ComputeCapability(IntEnum):
        NONE = 0
        CURRENT = 1
        SM75 = 75
        SM80 = 80
        SM89 = 89
        SM120 = 120

    class MemoryPoolType(IntEnum):
        WORKSPACE = 0

    class BuilderFlag(IntEnum):
        TF32 = 5

    class HardwareCompatibilityLevel(IntEnum):
        NONE = 0
        AMPERE_PLUS = 1

    def __init__(self, flavor: str = "tensorrt") -> None:
        self.flavor_name = flavor
        self.said: dict[str, Any] = {}
        self.refuses: tuple[str, ...] = ()
        self.fails: list[str] = []
        self.no_cuda = False

    @property
    def flavor(self) -> Flavor:
        return Flavor(self.flavor_name, self.__version__, self, MAGIC[self.flavor_name])

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        if self.no_cuda:
            logger.log(1, "CUDA initialization failure with error: 35")
            raise TypeError("factory function returned nullptr")
        return _Builder(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return _Parser(self, network)


class _Builder:
    def __init__(self, api: FakeApi, logger: Any) -> None:
        self.api, self.logger = api, logger

    def create_network(self, flags: int) -> Any:
        self.api.said["network_flags"] = flags
        return SimpleNamespace()

    def create_builder_config(self) -> Any:
        return _Config(self.api)

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda *shapes: self.api.said.update(profile=shapes))

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        self.api.said["hardware"] = config.hardware_compatibility_level
        for message in self.api.fails:
            self.logger.log(1, message)
        return None if self.api.fails else plan_bytes(self.api.flavor_name)


class _Config:
    def __init__(self, api: FakeApi) -> None:
        self.said = api.said
        self.hardware_compatibility_level = FakeApi.HardwareCompatibilityLevel.NONE
        self.num_compute_capabilities = 0
        self.said["flags_on"] = {FakeApi.BuilderFlag.TF32}

    def clear_flag(self, flag: Any) -> None:
        self.said["flags_on"].discard(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.said["workspace"] = (pool, size)

    def set_compute_capability(self, capability: Any, number: int) -> bool:
        self.said.setdefault("capabilities", {})[number] = capability.name
        return number < self.num_compute_capabilities

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content and not content.startswith(b"timings") else SimpleNamespace(content=content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.said["timing_cache"] = (cache.content, ignore_mismatch)
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"timings, more of them")


class _Parser:
    def __init__(self, api: FakeApi, network: Any) -> None:
        self.api, self.network = api, network
        self.num_errors = len(api.refuses)

    def parse(self, data: Any, path: str) -> bool:
        import onnx

        self.api.said["parsed"] = bytes(data)
        self.api.said["parsed_path"] = path
        graph = onnx.load_model_from_string(bytes(data)).graph
        for ends, name in ((graph.input, "input"), (graph.output, "output")):
            tensors = [
                SimpleNamespace(
                    name=end.name,
                    dtype=SimpleNamespace(name={1: "FLOAT", 2: "UINT8", 10: "HALF"}[end.type.tensor_type.elem_type]),
                    shape=tuple(d.dim_value or -1 for d in end.type.tensor_type.shape.dim),
                )
                for end in ends
            ]
            setattr(self.network, f"num_{name}s", len(tensors))
            setattr(self.network, f"get_{name}", tensors.__getitem__)
        return not self.api.refuses

    def get_error(self, number: int) -> Any:
        operator = self.api.refuses[number]
        return SimpleNamespace(node_operator=lambda: operator, desc=lambda: f"no plugin for {operator}")

    def supports_operator(self, name: str) -> bool:
        return name == "Transpose"
