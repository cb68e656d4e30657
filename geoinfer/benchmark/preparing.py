"""Reading, decoding and resizing, told apart: what a run does with each photo before it is embedded, timed by stage."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from geoinfer.benchmark.result import DECODE, DECODE_ON_DEVICE, READ, RESIZE
from geoinfer.benchmark.timing import LONGEST_SECONDS, SHORTEST_SECONDS, Timings
from geoinfer.errors import ImageError
from geoinfer.images import decode_image, raw_problem, read_image_file, resize_decoded
from geoinfer.images.device.frame import frame_of
from geoinfer.images.isolated import ISOLATED_KINDS
from geoinfer.images.memory_gate import MemoryGate, decode_bytes
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.batch.device_decoding import DeviceDecoding
    from geoinfer.images import Preprocessing
    from geoinfer.images.loader import PhotoLoader

_MOST_PICTURES: Final = 512
_MOST_DEFERRED_BYTES: Final = 512 << 20


class Preparation:
    """One round of it. `one` is called from many threads, what else there is afterwards.

    Attributes:
        pixels: (size, size, 3) uint8 of the first photos that could be decoded, by position.
    """

    def __init__(
        self,
        paths: Sequence[bytes],
        preprocessing: Preprocessing,
        loader: PhotoLoader,
        decoding: DeviceDecoding | None,
    ) -> None:
        """Nothing is done yet.

        Args:
            paths: the photos.
            preprocessing: what the model wants.
            loader: decodes the formats that have processes of their own.
            decoding: what a run decodes on a GPU, if it does.
        """
        self.pixels: dict[int, NDArray[np.uint8]] = {}
        self._paths = paths
        self._preprocessing = preprocessing
        self._loader, self._decoding = loader, decoding
        self._gate = MemoryGate()
        self._lock = threading.Lock()
        self._seconds: dict[str, list[float]] = {READ: [], DECODE: [], RESIZE: []}
        self._inputs = self._usable = self._deferred = 0
        self._left: list[tuple[int, bytes, str]] = []
        self._left_bytes = 0

    def one(self, number: int) -> None:
        """Takes one photo through the three; what is wrong with it costs the time until that was found."""
        path = self._paths[number]
        with self._lock:
            self._inputs += 1
        if raw_problem(path) is not None:
            return
        began = time.perf_counter()
        try:
            data, kind = read_image_file(path)
        except ImageError:
            self._seconds[READ].append(time.perf_counter() - began)
            return
        self._seconds[READ].append(time.perf_counter() - began)
        if self._decoding is not None:
            frame = frame_of(data, kind)
            if frame is not None and frame.image_class in self._decoding.classes:
                self._defer(number, data, kind)
                return
        slot = np.empty((self._preprocessing.size, self._preprocessing.size, 3), np.uint8)
        try:
            with self._gate.room(decode_bytes(data, kind, self._preprocessing)):
                self._decode(data, kind, slot)
        except ImageError:
            return
        self._keep(number, slot)

    def _decode(self, data: bytes, kind: str, slot: NDArray[np.uint8]) -> None:
        began = time.perf_counter()
        try:
            if kind in ISOLATED_KINDS:
                # In another process, which resizes too and hands over what is small: it cannot be told apart.
                self._loader.decode(data, kind, slot)
                return
            decoded = decode_image(data, kind, self._preprocessing, reuse_memory=True)
        finally:
            self._seconds[DECODE].append(time.perf_counter() - began)
        began = time.perf_counter()
        resize_decoded(decoded, self._preprocessing, slot)
        self._seconds[RESIZE].append(time.perf_counter() - began)

    def _defer(self, number: int, data: bytes, kind: str) -> None:
        with self._lock:
            self._deferred += 1
            if self._left_bytes < _MOST_DEFERRED_BYTES and all(number != known for known, _, _ in self._left):
                self._left.append((number, data, kind))
                self._left_bytes += len(data)

    def _keep(self, number: int, slot: NDArray[np.uint8]) -> None:
        with self._lock:
            self._usable += 1
            if len(self.pixels) < _MOST_PICTURES:
                self.pixels[number] = slot

    def timings(self, batch_size: int, device: str) -> dict[str, Timings]:
        """What each stage took. First the photos that were left to the GPU are decoded there, a batch at a time.

        Args:
            batch_size: of the runs.
            device: the GPU.
        """
        inputs = max(self._inputs, 1)
        threads = available_cores()
        stages = {
            name: Timings(values, len(values), threads, len(values) / inputs)
            for name, values in self._seconds.items()
            if values
        }
        if self._left:
            stages[DECODE_ON_DEVICE] = self._decode_on_device(batch_size, device)
        return stages

    def _decode_on_device(self, batch_size: int, device: str) -> Timings:
        assert self._decoding is not None
        size = self._preprocessing.size
        seconds: list[float] = []
        photos = failed = calls = 0
        began = time.perf_counter()
        batches = [self._left[start : start + batch_size] for start in range(0, len(self._left), batch_size)]
        while calls < len(batches) or time.perf_counter() - began < SHORTEST_SECONDS:
            batch = batches[calls % len(batches)]
            slots = np.empty((len(batch), size, size, 3), np.uint8)
            items = [
                (self._paths[number], data, kind, slot) for (number, data, kind), slot in zip(batch, slots, strict=True)
            ]
            started = time.perf_counter()
            failures = self._decoding.decode(items)
            seconds.append(time.perf_counter() - started)
            calls += 1
            photos += len(batch)
            for (number, _, _), slot, failure in zip(batch, slots, failures, strict=True):
                if failure is None and len(self.pixels) < _MOST_PICTURES:
                    self.pixels[number] = slot
                failed += failure is not None
            if seconds[1:] and time.perf_counter() - began > LONGEST_SECONDS:
                break
        self._usable += round(self._deferred * (1 - failed / photos))
        # Decoding has hardware of its own on a GPU, beside that which embeds.
        share = self._deferred / max(self._inputs, 1)
        return Timings(seconds, photos, 1, share, batch_size, f"{device}, decoder")

    @property
    def usable_share(self) -> float:
        """Of the inputs, those that have pixels; after `timings`."""
        return self._usable / max(self._inputs, 1)
