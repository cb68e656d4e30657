"""Photos of a run that a GPU decodes: which, how, and what becomes of those that it cannot.

A pipeline asks `prepare` for each photo, and hands those that it deferred to `decode`, a batch at a time. What the GPU
fails at the CPU decodes, so that every photo has the row that it would have without a GPU; what failed is counted.

Pixels from a GPU differ from the CPU's in their last digits. Which photos it decodes is therefore settled before a run
begins, by their class, and `fingerprint` belongs to what a resumed run must have in common with its beginning.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

from geoinfer.backends.cuda import Cuda
from geoinfer.batch.pipeline import Deferred
from geoinfer.engines.gpu import find_gpu
from geoinfer.errors import DeviceError, GeoInferError, ImageError, UsageError
from geoinfer.images.device.check import check
from geoinfer.images.device.choose import IMAGE_CLASSES, Rates, choose, measure
from geoinfer.images.device.decoder import DeviceDecoder
from geoinfer.images.device.frame import frame_of
from geoinfer.images.device.kernel import compiled
from geoinfer.images.device.nvimagecodec import NvImageCodec
from geoinfer.images.read import raw_problem, read_image_file
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.backends import Embedder
    from geoinfer.images.device.frame import ImageClass
    from geoinfer.images.loader import PhotoLoader
    from geoinfer.images.preprocessing import Preprocessing

DecodeOn = Literal["auto", "cpu", "gpu"]
"""`--decode`: where JPEGs are decoded."""

_WHEN_FULL: Final = "another program uses it, or the model alone fills it; --decode cpu decodes photos on the CPU"


@dataclass(slots=True)
class DecodeCounts:
    """Photos by who decoded them, those that turned out to be damaged among them.

    Attributes:
        gpu: the GPU.
        fell_back: the CPU, after the GPU could not.
        cpu: the CPU, because of their format or class.
    """

    gpu: int = 0
    fell_back: int = 0
    cpu: int = 0

    def as_dict(self) -> dict[str, int]:
        """Plain values for a summary."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"decoded on the GPU: {self.gpu}, on the CPU: {self.cpu + self.fell_back}"
        return f"{text} ({self.fell_back} of them because the GPU could not)" if self.fell_back else text


