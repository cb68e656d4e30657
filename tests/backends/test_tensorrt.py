"""The TensorRT backend without a GPU: everything but the numbers, against a fake that notices what a GPU would not."""

from __future__ import annotations

import ast
import contextlib
import gc
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("onnx")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geoinfer.backends import Embedder, EmbedderIdentity, open_embedder
from geoinfer.backends.base import blank_rows_without_direction
from geoinfer.backends.tensorrt import TensorRtEmbedder, _Lane
from geoinfer.backends.tensorrt_plan import Plan
from geoinfer.engines import flavors
from geoinfer.engines.onnx_metadata import TensorSpec
from geoinfer.engines.sidecar import read_sidecar, sidecar_path, write_sidecar
from geoinfer.errors import DeviceError, GeoInferError, InputError, MismatchError, ModelError, UsageError
from geoinfer.images import Preprocessing
from tests.backends.fake_tensorrt import Error, FakeCuda, Machine, pretend, write_engine
from tests.onnx_models import DIM, PREPROCESSING, SIZE, expected

if TYPE_CHECKING:
    from collections.abc import Callable

FLAVORS = ["tensorrt", "tensorrt-rtx"]
BOTH = pytest.mark.parametrize("flavor", FLAVORS)


def pictures(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def all_free(machine: Machine) -> None:
    """Nothing is held, and nothing was done that a GPU punishes."""
    if list(machine.api.live):
        gc.collect()
    assert machine.cuda.held == []
    assert list(machine.api.live) == []
    assert machine.cuda.misuse == []


def batches(machine: Machine) -> list[int]:
    """What was computed since the last time."""
    found = [len(pixels) for pixels in machine.behaviour.computed]
    machine.behaviour.computed.clear()
    return found


class TestEmbed:
    @BOTH
    @pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 24, 25, 41])
    def test_equals_numpy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: str, count: int) -> None:
        machine = pretend(monkeypatch, flavor)
        pixels = pictures(count)
        with open_embedder(write_engine(tmp_path / "vit.trt", flavor)) as embedder:
            got = embedder.embed(pixels)
            assert got.dtype == np.float32
            assert got.shape == (count, DIM)
            np.testing.assert_allclose(got, expected(pixels), atol=1e-6)
            kept = got.copy()
            embedder.embed(pictures(count, seed=2))
            np.testing.assert_array_equal(got, kept)
        all_free(machine)

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        profile=st.lists(st.integers(1, 40), min_size=3, max_size=3).map(sorted),
        counts=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    )
    def test_any_profile_and_any_counts(self, tmp_path: Path, profile: list[int], counts: list[int]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            machine = pretend(patch, profile=tuple(profile))
            with open_embedder(write_engine(tmp_path / "vit.trt", profile=tuple(profile))) as embedder:
                for seed, count in enumerate(counts):
                    pixels = pictures(count, seed)
                    np.testing.assert_allclose(embedder.embed(pixels), expected(pixels), atol=1e-6)
            sizes = set(batches(machine))
            assert min(sizes) >= profile[0]
            assert max(sizes) == profile[1] <= profile[2]
            assert all(size in profile[:2] or size & (size - 1) == 0 for size in sizes)
            all_free(machine)

    def test_half_precision_output(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch, dtype="float16")
        output = TensorSpec("embeddings", "float16", (-1, DIM))
        pixels = pictures(11)
        with open_embedder(write_engine(tmp_path / "vit.trt", output=output)) as embedder:
            got = embedder.embed(pixels)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected(pixels), atol=2e-3)
        all_free(machine)

    @pytest.mark.parametrize(
        ("count", "computed"),
        [(1, [1]), (2, [2]), (3, [4]), (4, [4]), (5, [8]), (8, [8]), (9, [8, 1]), (13, [8, 8]), (19, [8, 8, 4])],
    )
    def test_padding(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, computed: list[int]) -> None:
        machine = pretend(monkeypatch)
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            embedder.embed(pictures(40))  # whatever the lanes held before
            embedder.embed(pictures(4))
            batches(machine)
            embedder.embed(pictures(count))
        rows = np.concatenate(machine.behaviour.computed)
        assert batches(machine) == computed
        np.testing.assert_array_equal(rows[:count], pictures(count))
        assert not rows[count:].any()

    @pytest.mark.parametrize(
        ("least", "best", "computed"),
        [(1, 48, [1, 2, 4, 8, 16, 48]), (1, 64, [1, 2, 4, 8, 16, 32, 64]), (3, 20, [3, 4, 8, 20]), (1, 1, [1]),
         (5, 8, [5, 8]), (7, 7, [7]), (1, 3, [1, 3]), (1, 2, [1, 2])],
    )  # fmt: skip
    def test_batches_that_are_computed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, best: int, computed: list[int]
    ) -> None:
        """Powers of two up to half the best one: nobody waits for more than twice the work."""
        machine = pretend(monkeypatch, profile=(least, best, best))
        found = set()
        with open_embedder(write_engine(tmp_path / "vit.trt", profile=(least, best, best))) as embedder:
            batches(machine)
            for count in range(1, best + 1):
                embedder.embed(pictures(count))
                (size,) = batches(machine)
                assert size == min(batch for batch in computed if batch >= count)
                found.add(size)
        assert found == set(computed)

    def test_pictures_in_any_layout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend(monkeypatch)
        pixels = pictures(30)[::-2, ::-1, :, ::-1]
        pixels.flags.writeable = False
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            np.testing.assert_allclose(embedder.embed(pixels), expected(pixels), atol=1e-6)

    @pytest.mark.parametrize("wrong", [pictures(1).astype(np.float32), pictures(1)[0], pictures(2)[:, 1:]])
    def test_refuses_other_pixels(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: np.ndarray) -> None:
        pretend(monkeypatch)
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            with pytest.raises(ModelError, match="expected uint8") as caught:
                embedder.embed(wrong)
            assert str(wrong.shape) in str(caught.value)

    def test_a_row_without_a_direction_is_nan_and_costs_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretend(monkeypatch)
        pixels = pictures(10)
        pixels[4] = 0
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            got = embedder.embed(pixels)
        assert np.isnan(got[4]).all()
        others = np.arange(10) != 4
        np.testing.assert_allclose(got[others], expected(pixels[others]), atol=1e-6)

    def test_what_does_not_normalise_is_found_when_it_is_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = pretend(monkeypatch, compute=lambda pixels: 2 * expected(pixels))
        with pytest.raises(ModelError, match="length 2; expected 1"):
            open_embedder(write_engine(tmp_path / "vit.trt"))
        all_free(machine)

    def test_rows_are_blanked_in_place(self) -> None:
        rows = np.array([[1, 0], [0, 0], [np.inf, 0], [0.6, 0.8]], np.float32)
        blank_rows_without_direction(Path("m"), rows)
        assert np.isnan(rows[1:3]).all()
        np.testing.assert_array_equal(rows[[0, 3]], np.array([[1, 0], [0.6, 0.8]], np.float32))


