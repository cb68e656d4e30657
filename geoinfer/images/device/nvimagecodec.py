"""Decodes JPEGs in batches by NVIDIA's nvImageCodec, which uses a GPU's decoding circuits where it has some."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from geoinfer.errors import DeviceError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Chroma is interpolated as libjpeg does it, and not repeated: without this the colours of edges differ from the CPU's.
_OPTIONS: Final = ":fancy_upsampling=1"


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture.

    Attributes:
        address: of its first pixel, RGB, 8 bits each.
        width: in pixels.
        height: likewise.
        pitch: bytes from a row to the next.
        owner: has the memory, for as long as it lives.
    """

    address: int
    width: int
    height: int
    pitch: int
    owner: Any


class NvImageCodec:
    """A decoder; not to be used by two threads at a time.

    Attributes:
        title: the library and its version.
    """

    def __init__(self, ordinal: int | None, *, threads: int) -> None:
        """Loads the library.

        Args:
            ordinal: which GPU; None decodes on the CPU into its memory, to try out all but the GPU.
            threads: CPU threads that it may use: a GPU's ordinary processors leave a part of the work to them.

        Raises:
            MissingPackageError: nvImageCodec is not installed.
            DeviceError: it does not start.
        """
        api = _load()
        self.title = f"nvImageCodec {api.__version__}"
        self._api = api
        self._on_gpu = ordinal is not None
        kinds = api.BackendKind
        # Each takes all that it can. Were the load shared between them, a picture's last digits would depend on its
        # neighbours in the batch. What none of them can decode is for our own decoders, not for the library's.
        wanted = [kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU] if self._on_gpu else [kinds.CPU_ONLY]
        try:
            self._decoder = api.Decoder(
                device_id=api.NVIMGCODEC_DEVICE_CPU_ONLY if ordinal is None else ordinal,
                max_num_cpu_threads=threads,
                backends=[
                    api.Backend(kind, load_hint=1.0, load_hint_policy=api.LoadHintPolicy.FIXED) for kind in wanted
                ],
                options=_OPTIONS,
            )
        except RuntimeError as error:
            raise DeviceError(f"{self.title} does not start: {' '.join(str(error).split())}") from error
        self._how = api.DecodeParams(apply_exif_orientation=False, color_spec=api.ColorSpec.SRGB)

    def decode(self, files: Sequence[bytes], stream: int) -> list[Picture | None]:
        """Decodes whole files; the pictures may be used by what comes later in the stream.

        Args:
            files: JPEGs.
            stream: handle of a CUDA stream; 0 on the CPU.

        Returns:
            None for a file that cannot be decoded.

        Raises:
            RuntimeError: something failed that cannot be laid to one file, such as to get memory.
        """
        found: list[Picture | None] = [None] * len(files)
        parsed = [(number, code) for number, data in enumerate(files) if (code := self._parse(data)) is not None]
        if not parsed:
            return found
        images = self._decoder.decode([code for _, code in parsed], params=self._how, cuda_stream=stream)
        for (number, _), image in zip(parsed, images, strict=True):
            found[number] = None if image is None else self._picture(image)
        return found

    def _parse(self, data: bytes) -> Any:
        try:
            return self._api.CodeStream(data)
        except RuntimeError:
            return None

    def _picture(self, image: Any) -> Picture | None:
        about = image.__cuda_array_interface__ if self._on_gpu else image.__array_interface__
        shape, strides = tuple(image.shape), tuple(image.strides)
        if len(shape) != 3 or shape[2] != 3 or about["typestr"] != "|u1" or strides[1:] != (3, 1):
            return None
        return Picture(int(about["data"][0]), shape[1], shape[0], strides[0], image)


def _load() -> Any:
    # It would write of every picture that it cannot decode to standard error; unless somebody asked for that.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        with _errors_aside():
            return importlib.import_module("nvidia.nvimgcodec")
    except (ImportError, OSError) as error:
        raise MissingPackageError(
            f"photos cannot be decoded on a GPU: nvImageCodec cannot be imported: {' '.join(str(error).split())}",
            hint="pip install 'nvidia-nvimgcodec-cu13[nvjpeg]'; the extra gpu of geoinfer-toolkit brings it",
        ) from error


@contextlib.contextmanager
def _errors_aside() -> Iterator[None]:
    """Keeps from the terminal what C code writes there while the library is loaded.

    It complains of libraries for formats that it is not used for (JPEG 2000 and TIFF), and has no setting for that.
    """
    if "nvidia.nvimgcodec" in sys.modules:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as aside:
            os.dup2(aside.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
    finally:
        os.close(kept)
