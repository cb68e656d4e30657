"""Decodes and resizes the JPEGs of a batch on a GPU, from the bytes of the files to the pixels that a model sees."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np

from geoinfer.images.device.frame import frame_of
from geoinfer.images.device.kernel import ACROSS, ALONG_COLUMNS, ALONG_ROWS, DOWN
from geoinfer.images.device.plan import CHANNELS, PASS, Pass, Resize, Table, plan_resize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from geoinfer.images.device.nvimagecodec import Picture
    from geoinfer.images.device.resample import Taps
    from geoinfer.images.preprocessing import Preprocessing

# What the photos of one go may take of the GPU's memory: decoded, and between the passes of resizing.
_DECODED_BYTES: Final = 1 << 30
_BETWEEN_BYTES: Final = 256 << 20
# Tables of weights and passes, in a go; and results.
_TABLE_BYTES: Final = 32 << 20
_RESULT_BYTES: Final = 64 << 20
_ALIGNED: Final = 16

Item = tuple[bytes, str, "NDArray[np.uint8]"]
"""A photo's file, its format as `sniff` names it, and its (size, size, 3) uint8 pixels, which are to be filled."""


class Codec(Protocol):
    """Decodes files into a GPU's memory: `geoinfer.images.device.nvimagecodec.NvImageCodec`."""

    title: str

    def decode(self, files: Sequence[bytes], stream: int) -> list[Picture | None]:
        """See there."""


