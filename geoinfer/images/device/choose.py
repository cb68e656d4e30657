"""Which photos a GPU decodes, by class: those that it decodes faster than all cores together, as measured."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from geoinfer.errors import DeviceError
from geoinfer.images.decode import decode_pixels
from geoinfer.images.device.check import as_jpeg, drawn
from geoinfer.images.device.frame import ImageClass

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from geoinfer.images.device.decoder import DeviceDecoder

LEAST_GAIN: Final = 1.1
"""A GPU that decodes takes time from its embedding; it must be so many times as fast to be worth that."""

IMAGE_CLASSES: Final[tuple[ImageClass, ...]] = get_args(ImageClass)

_ROUNDS: Final = 3
_SECONDS: Final = 0.25
# Of a camera's 12 megapixels, and as the web and social networks have them.
_SAMPLES: Final[dict[ImageClass, tuple[int, int]]] = {
    "original": (4032, 3024),
    "web": (1024, 768),
    "progressive": (1600, 1200),
}


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured of a class: photos a second, a number a round; both sides in each round, one after the other.

    Attributes:
        cpu: all cores together.
        gpu: the GPU, with what it needs of the CPU.
    """

    cpu: tuple[float, ...]
    gpu: tuple[float, ...]

    @property
    def gain(self) -> float:
        """How many times as fast the GPU is: the median of the rounds."""
        return statistics.median(gpu / cpu for cpu, gpu in zip(self.cpu, self.gpu, strict=True))

    @property
    def gpu_wins(self) -> bool:
        """Whether it is faster by more than it costs, and in every round: less is noise."""
        faster = all(gpu > cpu for cpu, gpu in zip(self.cpu, self.gpu, strict=True))
        return faster and self.gain >= LEAST_GAIN

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"cpu": list(self.cpu), "gpu": list(self.gpu)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Rates:
        """The inverse of `as_dict`; raises KeyError, TypeError or ValueError on anything else."""
        cpu, gpu = (tuple(float(rate) for rate in values[name]) for name in ("cpu", "gpu"))
        if not cpu or len(cpu) != len(gpu) or not all(0 < rate < float("inf") for rate in cpu + gpu):
            raise ValueError("rates must be positive and as many on both sides")
        return cls(cpu, gpu)


def choose(measured: Mapping[ImageClass, Rates]) -> frozenset[ImageClass]:
    """The classes that the GPU is to decode."""
    return frozenset(image_class for image_class, rates in measured.items() if rates.gpu_wins)


def measure(
    decoder: DeviceDecoder,
    *,
    workers: int,
    batch: int = 32,
    seconds: float = _SECONDS,
    photos: Mapping[ImageClass, list[bytes]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[ImageClass, Rates]:
    """Measures both sides on each class, with nothing else to do.

    Args:
        decoder: the GPU.
        workers: CPU threads of the run.
        batch: photos that the GPU decodes at once.
        seconds: for each side in each round, at least one batch.
        photos: files of each class; drawn ones without.
        clock: tells the seconds.

    Raises:
        DeviceError: the GPU fails, or decodes none of a class.
    """
    found: dict[ImageClass, Rates] = {}
    files = {name: [_sample(name)] for name in IMAGE_CLASSES} if photos is None else photos
    with ThreadPoolExecutor(workers, "geoinfer-measure") as pool:
        for name, originals in files.items():
            some = [originals[number % len(originals)] for number in range(max(batch, workers))]
            on_gpu, on_cpu = _gpu_side(decoder, some[:batch]), _cpu_side(decoder, some[:workers], pool)
            on_gpu()  # which takes memory and builds tables
            on_cpu()
            cpu, gpu = [], []
            for _ in range(_ROUNDS):
                gpu.append(_rate(on_gpu, batch, seconds, clock))
                cpu.append(_rate(on_cpu, workers, seconds, clock))
            found[name] = Rates(tuple(cpu), tuple(gpu))
    return found


def _sample(name: ImageClass) -> bytes:
    return as_jpeg(drawn(*_SAMPLES[name], seed=1), progressive=name == "progressive")


def _gpu_side(decoder: DeviceDecoder, files: list[bytes]) -> Callable[[], None]:
    side = decoder.preprocessing.size
    outs = np.empty((len(files), side, side, 3), np.uint8)
    items = [(data, "jpeg", out) for data, out in zip(files, outs, strict=True)]

    def run() -> None:
        if not all(decoder.decode(items)):
            raise DeviceError(f"{decoder.title} does not decode an ordinary JPEG of {len(files[0])} bytes")

    return run


def _cpu_side(decoder: DeviceDecoder, files: list[bytes], pool: ThreadPoolExecutor) -> Callable[[], None]:
    def run() -> None:
        for done in [pool.submit(decode_pixels, data, "jpeg", decoder.preprocessing) for data in files]:
            done.result()

    return run


def _rate(run: Callable[[], None], photos: int, seconds: float, clock: Callable[[], float]) -> float:
    began, runs = clock(), 0
    while True:
        run()
        runs += 1
        took = clock() - began
        if took >= seconds:
            return runs * photos / took