class TestOverlap:
    def test_the_next_chunk_is_sent_before_the_last_is_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cuda = pretend(monkeypatch).cuda
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            cuda.calls.clear()
            embedder.embed(pictures(36))
        order = []
        for name, *arguments in cuda.calls:
            if name == "cudaMemcpyAsync" and arguments[3] == "in":
                order.append("send")
            elif name == "cudaEventSynchronize":
                order.append("wait")
        # 8 + 8 + 8 + 8 + 4: two under way at any time, three when the last is a small one with a lane of its own.
        assert order == ["send", "send", "wait", "send", "wait", "send", "send", "wait", "wait", "wait"]

    def test_chunks_alternate_between_streams_and_buffers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cuda = pretend(monkeypatch).cuda
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            cuda.calls.clear()
            embedder.embed(pictures(32))
        sent = [call for call in cuda.calls if call[0] == "cudaMemcpyAsync" and call[4] == "in"]
        assert len(sent) == 4
        for which in (1, 2, 5):  # device buffer, pinned buffer, stream
            assert sent[0][which] == sent[2][which] != sent[1][which] == sent[3][which]

    def test_threads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch, gpus=2)
        wrong: list[object] = []
        with open_embedder(write_engine(tmp_path / "vit.trt"), "cuda:1") as embedder:
            assert embedder.device == "cuda:1"

            def work(seed: int) -> None:
                try:
                    for count in (1, 30, 8, 3, 17, 0) * 5:
                        pixels = pictures(count, seed)
                        if not np.allclose(embedder.embed(pixels), expected(pixels), atol=1e-6):
                            wrong.append((seed, count))
                except Exception as error:
                    wrong.append(error)

            threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        all_free(machine)


