"""TensorRT engines on an NVIDIA GPU, either flavour, without torch.

How a call is computed. The engine's best batch (its profile's `opt`) is the static batch: a longer call is cut into
chunks of it, and each chunk has a lane of its own (pinned buffers, memory on the GPU, a stream, an execution context).
There are two full lanes, so that while one chunk computes the next is copied, within a call and between calls of two
threads. Lanes are bound to their memory and their shape once and never changed, which is what a captured CUDA graph
demands.

The rest of a call is padded with zeros to the next power of two, or to the static batch where half of that is too
little. The smaller ones have a third lane, which changes its shape and therefore has no graph of ours; it is made when
it is first needed. So a batch of one does not cost sixty-four, and what a row is computed with is a matter of the
number of rows alone, never of time or of what was there before.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from geoinfer.backends.base import (
    EmbedderIdentity,
    blank_rows_without_direction,
    check_pixels,
    check_preprocessing,
    parse_device,
)
from geoinfer.backends.cuda import Cuda
from geoinfer.backends.tensorrt_plan import Plan
from geoinfer.engines import flavors, gpu, sidecar
from geoinfer.errors import DeviceError, GeoInferError, ModelError, UsageError
from geoinfer.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_FULL_LANES = 2
_LOOK_AGAIN_S = 1.0


class TensorRtEmbedder:
    """A `.trt` engine with its sidecar `.trt.json`; see `Embedder` for the contract."""

    def __init__(self, path: Path, device: str = "auto", *, preprocessing: Preprocessing | None = None) -> None:
        """Everything that can be found out without TensorRT is found out before it sees the file.

        Args:
            path: the engine.
            device: `auto`, `cuda`, `cuda:N`, `tensorrt` or `tensorrt:N`: an engine has but one way to run.
            preprocessing: checked against the engine's own.

        Raises:
            UsageError: `device` is `cpu`, or `preprocessing` another than the engine's.
            ModelError: the file or its sidecar is missing, damaged or foreign, or TensorRT refuses it.
            MismatchError: it was built by another version, or for another GPU.
            DeviceError: no GPU, no driver, or too little memory.
            MissingPackageError: the flavour that built it, or cuda-python, is not installed.
        """
        kind, ordinal = parse_device(device)
        description = sidecar.read_sidecar(path)
        if kind == "cpu":
            model = path.with_name(description.onnx.name)
            raise UsageError(
                f"--device cpu: {path} is a TensorRT engine, which runs on an NVIDIA GPU alone",
                hint=f"the ONNX model that it was built from runs on a CPU: --engine {model}",
            )
        sidecar.check_engine_file(path, description)
        own = Preprocessing.from_dict(description.preprocessing)
        check_preprocessing(path, own, preprocessing)
        there = description.flavor in flavors.installed_flavors()
        flavor = flavors.load_flavor(description.flavor) if there else None
        found = gpu.find_gpu(ordinal)
        note = sidecar.check_fits(path, description, flavor.version if flavor else None, found)
        assert flavor is not None  # or it would not fit

        self._path = path
        self.identity = EmbedderIdentity(description.identity, description.dim, own)
        self.device = f"cuda:{ordinal}"
        self.device_reason = f"{path.name}, {description.precision}, by {flavor.title} on {found.name}"
        if note:
            self.device_reason += f"; {note}"
        self.fell_back = False
        self.fingerprint = description.engine.sha256
        self.best_batch: int | None = description.profile.opt
        self.calls_at_once = _FULL_LANES
        self.pins_threads = False
        self._batches = _static_batches(description.profile.min, description.profile.opt)
        rebuild = f"build it again: {sidecar.rebuild_command(path, description)}"
        when_full = _when_full(path, description)

        self._changed = threading.Condition()
        self._enqueueing = threading.Lock()
        self._freeing = threading.Lock()
        self._closed = self._freed = False
        self._turns = itertools.count()
        self._full: list[_Lane] = []
        self._small: list[_Lane] = []
        self._plan: Plan | None = None
        self._cuda = Cuda(ordinal, when_full=when_full)
        try:
            self._plan = Plan(path, description, flavor, rebuild=rebuild, when_full=when_full)
            self._full = [_Lane(self._cuda, self._plan, self._batches[-1], self.identity) for _ in range(_FULL_LANES)]
            self._try_out()
        except BaseException:
            self.close()
            raise

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.identity.dim

    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Embedder.embed`; DeviceError if the GPU fails."""
        if self._closed:
            raise ModelError(f"{self._path}: the embedder is closed")
        check_pixels(self._path, pixels, self.identity.preprocessing.size)
        result = np.empty((len(pixels), self.dim), np.float32)
        most = self._batches[-1]
        flying: deque[tuple[_Lane, int, int]] = deque()
        self._take_back()  # what an interrupt left with this thread
        try:
            for first in range(0, len(pixels), most):
                chunk = pixels[first : first + most]
                lane = self._lane_for(len(chunk), wait=not flying)
                while lane is None:
                    self._land(flying, result)
                    lane = self._lane_for(len(chunk), wait=not flying)
                flying.append((lane, first, len(chunk)))
                self._send(lane, chunk)
            while flying:
                self._land(flying, result)
        finally:
            self._take_back()
        blank_rows_without_direction(self._path, result)
        return result

    def close(self) -> None:
        """Waits for the calls that compute, then frees the GPU; harmless the second time.

        If an interrupt ends it, the next call goes on where it ended.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while any(lane.is_used_elsewhere() for lane in (*self._full, *self._small)):
                # Again after a while, for a thread may end without giving back what it had.
                self._changed.wait(_LOOK_AGAIN_S)
        with self._freeing:
            if self._freed:
                return
            with contextlib.suppress(DeviceError):
                self._cuda.use()
            for lanes in (self._full, self._small):
                while lanes:
                    lanes[-1].close()
                    lanes.pop()
            if self._plan is not None:
                self._plan.save_cache()
                self._plan.close()
                self._plan = None
            self._cuda.close()
            self._freed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _try_out(self) -> None:
        """A batch through each full lane: what it does wrong shows now, not hours into a run.

        It also is the warm-up that TensorRT wants before a graph is captured.
        """
        assert self._plan is not None
        size = self.identity.preprocessing.size
        ramp = np.linspace(0, 255, size).astype(np.uint8)
        pixels = np.broadcast_to(ramp[:, None], (self._batches[-1], size, size, 3))
        for lane in self._full:
            self._send(lane, pixels)
        for lane in self._full:
            blank_rows_without_direction(self._path, lane.collect(len(pixels)))
        self._plan.save_cache()
        if self._plan.graphs_of_its_own:
            return
        try:
            for lane in self._full:
                lane.capture()
        except GeoInferError as error:
            # Slower by what it costs to start each kernel alone, and right all the same.
            self.device_reason += f"; without CUDA graphs: {error}"
            for lane in self._full:
                lane.graph = None

    def _lane_for(self, count: int, *, wait: bool) -> _Lane | None:
        """A lane for this many pictures; None if all are lent and `wait` is False.

        Nobody waits who has a lane: two threads with one each would wait for ever.
        """
        full = self._padded(count) == self._batches[-1]
        with self._changed:
            while not self._closed:
                if not full and not self._small:
                    self._small.append(self._small_lane())
                idle = [lane for lane in (self._full if full else self._small) if lane.owner is None]
                if idle:
                    # Each lane gets its turn.
                    lane = min(idle, key=lambda lane: lane.turn)
                    lane.turn = next(self._turns)
                    lane.owner = threading.current_thread()
                    return lane
                if not wait:
                    return None
                self._changed.wait()
        raise ModelError(f"{self._path}: the embedder is closed")

    def _small_lane(self) -> _Lane:
        assert self._plan is not None
        # Memory that is taken while TensorRT-RTX captures a graph of its own might spoil that.
        with self._enqueueing:
            self._cuda.use()
            return _Lane(self._cuda, self._plan, self._batches[-2], self.identity, fixed=False)

    def _take_back(self) -> None:
        """Makes idle what this thread has: nothing, unless something went wrong."""
        me = threading.current_thread()
        for lane in (*self._full, *self._small):
            if lane.owner is me:
                lane.settle()
                self._give_back(lane)

    def _give_back(self, lane: _Lane) -> None:
        with self._changed:
            lane.owner = None
            self._changed.notify_all()

    def _padded(self, count: int) -> int:
        return next(batch for batch in self._batches if batch >= count)

    def _send(self, lane: _Lane, chunk: NDArray[np.uint8]) -> None:
        lane.fill(chunk, self._padded(len(chunk)))
        # Starting work takes no time beside the work; what one engine's contexts share is thus never raced for.
        with self._enqueueing:
            lane.submit()

    def _land(self, flying: deque[tuple[_Lane, int, int]], result: NDArray[np.float32]) -> None:
        """Waits for the oldest chunk, and takes its rows."""
        lane, first, count = flying[0]
        result[first : first + count] = lane.collect(count)
        flying.popleft()
        self._give_back(lane)


class _Lane:
    """All that one batch needs on its way through the GPU.

    Attributes:
        graph: a captured graph that does what the context would, or None.
        owner: the thread that uses it, or None. The lane itself says so and nothing else does: wherever an interrupt
            strikes, there is no second place that could disagree.
        turn: grows with each use.
    """

    def __init__(self, cuda: Cuda, plan: Plan, most: int, identity: EmbedderIdentity, *, fixed: bool = True) -> None:
        """Takes the memory.

        Args:
            cuda: whose GPU it is.
            plan: the engine.
            most: the largest batch.
            identity: says how large pictures and embeddings are.
            fixed: whether every batch is as large as that.
        """
        size, dim = identity.preprocessing.size, identity.dim
        dtype = np.dtype(plan.output_dtype)
        self._cuda, self._plan = cuda, plan
        self._picture_bytes, self._row_bytes = size * size * 3, dim * dtype.itemsize
        self._batch = most if fixed else 0
        self._shape = self._batch
        self.graph: Any = None
        self.owner: threading.Thread | None = None
        self.turn = -1
        with cuda.all_or_nothing():
            self._in = cuda.pinned(most * self._picture_bytes)
            self._out = cuda.pinned(most * self._row_bytes)
            self._device_in = cuda.memory(most * self._picture_bytes)
            self._device_out = cuda.memory(most * self._row_bytes)
            self._stream, self._done = cuda.stream(), cuda.event()
            self._context: Any
            self._config: Any
            self._context, self._config = plan.context(self._batch)
            plan.bind(self._context, self._device_in, self._device_out)
        self._pixels = self._in.bytes.reshape(most, size, size, 3)
        self._embeddings = self._out.bytes.view(dtype).reshape(most, dim)

    def fill(self, chunk: NDArray[np.uint8], batch: int) -> None:
        """Takes the pictures, and zeros up to `batch`."""
        self._cuda.use()
        self._batch = batch
        self._pixels[: len(chunk)] = chunk
        self._pixels[len(chunk) : batch] = 0

    def submit(self) -> None:
        """Starts the copy in, the engine and the copy out, and returns at once."""
        cuda = self._cuda
        cuda.copy_in(self._device_in, self._in, self._batch * self._picture_bytes, self._stream)
        if self.graph is not None:
            cuda.launch(self.graph, self._stream)
        else:
            if self._shape != self._batch:
                self._shape = 0
                self._plan.reshape(self._context, self._batch)
                self._shape = self._batch
            self._plan.enqueue(self._context, self._stream)
        cuda.copy_out(self._out, self._device_out, self._batch * self._row_bytes, self._stream)
        cuda.record(self._done, self._stream)

    def collect(self, count: int) -> NDArray[np.float32]:
        """Waits for what was submitted; its first `count` rows, the caller's own."""
        self._cuda.wait(self._done)
        return self._embeddings[:count].astype(np.float32)

    def settle(self) -> None:
        """Waits until nothing of this lane runs, whatever became of it."""
        self._cuda.settle(self._stream)

    def capture(self) -> None:
        """Makes the graph; raises DeviceError or ModelError where that is impossible."""
        self.graph = self._cuda.capture(self._stream, self._enqueue)

    def close(self) -> None:
        """Lets go of the context when nothing runs in it; the rest is `Cuda.close`'s."""
        self.settle()
        self.graph = None
        self._context = None
        self._config = None

    def is_used_elsewhere(self) -> bool:
        """Whether a thread other than this one uses it."""
        owner = self.owner
        return owner is not None and owner is not threading.current_thread() and owner.is_alive()

    def _enqueue(self) -> None:
        self._plan.enqueue(self._context, self._stream)


def _when_full(path: Path, description: sidecar.Sidecar) -> str:
    """What mends a GPU whose memory is full: contexts take what the largest batch needs, however small a call is."""
    profile = description.profile
    largest = max(profile.min, profile.max // 2)
    smaller = replace(profile, opt=min(profile.opt, largest), max=largest)
    command = sidecar.rebuild_command(path, replace(description, profile=smaller))
    return f"close what else uses the GPU, or build the engine for smaller batches: {command}"


def _static_batches(least: int, most: int) -> list[int]:
    """The batches that are computed: the largest, and powers of two from the smallest to half of it, ascending."""
    powers = {2**exponent for exponent in range(most.bit_length()) if least < 2**exponent <= most // 2}
    return sorted({least, most} | powers)