@dataclass(slots=True)
class _Go:
    """Photos that are decoded together: as many as the memory holds."""

    files: list[bytes] = field(default_factory=list)
    plans: list[Resize] = field(default_factory=list)
    outs: list[NDArray[np.uint8]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    decoded_bytes: int = 0
    between_bytes: int = 0
    table_bytes: int = 0

    def part(self, place: int) -> _Go:
        """One of its photos alone."""
        return _Go([self.files[place]], [self.plans[place]], [self.outs[place]], [self.numbers[place]])


class DeviceDecoder:
    """A GPU as a decoder of JPEGs.

    A photo is decoded whole and then resized, so that its pixels are those of decoding it whole with Pillow and
    resizing it there, but for how nvJPEG rounds. (The CPU's decoder, which has libjpeg do a part of the resizing, is
    about as far from that.) What becomes of a photo does not depend on the others of its batch.

    A context manager: leaving it frees the GPU.
    """

    def __init__(self, preprocessing: Preprocessing, device: Any, codec: Codec, code: bytes, *, most: int = 64) -> None:
        """Takes the memory that every batch needs.

        Args:
            preprocessing: what the model wants.
            device: the GPU, a `geoinfer.backends.cuda.Cuda` (which lies in a layer above this). Closed with this.
            codec: decodes into its memory.
            code: the kernels, compiled for it, see `geoinfer.images.device.kernel.compiled`.
            most: photos that are decoded at once, if so many fit.

        Raises:
            DeviceError: the GPU fails or has too little memory.
        """
        self.preprocessing = preprocessing
        self.title = codec.title
        self._device, self._codec = device, codec
        self._result_bytes = CHANNELS * preprocessing.size**2
        self._most = max(min(most, _RESULT_BYTES // self._result_bytes), 1)
        self._lock = threading.Lock()
        try:
            device.use()
            self._along_rows, self._along_columns = device.kernels(code, (ALONG_ROWS, ALONG_COLUMNS))
            self._stream, self._done = device.stream(), device.event()
            self._tables_here, self._tables_there = device.pinned(_TABLE_BYTES), device.memory(_TABLE_BYTES)
            self._between = device.memory(_BETWEEN_BYTES)
            self._results_there = device.memory(self._most * self._result_bytes)
            self._results_here = device.pinned(self._most * self._result_bytes)
        except BaseException:
            device.close()
            raise

    def decode(self, items: Sequence[Item]) -> list[bool]:
        """Fills what it can.

        Args:
            items: photos, of any format.

        Returns:
            For each whether it was filled; the CPU must decode the others, and says what is wrong with them.

        Raises:
            DeviceError: the GPU failed, and what it was asked next would fail too.
        """
        filled = [False] * len(items)
        with self._lock:
            self._device.use()
            for go in self._goes(items):
                missed = self._run(go, filled)
                if len(go.files) > 1:
                    # Each once more and alone: a photo must not be given up for the memory that its neighbours took.
                    for place in missed:
                        self._run(go.part(place), filled)
        return filled

    def resize(self, pictures: Sequence[tuple[Picture, Resize]]) -> NDArray[np.uint8]:
        """Resizes pictures that are in the GPU's memory, as many as a go may hold.

        Returns:
            (n, size, size, 3) uint8, upright; valid until the next call.
        """
        device, stream = self._device, self._stream
        tables = _Tables(self._tables_here.bytes, self._tables_there)
        # Rows first, columns first; then what those leave: columns, rows. Each wave is one start of a kernel.
        waves: tuple[list[Pass], ...] = ([], [], [], [])
        between, target = self._between, self._results_there
        for picture, plan in pictures:
            placed = tables.place(plan.across), tables.place(plan.down)
            first, second = plan.passes(picture.address, picture.pitch, between, target, placed)
            waves[0 if plan.rows_first else 1].append(first)
            waves[2 if plan.rows_first else 3].append(second)
            between += plan.between_bytes
            target += self._result_bytes
        passes = [np.array(wave, PASS) for wave in waves]
        places = [tables.add(wave) for wave in passes]
        device.copy_in(self._tables_there, self._tables_here, tables.used, stream)
        for wave, place, along_rows in zip(passes, places, (True, False, False, True), strict=True):
            if len(wave):
                self._start(wave, place, along_rows=along_rows)
        size = len(pictures) * self._result_bytes
        device.copy_out(self._results_here, self._results_there, size, stream)
        device.record(self._done, stream)
        device.wait(self._done)
        side = self.preprocessing.size
        found: NDArray[np.uint8] = self._results_here.bytes[:size].reshape(-1, side, side, CHANNELS)
        return found

    def upload(self, pixels: NDArray[np.uint8]) -> int:
        """Address of a copy of `pixels` on the GPU, which stays there until the decoder is closed: to try it out."""
        pinned, there = self._device.pinned(pixels.nbytes), self._device.memory(pixels.nbytes)
        pinned.bytes[...] = pixels.reshape(-1)
        self._device.copy_in(there, pinned, pixels.nbytes, self._stream)
        return int(there)

    def close(self) -> None:
        """Frees the GPU; harmless the second time."""
        with self._lock:
            self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _goes(self, items: Sequence[Item]) -> Iterator[_Go]:
        """Cuts the photos that a GPU may decode into goes."""
        go = _Go()
        for number, (data, kind, out) in enumerate(items):
            frame = frame_of(data, kind)
            if frame is None or frame.decoded_bytes > _DECODED_BYTES:
                continue
            plan = plan_resize(frame, self.preprocessing)
            table_bytes = _Tables.room(plan)
            if plan.between_bytes > _BETWEEN_BYTES or table_bytes > _TABLE_BYTES:
                continue
            if go.files and (
                len(go.files) == self._most
                or go.decoded_bytes + frame.decoded_bytes > _DECODED_BYTES
                or go.between_bytes + plan.between_bytes > _BETWEEN_BYTES
                or go.table_bytes + table_bytes > _TABLE_BYTES
            ):
                yield go
                go = _Go()
            go.files.append(data)
            go.plans.append(plan)
            go.outs.append(out)
            go.numbers.append(number)
            go.decoded_bytes += frame.decoded_bytes
            go.between_bytes += plan.between_bytes
            go.table_bytes += table_bytes
        if go.files:
            yield go

    def _run(self, go: _Go, filled: list[bool]) -> list[int]:
        """Decodes and resizes; returns the places in the go of photos that came to nothing."""
        everywhere = range(len(go.files))
        try:
            pictures = self._codec.decode(go.files, int(self._stream))
        except Exception:  # noqa: BLE001 - the library raises RuntimeError for all that fails, and who knows what else
            # If the GPU itself has failed, this says so; else it was the photos, or their number.
            self._device.record(self._done, self._stream)
            self._device.wait(self._done)
            return list(everywhere)
        usable: dict[int, tuple[Picture, Resize]] = {}
        for place, picture, plan in zip(everywhere, pictures, go.plans, strict=True):
            if picture is not None and (picture.width, picture.height) == (plan.frame.width, plan.frame.height):
                usable[place] = picture, plan
        if usable:
            try:
                resized = self.resize(list(usable.values()))
            except BaseException:
                # The pictures' memory is given back when they are let go, and must not be in use then.
                self._device.settle(self._stream)
                raise
            for row, place in enumerate(usable):
                go.outs[place][...] = resized[row]
                filled[go.numbers[place]] = True
        return [place for place in everywhere if place not in usable]

    def _start(self, passes: NDArray[np.void], address: int, *, along_rows: bool) -> None:
        count, size, lines = len(passes), int(passes["size"].max()), int(passes["lines"].max())
        if along_rows:
            kernel, grid, block = self._along_rows, (_up(size, ACROSS), _up(lines, DOWN), count), (ACROSS, DOWN)
        else:
            kernel, grid, block = self._along_columns, (_up(lines, ACROSS * DOWN), size, count), (ACROSS * DOWN, 1)
        self._device.start(kernel, grid, block, [address], self._stream)


class _Tables:
    """Lays out what the kernels read: here, and at the same offsets in the GPU's memory."""

    def __init__(self, here: NDArray[np.uint8], there: int) -> None:
        self._here, self._there = here, there
        self._placed: dict[int, Table] = {}
        self.used = 0

    @staticmethod
    def room(plan: Resize) -> int:
        """Bytes that a picture's tables take at most; pictures of one size share theirs."""
        arrays = [array for taps in (plan.across, plan.down) for array in (taps.first, taps.count, taps.weights)]
        # Each wave's passes are aligned once, whoever is among them.
        return sum(array.nbytes + _ALIGNED for array in arrays) + 2 * PASS.itemsize + 4 * _ALIGNED

    def place(self, taps: Taps) -> Table:
        """Where a table lies on the GPU."""
        found = self._placed.get(id(taps))
        if found is None:
            found = self.add(taps.first), self.add(taps.count), self.add(taps.weights)
            self._placed[id(taps)] = found
        return found

    def add(self, array: NDArray[Any]) -> int:
        """Puts an array in; returns its address on the GPU."""
        start = _up(self.used, _ALIGNED) * _ALIGNED
        self.used = start + array.nbytes
        self._here[start : self.used] = np.frombuffer(array.tobytes(), np.uint8)
        return self._there + start


def _up(number: int, step: int) -> int:
    """How many steps it takes to hold `number`."""
    return -(-number // step)