class TestGraphs:
    def test_full_batches_are_replayed_and_small_ones_are_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = pretend(monkeypatch)
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            assert "graph" not in embedder.device_reason
            assert machine.cuda.called("cudaGraphInstantiate") == 2
            machine.cuda.calls.clear()
            embedder.embed(pictures(27))
            assert machine.cuda.called("cudaGraphLaunch") == 3
            assert machine.cuda.called("cudaStreamBeginCapture") == 0
        all_free(machine)

    @pytest.mark.parametrize(
        "how", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "invalidated", "refused"]
    )
    def test_without_them_it_works_and_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        machine = pretend(monkeypatch)
        if how == "invalidated":
            machine.behaviour.refuses_capture = True
        elif how == "refused":  # two lanes are bound, shaped and tried out first: 1 + 2 * (1 + 1 + 2) + 2 calls
            machine.behaviour.fail_at = 12
        else:
            machine.cuda.fail_names = {how}
        pixels = pictures(27)
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            machine.cuda.fail_names = set()
            assert "; without CUDA graphs: " in embedder.device_reason
            if how == "refused":
                assert machine.api.failed == "execute_async_v3"
                assert "TensorRT cannot run the engine" in embedder.device_reason
            np.testing.assert_allclose(embedder.embed(pixels), expected(pixels), atol=1e-6)
            assert machine.cuda.called("cudaGraphLaunch") == 0
            # What a failed capture leaves behind is taken away, for TensorRT asks for the last error too.
            assert how == "cudaStreamBeginCapture" or machine.cuda.called("cudaGetLastError") > 0
        all_free(machine)

    @pytest.mark.parametrize("which", [1, 2])
    @pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
    def test_all_lanes_or_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, which: int) -> None:
        """The one lane whose capture worked must not be told apart from the other by its last digits."""
        path = write_engine(tmp_path / "vit.trt")
        machine = pretend(monkeypatch)
        open_embedder(path).close()
        at = [number for number, call in enumerate(machine.cuda.calls, 1) if call[0] == name][which - 1]
        machine = pretend(monkeypatch)
        machine.cuda.fail_at = at
        with open_embedder(path) as embedder:
            assert machine.cuda.failed == name
            assert "; without CUDA graphs: " in embedder.device_reason
            pixels = pictures(27)
            np.testing.assert_allclose(embedder.embed(pixels), expected(pixels), atol=1e-6)
            assert machine.cuda.called("cudaGraphLaunch") == 0
        all_free(machine)

    def test_tensorrt_rtx_has_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch, "tensorrt-rtx")
        with open_embedder(write_engine(tmp_path / "vit.trt", "tensorrt-rtx")) as embedder:
            embedder.embed(pictures(20))
            configs = [thing for thing in machine.api.live if hasattr(thing, "cuda_graph_strategy")]
            assert len(configs) == 3
            assert {config.cuda_graph_strategy.name for config in configs} == {"WHOLE_GRAPH_CAPTURE"}
            assert {config.dynamic_shapes_kernel_specialization_strategy.name for config in configs} == {"EAGER"}
            assert len({id(config.cache) for config in configs}) == 1
            del configs
        assert machine.cuda.called("cudaStreamBeginCapture") == 0
        all_free(machine)


