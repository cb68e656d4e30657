"""How fast the machine is just now, by work that no version of geoinfer changes: for comparing runs of other times."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from geoinfer.benchmark.generate import draw_picture
from geoinfer.benchmark.result import Yardstick
from geoinfer.benchmark.timing import on_threads
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS: Final = 0.3
_SIDE: Final = 512
_PICTURE: Final = (1024, 768)


class YardstickBench:
    """Holds what is measured with; the same in every process."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._factor = rng.standard_normal((_SIDE, _SIDE), dtype=np.float32)
        file = io.BytesIO()
        draw_picture(_PICTURE, rng).save(file, "JPEG", quality=85)
        self._jpeg = file.getvalue()

    def measure(self) -> Yardstick:
        """Takes about two thirds of a second.

        Both run one call a core side by side. NumPy's own threads, where it has any, share in a product, which
        changes nothing but how it is spread.
        """
        products = _rate(lambda _: self._factor @ self._factor)
        return Yardstick(matmul_gflops=products * 2 * _SIDE**3 / 1e9, decode_per_second=_rate(self._decode))

    def _decode(self, _: int) -> None:
        Image.open(io.BytesIO(self._jpeg)).load()


def _rate(work: Callable[[int], object]) -> float:
    threads = available_cores()
    seconds: list[float] = []

    def one(number: int) -> None:
        began = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - began)

    on_threads(one, threads, threads, shortest=_SECONDS)
    return len(seconds) * threads / sum(seconds)