class DeviceDecoding:
    """Both sides of decoding on a GPU, for one run; a context manager that frees the GPU.

    Attributes:
        counts: who decoded how many photos.
        classes: the classes that the GPU decodes.
        described: one line for the user.
    """

    def __init__(
        self, decoder: DeviceDecoder, loader: PhotoLoader, classes: frozenset[ImageClass], *, workers: int, name: str
    ) -> None:
        """Takes over the decoder; the loader stays the caller's.

        Args:
            decoder: the GPU.
            loader: the CPU.
            classes: what the GPU decodes.
            workers: CPU threads for photos of a batch that the GPU fails at.
            name: the GPU's.
        """
        self._decoder, self._loader = decoder, loader
        self._workers = workers
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self.classes = classes
        self.counts = DecodeCounts()
        which = ", ".join(name for name in IMAGE_CLASSES if name in classes)
        self.described = f"JPEGs ({which}) are decoded on {name} by {decoder.title}"

    @property
    def fingerprint(self) -> str:
        """What decides about the last digits of pixels: who decodes which class."""
        which = "+".join(sorted(self.classes))
        return f"{which} by {self._decoder.title} on {self._name}"

    def prepare(self, path: bytes, out: NDArray[np.uint8]) -> Deferred | None:
        """Reads a photo, and decodes it into `out` unless it is for the GPU.

        Raises:
            ImageError: as `PhotoLoader.load`.
        """
        raw = raw_problem(path)
        if raw is not None:
            raise raw
        data, kind = read_image_file(path)
        frame = frame_of(data, kind)
        if frame is not None and frame.image_class in self.classes:
            return Deferred(data, kind)
        with self._lock:
            self.counts.cpu += 1
        self._loader.decode(data, kind, out)
        return None

    def decode(self, items: Sequence[tuple[bytes, bytes, str, NDArray[np.uint8]]]) -> list[ImageError | None]:
        """Decodes what `prepare` left.

        Args:
            items: path, file, format and (size, size, 3) uint8 pixels of each photo of a batch.

        Returns:
            What is wrong with each photo, by the CPU's judgement; None where its pixels are filled.

        Raises:
            DeviceError: the GPU itself failed; the run cannot go on with it.
        """
        filled = self._decoder.decode([(data, kind, out) for _, data, kind, out in items])
        missed = [number for number, done in enumerate(filled) if not done]
        with self._lock:
            self.counts.gpu += len(items) - len(missed)
            self.counts.fell_back += len(missed)
        failures: list[ImageError | None] = [None] * len(items)
        if missed:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, "geoinfer-fallback")
            for number, failure in zip(missed, self._pool.map(self._by_cpu, [items[n] for n in missed]), strict=True):
                failures[number] = failure
        return failures

    def _by_cpu(self, item: tuple[bytes, bytes, str, NDArray[np.uint8]]) -> ImageError | None:
        _, data, kind, out = item
        try:
            self._loader.decode(data, kind, out)
        except ImageError as error:
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)  # which would keep the photo's bytes alive
        return None

    def close(self) -> None:
        """Frees the GPU; harmless the second time."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_decoder(preprocessing: Preprocessing, ordinal: int = 0, *, threads: int = 0, most: int = 64) -> DeviceDecoder:
    """A GPU as a decoder, tried out.

    Args:
        preprocessing: what the model wants.
        ordinal: the N of `cuda:N`.
        threads: CPU threads that it may use; 0 for one a core.
        most: photos that it decodes at once.

    Raises:
        DeviceError: there is no such GPU, or it does not decode as it should.
        MissingPackageError: cuda-python, NVRTC or nvImageCodec is not installed.
    """
    gpu = find_gpu(ordinal)
    codec = NvImageCodec(ordinal, threads=threads or available_cores())
    code = compiled(gpu.compute_capability)
    decoder = DeviceDecoder(preprocessing, Cuda(ordinal, when_full=_WHEN_FULL), codec, code, most=most)
    try:
        check(decoder)
    except BaseException:
        decoder.close()
        raise
    return decoder


def open_device_decoding(
    mode: str,
    embedder: Embedder,
    loader: PhotoLoader,
    *,
    workers: int,
    batch_size: int,
    remembered: dict[str, Any] | None = None,
    remember: Callable[[dict[str, Any]], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> DeviceDecoding | None:
    """What `--decode` means for a run.

    Args:
        mode: `cpu`; `gpu`, which decodes every JPEG there that it can; or `auto`, which decodes there the classes that
            go faster so, if the model runs on a GPU as well.
        embedder: the model.
        loader: the CPU's decoder.
        workers: CPU threads of the run.
        batch_size: photos that the model sees at once.
        remembered: what `remember` was given, in an earlier run on this machine and with this `decoding_key`.
        remember: keeps what was measured.
        say: is told why `auto` does not use a GPU that the model runs on.

    Returns:
        None where the CPU decodes everything.

    Raises:
        UsageError: no such mode.
        DeviceError, MissingPackageError: with `gpu` alone, see `open_decoder`.
    """
    if mode not in get_args(DecodeOn):
        raise UsageError(f"--decode {mode}: expected auto, cpu or gpu")
    if mode == "cpu" or (mode == "auto" and embedder.device == "cpu"):
        return None
    ordinal = int(embedder.device.partition(":")[2] or 0)
    preprocessing = embedder.identity.preprocessing
    try:
        decoder = open_decoder(preprocessing, ordinal, threads=workers, most=max(batch_size, 1))
    except GeoInferError as error:
        if mode == "gpu":
            raise
        if say is not None:
            say(f"photos are decoded on the CPU: {error}")
        return None
    try:
        if mode == "gpu":
            classes = frozenset(IMAGE_CLASSES)
        else:
            classes = _measured(decoder, workers, batch_size, remembered, remember)
        if not classes:
            if say is not None:
                say("photos are decoded on the CPU, which is faster at it here than the GPU")
            decoder.close()
            return None
        return DeviceDecoding(decoder, loader, classes, workers=workers, name=find_gpu(ordinal).name)
    except DeviceError as error:
        decoder.close()
        if mode == "gpu":
            raise
        if say is not None:
            say(f"photos are decoded on the CPU: {error}")
        return None
    except BaseException:
        decoder.close()
        raise


def decoding_key(embedder: Embedder, workers: int, batch_size: int) -> dict[str, Any]:
    """All that a measurement of decoding depends on, besides the processor and the version of geoinfer."""
    ordinal = int(embedder.device.partition(":")[2] or 0)
    return {
        "gpu": find_gpu(ordinal).name,
        "preprocessing": embedder.identity.preprocessing.digest,
        "workers": workers,
        "batch": batch_size,
    }


def _measured(
    decoder: DeviceDecoder,
    workers: int,
    batch_size: int,
    remembered: dict[str, Any] | None,
    remember: Callable[[dict[str, Any]], None] | None,
) -> frozenset[ImageClass]:
    try:
        rates = {name: Rates.from_dict((remembered or {})[name]) for name in IMAGE_CLASSES}
    except (KeyError, TypeError, ValueError):
        rates = measure(decoder, workers=workers, batch=max(batch_size, 1))
        if remember is not None:
            remember({name: found.as_dict() for name, found in rates.items()})
    return choose(rates)
