"""The fake GPU of tests/backends, with kernels that run; and a codec of Pillow's in nvImageCodec's place."""

# ruff: noqa: N802 - the functions are called as CUDA calls them

from __future__ import annotations

import ctypes
import io
import sys
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from geoinfer.backends.cuda import Cuda
from geoinfer.images.device.decoder import DeviceDecoder
from geoinfer.images.device.nvimagecodec import Picture
from tests.backends.fake_tensorrt import Error, FakeCuda, Work
from tests.images.device.reference import run_passes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from geoinfer.images.preprocessing import Preprocessing

CODE = b"the kernels"


class FakeDriver(types.ModuleType):
    """`cuda.bindings.driver`: starts kernels in the streams of a `FakeCuda`.

    Attributes:
        fail_names: functions that fail.
        started: names of the kernels that ran, in their order.
    """

    def __init__(self, cuda: FakeCuda, run: Callable[..., None]) -> None:
        super().__init__("cuda.bindings.driver")
        self.cuda, self.run = cuda, run
        self.fail_names: set[str] = set()
        self.fail_code = Error.ILLEGAL_ADDRESS
        self.started: list[str] = []

    def _answer(self, name: str, *values: Any) -> tuple[Any, ...]:
        if name in self.fail_names:
            return (self.fail_code, *(None for _ in values))
        return (Error.SUCCESS, *values)

    def cuGetErrorString(self, status: Error) -> tuple[Any, bytes]:
        return Error.SUCCESS, f"the driver says {status.name}".encode()

    def cuModuleLoadData(self, address: int) -> tuple[Any, ...]:
        assert ctypes.string_at(address) == CODE  # to the zero at its end
        module = object()
        if "cuModuleLoadData" not in self.fail_names:
            self.cuda.objects[id(module)] = ("module", module)
        return self._answer("cuModuleLoadData", module)

    def cuModuleUnload(self, module: object) -> tuple[Any, ...]:
        self.cuda.objects.pop(id(module))
        return (Error.SUCCESS,)

    def cuModuleGetFunction(self, module: object, name: bytes) -> tuple[Any, ...]:
        assert id(module) in self.cuda.objects
        return self._answer("cuModuleGetFunction", name.decode())

    def cuLaunchKernel(self, name: str, *numbers: int) -> tuple[Any, ...]:
        *shape, stream_handle, parameters, extra = numbers
        grid, block, shared = tuple(shape[:3]), tuple(shape[3:5]), shape[6]
        assert (shape[5], shared, extra) == (1, 0, 0)
        where = ctypes.c_uint64.from_address(parameters).value
        passes = ctypes.c_uint64.from_address(where).value
        stream = next(one for kind, one in self.cuda.objects.values() if kind == "stream" and int(one) == stream_handle)
        self.cuda.use_check(stream)
        self.cuda.room(passes, "device")

        def run() -> None:
            self.started.append(name)
            self.run(name, grid, block, passes)

        if "cuLaunchKernel" not in self.fail_names:
            stream.put(Work(run, (passes,)))
        return self._answer("cuLaunchKernel")


@dataclass
class PillowCodec:
    """Decodes whole with Pillow, into memory of the host, with some room between the rows.

    Attributes:
        refused: files that it cannot decode.
        most: files that it has memory for at a time; RuntimeError for more.
        wrong_size: whether it returns pictures of another size than the header says.
        batches: how many files it was asked to decode, each time.
    """

    title: str = "a fake of Pillow"
    refused: set[bytes] = field(default_factory=set)
    most: int = 1000
    wrong_size: bool = False
    raises: Exception | None = None
    batches: list[int] = field(default_factory=list)

    def decode(self, files: Sequence[bytes], stream: int) -> list[Picture | None]:
        self.batches.append(len(files))
        if self.raises is not None:
            raise self.raises
        if len(files) > self.most:
            raise RuntimeError("CUDA Runtime failure: '#2'")
        return [None if data in self.refused else self._picture(data) for data in files]

    def _picture(self, data: bytes) -> Picture | None:
        try:
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except OSError:
            return None
        if self.wrong_size:
            pixels = pixels[1:]
        return picture_of(pixels, room=13)


def picture_of(pixels: np.ndarray, room: int = 0) -> Picture:
    """(height, width, 3) uint8, copied to where rows lie `room` bytes apart."""
    height, width, _ = pixels.shape
    pitch = 3 * width + room
    memory = np.full((height, pitch), 0xAB, np.uint8)
    memory[:, : 3 * width] = pixels.reshape(height, -1)
    return Picture(memory.ctypes.data, width, height, pitch, memory)


def install(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., None] = run_passes, gpus: int = 1
) -> tuple[FakeCuda, FakeDriver]:
    """Puts a fake GPU where cuda-python would be."""
    cuda = FakeCuda(gpus)
    driver = FakeDriver(cuda, run)
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime, bindings.driver = cuda, driver
    for name, module in (
        ("cuda", types.ModuleType("cuda")),
        ("cuda.bindings", bindings),
        ("cuda.bindings.runtime", cuda),
        ("cuda.bindings.driver", driver),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return cuda, driver


def open_decoder(preprocessing: Preprocessing, codec: Any, **options: Any) -> DeviceDecoder:
    return DeviceDecoder(preprocessing, Cuda(0, when_full="-"), codec, CODE, **options)