class TestKernelCache:
    def test_is_kept_beside_the_engine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend(monkeypatch, "tensorrt-rtx")
        path = write_engine(tmp_path / "vit.trt", "tensorrt-rtx")
        with open_embedder(path) as embedder:
            assert (tmp_path / "vit.trt.cache").read_bytes() == b"kernels 8"
            embedder.embed(pictures(3))
        assert (tmp_path / "vit.trt.cache").read_bytes() == b"kernels 4 8"
        before = (tmp_path / "vit.trt.cache").stat().st_mtime_ns
        with open_embedder(path) as embedder:
            embedder.embed(pictures(12))
        assert (tmp_path / "vit.trt.cache").read_bytes() == b"kernels 4 8"
        assert (tmp_path / "vit.trt.cache").stat().st_mtime_ns == before

    @pytest.mark.parametrize("content", [b"", b"rubbish", b"kernels 2"])
    def test_one_that_does_not_fit_is_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
    ) -> None:
        pretend(monkeypatch, "tensorrt-rtx", cache_fits=False)
        (tmp_path / "vit.trt.cache").write_bytes(content)
        open_embedder(write_engine(tmp_path / "vit.trt", "tensorrt-rtx")).close()
        assert (tmp_path / "vit.trt.cache").read_bytes() == b"kernels 8"

    def test_a_folder_that_cannot_be_written_is_no_fault(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend(monkeypatch, "tensorrt-rtx")
        (tmp_path / "vit.trt.cache").mkdir()  # holds for root as well
        with open_embedder(write_engine(tmp_path / "vit.trt", "tensorrt-rtx")) as embedder:
            assert len(embedder.embed(pictures(9))) == 9

    def test_not_of_an_engine_that_is_still_being_built(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend(monkeypatch, "tensorrt-rtx")
        path = write_engine(tmp_path / ".vit.geoinfer-tmp.trt", "tensorrt-rtx")
        open_embedder(path).close()
        assert sorted(tmp_path.iterdir()) == [path, sidecar_path(path)]


class TestFaults:
    """Each call fails in its turn: what was taken is given back, and one sentence says what happened."""

    @staticmethod
    def use(path: Path) -> tuple[type, str, str] | None:
        """Opens, embeds, closes; what went wrong, without the traceback that would keep the engine alive."""
        try:
            with open_embedder(path) as embedder:
                pixels = pictures(30)
                np.testing.assert_allclose(embedder.embed(pixels), expected(pixels), atol=1e-6)
        except GeoInferError as error:
            return type(error), str(error), error.hint
        return None

    @BOTH
    def test_of_cuda(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: str) -> None:
        path = write_engine(tmp_path / "vit.trt", flavor)
        failed = set()
        for number in range(1, 1000):
            machine = pretend(monkeypatch, flavor)
            machine.cuda.fail_at = number
            said = self.use(path)
            if said is not None:
                kind, words, hint = said
                assert kind is DeviceError
                assert "illegal address" in words
                assert "\n" not in words
                assert hint or machine.cuda.failed == "cudaGetDeviceProperties"
            if not machine.cuda.failed:
                break
            failed.add(machine.cuda.failed)
            # What could not be freed is what the fake was told to fail to free.
            not_freed = {"cudaFree": "device", "cudaFreeHost": "pinned", "cudaStreamDestroy": "stream",
                         "cudaEventDestroy": "event", "cudaGraphDestroy": "graph",
                         "cudaGraphExecDestroy": "executable graph"}  # fmt: skip
            left = not_freed.get(machine.cuda.failed)
            if list(machine.api.live):
                gc.collect()
            assert machine.cuda.held == ([left] if left else []), machine.cuda.failed
            assert list(machine.api.live) == [], machine.cuda.failed
            assert machine.cuda.misuse == [], machine.cuda.failed
        assert failed >= set(machine.cuda.names()) - {
            "cudaDriverGetVersion", "cudaGetErrorString", "cudaStreamSynchronize",
            *(("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy",
               "cudaGraphExecDestroy", "cudaGraphLaunch", "cudaGetLastError") if flavor == "tensorrt-rtx" else ()),
        }  # fmt: skip

    @BOTH
    def test_of_tensorrt(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: str) -> None:
        path = write_engine(tmp_path / "vit.trt", flavor)
        failed = set()
        for number in range(1, 1000):
            machine = pretend(monkeypatch, flavor, says="IExecutionContext: Error Code 1: it is broken")
            machine.behaviour.fail_at = number
            said = self.use(path)
            if said is not None:
                kind, words, hint = said
                assert kind is ModelError
                assert str(path) in words
                assert "it is broken" in words
                assert f"geoinfer engine build {tmp_path / 'tiny.onnx'} --out {path}" in hint
            if not machine.api.failed:
                break
            failed.add(machine.api.failed)
            all_free(machine)
        assert failed == {
            "deserialize_cuda_engine", "create_execution_context", "set_input_shape", "set_tensor_address",
            "execute_async_v3",
        }  # fmt: skip

    def test_a_call_that_fails_costs_that_call_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch)
        pixels = pictures(30)
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            embedder.embed(pixels)
            for number in range(1, 60):
                machine.cuda.fail_at, machine.cuda.failed = number, ""
                with contextlib.suppress(DeviceError):
                    embedder.embed(pixels)
                machine.cuda.fail_at = None
                np.testing.assert_allclose(embedder.embed(pixels), expected(pixels), atol=1e-6)
            assert not machine.cuda.failed
        all_free(machine)

    @pytest.mark.parametrize("name", ["cudaMalloc", "cudaHostAlloc"])
    def test_memory_that_is_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        machine = pretend(monkeypatch)
        machine.cuda.fail_names, machine.cuda.fail_code = {name}, Error.OUT_OF_MEMORY
        with pytest.raises(DeviceError, match="memory of GPU 0 is full") as caught:
            open_embedder(write_engine(tmp_path / "vit.trt"))
        assert "--max-batch 8" in caught.value.hint
        all_free(machine)

    def test_memory_that_is_full_as_tensorrt_says_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch, says="Error Code 2: OutOfMemory (Requested size was 123 bytes.)", fail_at=2)
        with pytest.raises(DeviceError, match="the GPU's memory is too small for this engine") as caught:
            open_embedder(write_engine(tmp_path / "vit.trt"))
        assert machine.api.failed == "create_execution_context"
        assert "--max-batch 8" in caught.value.hint
        all_free(machine)

    def test_each_error_says_its_own_fault(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch)
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            for says, kind, words in (
                ("Error Code 2: OutOfMemory (Requested size was 1 bytes.)", DeviceError, "memory is too small"),
                ("Error Code 1: the first", ModelError, "the first"),
                ("Error Code 1: the second", ModelError, "the second"),
            ):
                # The third batch is another, so that the shape is what is refused.
                machine.behaviour.fail_at, machine.behaviour.says = 1, says
                with pytest.raises(kind, match=words):
                    embedder.embed(pictures({"memory is too small": 1, "the first": 2}.get(words, 3)))

    @BOTH
    def test_a_shape_that_was_refused_is_set_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: str
    ) -> None:
        machine = pretend(monkeypatch, flavor)
        with open_embedder(write_engine(tmp_path / "vit.trt", flavor)) as embedder:
            pixels = pictures(4)
            embedder.embed(pixels[:2])
            machine.behaviour.fail_at = 1
            with pytest.raises(ModelError, match="refuses a batch of 4"):
                embedder.embed(pixels)
            assert machine.api.failed == "set_input_shape"
            np.testing.assert_allclose(embedder.embed(pixels[:2]), expected(pixels[:2]), atol=1e-6)
        all_free(machine)

    def test_what_the_bindings_raise(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch)

        def refuse(log: object) -> None:
            raise TypeError("pybind11::init(): factory function returned nullptr")

        machine.api.Runtime = refuse
        with pytest.raises(ModelError, match="TensorRT cannot read the engine: pybind11") as caught:
            open_embedder(write_engine(tmp_path / "vit.trt"))
        assert "geoinfer engine build" in caught.value.hint
        all_free(machine)

    def test_no_lane_is_left_over_for_small_batches_when_there_is_no_room_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = pretend(monkeypatch)
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            held = machine.cuda.held
            machine.cuda.fail_names = {"cudaEventCreateWithFlags"}
            for _ in range(3):
                with pytest.raises(DeviceError):
                    embedder.embed(pictures(11))
            assert machine.cuda.held == held
            machine.cuda.fail_names = set()
            assert len(embedder.embed(pictures(11))) == 11
        all_free(machine)

    @BOTH
    def test_nothing_of_a_small_lane_stays_when_tensorrt_refuses_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: str
    ) -> None:
        machine = pretend(monkeypatch, flavor)
        with open_embedder(write_engine(tmp_path / "vit.trt", flavor)) as embedder:
            gc.collect()
            before = sorted(type(thing).__name__ for thing in machine.api.live)
            for number in (1, 2, 3):  # to make its context, and to bind its two addresses
                machine.behaviour.fail_at = number
                with pytest.raises(ModelError):
                    embedder.embed(pictures(3))
                gc.collect()
                assert sorted(type(thing).__name__ for thing in machine.api.live) == before
            assert len(embedder.embed(pictures(3))) == 3
        all_free(machine)


class TestClose:
    @pytest.mark.parametrize("name", ["fill", "submit", "collect", "settle"])
    @pytest.mark.parametrize("after", [False, True])
    def test_an_interrupt_of_a_call(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
    ) -> None:
        """Wherever it strikes, the next call and close find every lane."""
        machine = pretend(monkeypatch)
        pixels = pictures(30)
        embedder = open_embedder(write_engine(tmp_path / "vit.trt"))
        for turn in range(1, 5):
            calls = [0]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_Lane, name, interrupting(getattr(_Lane, name), turn, calls, after=after))
                with contextlib.suppress(KeyboardInterrupt):
                    embedder.embed(pixels)
            np.testing.assert_allclose(embedder.embed(pixels), expected(pixels), atol=1e-6)
        closes(embedder)
        all_free(machine)

    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("name", ["_lane_for", "_give_back", "_take_back"])
    def test_an_interrupt_between_taking_a_lane_and_noting_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
    ) -> None:
        machine = pretend(monkeypatch)
        path = write_engine(tmp_path / "vit.trt")
        for turn in range(1, 5):
            embedder = open_embedder(path)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    TensorRtEmbedder, name, interrupting(getattr(TensorRtEmbedder, name), turn, [0], after=after)
                )
                with contextlib.suppress(KeyboardInterrupt):
                    embedder.embed(pictures(30))
            if turn % 2:
                np.testing.assert_allclose(embedder.embed(pictures(30)), expected(pictures(30)), atol=1e-6)
            closes(embedder)
        all_free(machine)

    @pytest.mark.parametrize("embeds", [False, True])
    def test_an_interrupt_of_winding_up_an_interrupted_call(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embeds: bool
    ) -> None:
        """The thread still has its lanes, and work is under way in them: its next call, or close, makes them idle."""
        machine = pretend(monkeypatch)
        embedder = open_embedder(write_engine(tmp_path / "vit.trt"))
        found: list[object] = []

        def work() -> None:
            with pytest.MonkeyPatch.context() as patch:
                take_back = TensorRtEmbedder._take_back
                patch.setattr(TensorRtEmbedder, "_take_back", interrupting(take_back, 2, [0], after=False))
                patch.setattr(_Lane, "collect", interrupting(_Lane.collect, 1, [0], after=False))
                with contextlib.suppress(KeyboardInterrupt):
                    embedder.embed(pictures(30))
            found.append([lane.owner for lane in embedder._full])
            if embeds:
                found.append(embedder.embed(pictures(30)))
            embedder.close()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        assert found[0] == [thread, thread]
        if embeds:
            np.testing.assert_allclose(found[1], expected(pictures(30)), atol=1e-6)
        all_free(machine)

    def test_an_interrupt_of_close_is_made_good_by_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = pretend(monkeypatch)
        path = write_engine(tmp_path / "vit.trt")
        for owner, name, turn in (
            (_Lane, "close", 1),
            (_Lane, "close", 2),
            (Plan, "close", 1),
            (Plan, "save_cache", 1),
        ):
            embedder = open_embedder(path)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, interrupting(getattr(owner, name), turn, [0], after=False))
                with pytest.raises(KeyboardInterrupt):
                    embedder.close()
            assert machine.cuda.held
            closes(embedder)
            all_free(machine)

    def test_an_interrupt_of_close_while_it_waits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch)
        embedder = open_embedder(write_engine(tmp_path / "vit.trt"))
        done = threading.Event()
        thread = threading.Thread(target=lambda: (embedder._lane_for(8, wait=True), done.wait(30)))
        thread.start()
        while not embedder._full[0].owner and not embedder._full[1].owner:
            time.sleep(0.001)

        def interrupt(timeout: float | None = None) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedder._changed, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                embedder.close()
        assert machine.cuda.held
        with pytest.raises(ModelError, match="closed"):
            embedder.embed(pictures(1))
        # The thread ends without having given back what it had.
        done.set()
        thread.join(30)
        closes(embedder)
        all_free(machine)

    def test_twice_and_afterwards(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch)
        embedder = open_embedder(write_engine(tmp_path / "vit.trt"))
        assert machine.cuda.held.count("device") == 4
        embedder.close()
        all_free(machine)
        calls = len(machine.cuda.calls)
        embedder.close()
        for count in (0, 1, 8):
            with pytest.raises(ModelError, match="closed"):
                embedder.embed(pictures(count))
        assert len(machine.cuda.calls) == calls

    def test_waits_for_calls_that_compute_and_turns_away_those_that_wait(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        computing, go_on = threading.Event(), threading.Event()

        def compute(pixels: np.ndarray) -> np.ndarray:
            if (pixels[0] == 7).all():
                computing.set()
                assert go_on.wait(30)
            return expected(pixels)

        machine = pretend(monkeypatch, compute=compute)
        machine.cuda.lock = NoLock()
        embedder = open_embedder(write_engine(tmp_path / "vit.trt"))
        outcome: dict[str, object] = {}

        def run(name: str, pixels: np.ndarray) -> None:
            try:
                outcome[name] = embedder.embed(pixels)
            except GeoInferError as error:
                outcome[name] = error

        sevens = np.full((3, SIZE, SIZE, 3), 7, np.uint8)
        first = threading.Thread(target=run, args=("first", sevens))
        first.start()
        assert computing.wait(30)
        second = threading.Thread(target=run, args=("second", pictures(3)))  # there is but one lane for small ones
        second.start()
        while not embedder._changed._waiters:
            time.sleep(0.001)
        closing = threading.Thread(target=embedder.close)
        closing.start()
        second.join(30)
        assert isinstance(outcome["second"], ModelError)
        assert closing.is_alive()
        assert machine.cuda.held
        go_on.set()
        first.join(30)
        closing.join(30)
        np.testing.assert_allclose(outcome["first"], expected(sevens), atol=1e-6)
        all_free(machine)


def interrupting(real: Callable[..., object], turn: int, calls: list[int], *, after: bool) -> Callable[..., object]:
    """A function that an interrupt strikes once: at its n-th call, before or after what it does."""

    def call(*arguments: object, **options: object) -> object:
        calls[0] += 1
        mine = calls[0] == turn
        if mine and not after:
            raise KeyboardInterrupt
        result = real(*arguments, **options)
        if mine:
            raise KeyboardInterrupt
        return result

    return call


def closes(embedder: Embedder) -> None:
    """In a thread: a close that waits for ever must fail a test and not hold it up."""
    thread = threading.Thread(target=embedder.close, daemon=True)
    if any(lane.owner is threading.current_thread() for lane in (*embedder._full, *embedder._small)):
        embedder.close()  # what this thread still has is its own to close
        return
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


class NoLock:
    """The fake's lock would keep other threads from CUDA while one computes, which a GPU does not."""

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...


class TestIdentity:
    @BOTH
    def test_from_the_sidecar(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: str) -> None:
        pretend(monkeypatch, flavor)
        path = write_engine(tmp_path / "VIT.TRT", flavor)
        with open_embedder(path, preprocessing=Preprocessing.from_dict(PREPROCESSING)) as embedder:
            assert embedder.identity == EmbedderIdentity("tiny:0", DIM, Preprocessing.from_dict(PREPROCESSING))
            assert embedder.dim == DIM
            assert embedder.device == "cuda:0"
            assert embedder.device_reason.startswith("VIT.TRT, fp16, by TensorRT")
            assert embedder.device_reason.endswith("on NVIDIA Fake")
            assert not embedder.fell_back
            assert embedder.fingerprint == read_sidecar(path).engine.sha256
            assert (embedder.best_batch, embedder.calls_at_once) == (8, 2)

    def test_on_another_gpu_of_the_same_kind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch)
        machine.cuda.gpu_name = b"NVIDIA Other"
        with open_embedder(write_engine(tmp_path / "vit.trt")) as embedder:
            assert "built on NVIDIA Fake, here is NVIDIA Other" in embedder.device_reason

    @pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1", "tensorrt", "tensorrt:1"])
    def test_devices(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
        pretend(monkeypatch, gpus=2)
        with open_embedder(write_engine(tmp_path / "vit.trt"), device) as embedder:
            assert embedder.device == ("cuda:1" if device.endswith("1") else "cuda:0")

    def test_not_on_a_cpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = pretend(monkeypatch)
        with pytest.raises(UsageError, match="runs on an NVIDIA GPU alone") as caught:
            open_embedder(write_engine(tmp_path / "vit.trt"), "cpu")
        assert str(tmp_path / "tiny.onnx") in caught.value.hint
        assert machine.cuda.calls == []

    def test_another_preprocessing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend(monkeypatch)
        with pytest.raises(UsageError, match="was made for"):
            open_embedder(write_engine(tmp_path / "vit.trt"), preprocessing=Preprocessing(size=SIZE))


class TestBeforeTensorRtSeesTheFile:
    @pytest.mark.parametrize(
        ("wrong", "error", "words"),
        [
            ("no file", InputError, "no such model"),
            ("folder", ModelError, "a folder"),
            ("no sidecar", ModelError, "has no sidecar"),
            ("sidecar damaged", ModelError, "not JSON"),
            ("truncated", ModelError, "truncated"),
            ("changed", ModelError, "does not match the checksum"),
            ("foreign", ModelError, "it looks like no engine of a TensorRT"),
            ("version", MismatchError, "built by TensorRT 9.9.9, here is 10.13.3.9"),
            ("flavour", MismatchError, "built by TensorRT-RTX 1.7.1.116, which is not installed here"),
            ("gpu", MismatchError, "here is NVIDIA Fake (compute capability 9.0)"),
            ("no gpu", DeviceError, "no NVIDIA GPU can be used here"),
            ("no such gpu", DeviceError, "cuda:3: there is no such GPU"),
            ("tensors", ModelError, "the engine's tensors are"),
            ("shape", ModelError, "the engine's tensors are"),
            ("dtype", ModelError, "output embeddings float16"),
            ("profile", ModelError, "takes batches of [1, 8, 16]"),
        ],
    )
    def test_a_sentence_says_what_is_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, error: type[GeoInferError], words: str
    ) -> None:
        machine = pretend(monkeypatch, gpus=0 if wrong == "no gpu" else 1)
        path = tmp_path / "vit.trt"
        device = "cuda:3" if wrong == "no such gpu" else "auto"
        if wrong == "folder":
            path.mkdir()
        elif wrong == "flavour":
            write_engine(path, "tensorrt-rtx")
        elif wrong == "version":
            write_engine(path, flavor_version="9.9.9")
        elif wrong == "profile":
            write_engine(path, profile=(1, 4, 16))
        elif wrong != "no file":
            write_engine(path)
        if wrong == "no sidecar":
            sidecar_path(path).unlink()
        elif wrong == "sidecar damaged":
            sidecar_path(path).write_text("{")
        elif wrong == "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        elif wrong == "changed":
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        elif wrong == "foreign":
            path.write_bytes(b"x" * path.stat().st_size)
        elif wrong == "gpu":
            machine.cuda.capability = (9, 0)
        elif wrong == "tensors":
            machine.behaviour.tensors = ("images", "embeddings")
        elif wrong == "dtype":
            machine.behaviour.dtype = "float16"
        elif wrong == "shape":
            machine.behaviour.output_shape = (-1, DIM + 1)
        with pytest.raises(error) as caught:
            open_embedder(path, device)
        assert words in str(caught.value)
        assert caught.value.hint
        assert caught.value.exit_code == {InputError: 2, DeviceError: 4}.get(error, 3)
        assert machine.behaviour.seen_file == (wrong in ("tensors", "dtype", "shape", "profile"))
        all_free(machine)

    def test_a_file_that_changes_once_it_is_checked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_engine(tmp_path / "vit.trt")
        pretend(monkeypatch)
        write_sidecar(path, replace(read_sidecar(path), dim=DIM, identity="other:1"))
        with open_embedder(path) as embedder:
            assert embedder.identity.name == "other:1"


class TestRealLibraries:
    """What the fake cannot know of itself."""

    pytestmark = pytest.mark.slow

    def test_cuda_has_every_name_that_is_used(self) -> None:
        runtime = pytest.importorskip("cuda.bindings.runtime")
        source = ast.parse((Path(__file__).parents[2] / "geoinfer" / "backends" / "cuda.py").read_text())
        used = {
            node.value if isinstance(node, ast.Constant) else node.attr
            for node in ast.walk(source)
            if (isinstance(node, ast.Constant) and str(node.value).startswith("cuda") and str(node.value).isalnum())
            or (isinstance(node, ast.Attribute) and node.attr.startswith("cuda"))
        }
        assert len(used) > 20
        nested = {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaStreamCaptureModeThreadLocal"}
        for name in used - nested:
            assert hasattr(runtime, name), name
        for name in FakeCuda(1).names():
            assert hasattr(runtime, name), name
        assert hasattr(runtime.cudaMemcpyKind, "cudaMemcpyHostToDevice")
        assert hasattr(runtime.cudaMemcpyKind, "cudaMemcpyDeviceToHost")
        assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
        assert int(runtime.cudaError_t.cudaErrorMemoryAllocation) == Error.OUT_OF_MEMORY

    @BOTH
    def test_tensorrt_has_every_name_that_is_used(self, flavor: str) -> None:
        api = pytest.importorskip(flavor.replace("-", "_"))
        for kind, names in {
            "Runtime": ["deserialize_cuda_engine"],
            "ICudaEngine": [
                "num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype", "get_tensor_shape",
                "get_tensor_profile_shape", "create_execution_context",
            ],
            "IExecutionContext": ["set_input_shape", "set_tensor_address", "execute_async_v3"],
            "DataType": ["UINT8", "FLOAT", "HALF"],
            "TensorIOMode": ["INPUT", "OUTPUT"],
        }.items():  # fmt: skip
            for name in names:
                assert hasattr(getattr(api, kind), name), f"{kind}.{name}"
        assert api.TensorIOMode.INPUT.name.lower() == "input"
        if flavor == "tensorrt-rtx":
            assert hasattr(api.ICudaEngine, "create_runtime_config")
            for name in (
                "create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy",
                "dynamic_shapes_kernel_specialization_strategy",
            ):  # fmt: skip
                assert hasattr(api.IRuntimeConfig, name)
            assert {"serialize", "deserialize"} <= set(dir(api.IRuntimeCache))
            assert hasattr(api.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE")
            assert hasattr(api.DynamicShapesKernelSpecializationStrategy, "EAGER")

    def test_without_a_gpu_a_real_engine_is_exit_4(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorrt_rtx")
        runtime = pytest.importorskip("cuda.bindings.runtime")
        error, count = runtime.cudaGetDeviceCount()
        if int(error) == 0 and count:
            pytest.skip("there is a GPU")
        from geoinfer.engines.build import BuildOptions, build_engine
        from tests.onnx_models import make_model

        model = make_model(tmp_path / "tiny.onnx")
        build_engine(model, tmp_path / "tiny.trt", BuildOptions(flavor="tensorrt-rtx", max_batch=64), lambda line: None)
        with pytest.raises(DeviceError, match="no NVIDIA GPU can be used here") as caught:
            open_embedder(tmp_path / "tiny.trt")
        assert caught.value.exit_code == 4
        assert flavors.installed_flavors()
