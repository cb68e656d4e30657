from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto

from geoinfer.backends import EmbedderIdentity, onnx_runtime, open_embedder
from geoinfer.bundle import SHIPPED
from geoinfer.errors import DeviceError, InputError, MissingPackageError, ModelError, UsageError
from geoinfer.images import Preprocessing, load_pixels
from tests.onnx_models import DIM, METADATA, PREPROCESSING, SIZE, expected, make_model


def pictures(count: int, seed: int = 1, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "tiny.onnx")


class TestEmbed:
    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_equals_numpy(self, model: Path, count: int) -> None:
        pixels = pictures(count)
        with open_embedder(model, "cpu") as embedder:
            got = embedder.embed(pixels)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected(pixels), atol=2e-6)

    def test_no_pictures(self, model: Path) -> None:
        with open_embedder(model, "cpu") as embedder:
            got = embedder.embed(pictures(0))
        assert got.shape == (0, DIM)
        assert got.dtype == np.float32

    def test_non_contiguous_and_read_only_pixels(self, model: Path) -> None:
        pixels = pictures(6)[::-2, ::-1, :, ::-1]
        assert not pixels.flags.c_contiguous
        pixels.flags.writeable = False
        before = pixels.copy()
        with open_embedder(model, "cpu") as embedder:
            np.testing.assert_allclose(embedder.embed(pixels), expected(before), atol=2e-6)
        np.testing.assert_array_equal(pixels, before)

    def test_result_is_the_callers_own(self, model: Path) -> None:
        pixels = pictures(3)
        with open_embedder(model, "cpu") as embedder:
            first = embedder.embed(pixels)
            kept = first.copy()
            second = embedder.embed(pixels)
            first[:] = 7
            third = embedder.embed(pixels)
            embedder.embed(pictures(3, seed=9))
        np.testing.assert_array_equal(second, kept)
        np.testing.assert_array_equal(third, kept)

    def test_concurrent_calls(self, model: Path) -> None:
        wrong: list[int] = []
        with open_embedder(model, "cpu", threads=1) as embedder:

            def work(seed: int) -> None:
                for count in (1, 3, 5) * 10:
                    pixels = pictures(count, seed)
                    if not np.allclose(embedder.embed(pixels), expected(pixels), atol=2e-6):
                        wrong.append(seed)

            threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []

    @pytest.mark.parametrize(
        "pixels",
        [
            pictures(1).astype(np.float32),
            pictures(1)[0],
            pictures(1, size=SIZE + 1),
            pictures(1)[..., :1],
            np.moveaxis(pictures(1), 3, 1),
        ],
        ids=["dtype", "no batch", "size", "grey", "channels first"],
    )
    def test_refuses_other_pixels(self, model: Path, pixels: np.ndarray) -> None:
        with open_embedder(model, "cpu") as embedder, pytest.raises(ModelError, match="expected uint8") as caught:
            embedder.embed(pixels)
        assert str(pixels.dtype) in str(caught.value)
        assert str(pixels.shape) in str(caught.value)

    def test_half_precision_output_becomes_float32(self, tmp_path: Path) -> None:
        path = make_model(tmp_path / "half.onnx", out_dtype=TensorProto.FLOAT16)
        pixels = pictures(2)
        with open_embedder(path, "cpu") as embedder:
            got = embedder.embed(pixels)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected(pixels), atol=2e-3)

    @pytest.mark.parametrize("nan", [True, False], ids=["not a number", "all zeros"])
    def test_a_row_without_a_direction_is_nan_and_costs_no_other(self, tmp_path: Path, nan: bool) -> None:
        pixels = pictures(3)
        pixels[1] = 0
        with open_embedder(make_model(tmp_path / "m.onnx", nan=nan), "cpu") as embedder:
            got = embedder.embed(pixels)
        assert np.isnan(got[1]).all()
        np.testing.assert_allclose(got[[0, 2]], expected(pixels[[0, 2]]), atol=2e-6)

    def test_after_close_it_says_so(self, model: Path) -> None:
        embedder = open_embedder(model, "cpu")
        embedder.close()
        embedder.close()
        with pytest.raises(ModelError, match="closed"):
            embedder.embed(pictures(1))


class TestIdentity:
    def test_from_metadata(self, model: Path) -> None:
        with open_embedder(model, "cpu") as embedder:
            assert embedder.identity == EmbedderIdentity("tiny:0", DIM, Preprocessing.from_dict(PREPROCESSING))
            assert embedder.dim == DIM
            assert embedder.device == "cpu"
            assert embedder.fingerprint == hashlib.sha256(model.read_bytes()).hexdigest()

    def test_survives_the_way_through_a_manifest(self, model: Path) -> None:
        with open_embedder(model, "cpu") as embedder:
            written = json.dumps(embedder.identity.as_dict())
        values = json.loads(written)
        assert values["name"] == "tiny:0"
        assert values["preprocessing"]["resize"] == "squash"
        assert EmbedderIdentity.from_dict(values) == embedder.identity

    def test_without_metadata_the_file_names_it(self, tmp_path: Path) -> None:
        path = make_model(tmp_path / "bare.onnx", metadata=None)
        given = Preprocessing.parse(f"size={SIZE}")
        with open_embedder(path, "cpu", preprocessing=given) as embedder:
            assert embedder.identity.name == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            assert embedder.identity.preprocessing == given

    def test_another_preprocessing_than_the_models_is_refused(self, model: Path) -> None:
        with pytest.raises(UsageError, match="crop") as caught:
            open_embedder(model, "cpu", preprocessing=Preprocessing.parse(f"size={SIZE},resize=crop"))
        assert "squash" in str(caught.value)

    def test_the_same_preprocessing_is_allowed(self, model: Path) -> None:
        with open_embedder(model, "cpu", preprocessing=Preprocessing.from_dict(PREPROCESSING)) as embedder:
            assert embedder.identity.name == "tiny:0"

    def test_dim_from_metadata_where_the_graph_has_none(self, tmp_path: Path) -> None:
        with open_embedder(make_model(tmp_path / "m.onnx", declared=["batch", "dim"]), "cpu") as embedder:
            assert embedder.dim == DIM


def without(*keys: str, **more: str) -> dict[str, str]:
    return {k: v for k, v in METADATA.items() if k not in keys} | {f"geoinfer.{k}": v for k, v in more.items()}


class TestRefuses:
    @pytest.mark.parametrize(
        ("how", "words"),
        [
            ({"dtype": TensorProto.FLOAT}, "tensor(float)"),
            ({"shape": ["batch", 3, SIZE, SIZE]}, "expected uint8 (batch, size, size, 3)"),
            ({"batch": 1}, "the batch is fixed at 1"),
            ({"declared": ["batch", "d"], "metadata": without("geoinfer.dim")}, "how long an embedding is"),
            ({"declared": ["batch", "d"], "metadata": without(dim="many")}, "how long an embedding is"),
            ({"declared": ["batch", "d"], "metadata": without(dim="5")}, "expected (1, 5)"),
            ({"out_dtype": TensorProto.INT64}, "expected float"),
            ({"extra_input": True}, "2 inputs"),
            ({"normalise": False}, "expected 1"),
            ({"metadata": None}, "does not say which pixels"),
            ({"metadata": without(preprocessing="{")}, "metadata is damaged"),
            ({"metadata": without(preprocessing='{"size": 8, "mode": 1}')}, "unknown mode"),
            ({"metadata": without("geoinfer.identity")}, "metadata is damaged"),
            ({"metadata": without(preprocessing=json.dumps(PREPROCESSING | {"size": 9}))}, "8 x 8"),
        ],
    )
    def test_a_model_that_is_wrong(self, tmp_path: Path, how: dict, words: str) -> None:
        path = make_model(tmp_path / "wrong.onnx", **how)
        with pytest.raises(ModelError) as caught:
            open_embedder(path, "cpu")
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 3

    @pytest.mark.parametrize("content", [b"", b"not a model", None], ids=["empty", "text", "truncated"])
    def test_a_file_that_is_no_model(self, tmp_path: Path, model: Path, content: bytes | None) -> None:
        path = tmp_path / "broken.onnx"
        path.write_bytes(model.read_bytes()[:200] if content is None else content)
        with pytest.raises(ModelError, match="not a model that ONNX Runtime can open") as caught:
            open_embedder(path, "cpu")
        assert "\n" not in str(caught.value)

    def test_external_data_that_is_missing(self, tmp_path: Path) -> None:
        path = make_model(tmp_path / "m.onnx", external=True)
        with open_embedder(path, "cpu") as embedder:
            assert embedder.dim == DIM
        (tmp_path / "m.onnx.data").unlink()
        with pytest.raises(ModelError, match=r"m\.onnx"):
            open_embedder(path, "cpu")

    def test_no_file_a_folder_and_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such model"):
            open_embedder(tmp_path / "none.onnx", "cpu")
        with pytest.raises(ModelError, match="a folder"):
            open_embedder(tmp_path, "cpu")
        (tmp_path / "vit.pt").write_bytes(b"weights")
        with pytest.raises(ModelError, match=r"not an \.onnx model or a \.trt engine"):
            open_embedder(tmp_path / "vit.pt", "cpu")


class TestDevices:
    @pytest.mark.parametrize(
        ("text", "parsed"),
        [("auto", ("auto", 0)), ("cpu", ("cpu", 0)), ("cuda", ("cuda", 0)), ("cuda:3", ("cuda", 3)),
         ("tensorrt", ("tensorrt", 0)), ("tensorrt:12", ("tensorrt", 12))],
    )  # fmt: skip
    def test_parse(self, text: str, parsed: tuple[str, int]) -> None:
        assert onnx_runtime.parse_device(text) == parsed

    @pytest.mark.parametrize(
        "text", ["", "gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:1 ", "cuda:a", "auto:0", "1"]
    )
    def test_parse_refuses(self, text: str) -> None:
        with pytest.raises(UsageError, match="expected auto, cpu, cuda"):
            onnx_runtime.parse_device(text)

    def test_providers(self) -> None:
        assert onnx_runtime._providers("cpu", 0) == ["CPUExecutionProvider"]
        cuda, cpu = onnx_runtime._providers("cuda", 1)
        assert cuda[0] == "CUDAExecutionProvider"
        assert cuda[1]["device_id"] == 1
        assert cpu == "CPUExecutionProvider"
        names = [p if isinstance(p, str) else p[0] for p in onnx_runtime._providers("tensorrt", 2)]
        assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        assert [p[1]["device_id"] for p in onnx_runtime._providers("tensorrt", 2)[:2]] == [2, 2]

    @pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt:0"])
    def test_a_device_that_is_missing(self, model: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_runtime(monkeypatch, ["CPUExecutionProvider"])
        with pytest.raises(DeviceError, match=f"--device {device}: ") as caught:
            open_embedder(model, device)
        assert caught.value.exit_code == 4
        assert "[gpu]" in caught.value.hint

    def test_a_session_that_fell_back_to_the_cpu_is_refused(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_runtime(monkeypatch, ["CUDAExecutionProvider", "CPUExecutionProvider"], got=["CPUExecutionProvider"])
        with pytest.raises(DeviceError, match="CUDAExecutionProvider did not start"):
            open_embedder(model, "cuda:1")

    def test_a_provider_that_fails_is_a_device_error_and_a_broken_model_is_not(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class InvalidProtobuf(Exception): ...  # noqa: N818 - its name is what tells

        available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        fake_runtime(monkeypatch, available, fault=RuntimeError("CUDA failure 100: no CUDA-capable device"))
        with pytest.raises(DeviceError, match="no CUDA-capable device"):
            open_embedder(model, "cuda")
        fake_runtime(monkeypatch, available, fault=InvalidProtobuf("Protobuf parsing failed."))
        with pytest.raises(ModelError, match="Protobuf"):
            open_embedder(model, "cuda")

    def test_cuda_ordinal_reaches_the_runtime(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        asked = fake_runtime(monkeypatch, available, got=available)
        with open_embedder(model, "cuda:1") as embedder:
            assert embedder.device == "cuda:1"
        assert asked[0][0][1]["device_id"] == 1

    @pytest.mark.parametrize("device", ["cuda", "tensorrt"])
    def test_tensorrts_libraries_are_loaded_before_its_provider_looks_for_them(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str
    ) -> None:
        (tmp_path / "tensorrt.py").write_text("loaded = True\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        asked = fake_runtime(monkeypatch, available, got=available)
        loaded: list[bool] = []
        session = onnx_runtime.import_onnxruntime().InferenceSession

        def watched(*arguments: object, **options: object) -> object:
            loaded.append("tensorrt" in sys.modules)
            return session(*arguments, **options)

        onnx_runtime.import_onnxruntime().InferenceSession = watched
        try:
            open_embedder(model, device).close()
        finally:
            sys.modules.pop("tensorrt", None)
        assert loaded == [device == "tensorrt"]
        assert len(asked) == 1

    @pytest.mark.parametrize("fault", ["raise ImportError('half there')", "raise OSError('no libnvinfer.so.10')"])
    def test_a_tensorrt_that_cannot_be_loaded_is_the_providers_to_miss(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
    ) -> None:
        (tmp_path / "tensorrt.py").write_text(fault)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        fake_runtime(monkeypatch, available, got=available)
        with open_embedder(model, "tensorrt") as embedder:
            assert embedder.device == "tensorrt:0"
        fake_runtime(monkeypatch, available, got=available[1:])
        with pytest.raises(DeviceError, match=r"TensorrtExecutionProvider did not start .* or no TensorRT 10"):
            open_embedder(model, "tensorrt")

    def test_auto(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        fake_runtime(monkeypatch, available, got=available)
        monkeypatch.setattr(onnx_runtime, "_has_nvidia_gpu", lambda: True)
        with open_embedder(model) as embedder:
            assert (embedder.device, embedder.device_reason) == ("cuda:0", "an NVIDIA GPU was found")
        monkeypatch.setattr(onnx_runtime, "_has_nvidia_gpu", lambda: False)
        with open_embedder(model) as embedder:
            assert embedder.device == "cpu"
            assert "no NVIDIA GPU" in embedder.device_reason
        fake_runtime(monkeypatch, ["CPUExecutionProvider"])
        with open_embedder(model) as embedder:
            assert embedder.device == "cpu"
            assert "no CUDA provider" in embedder.device_reason

    def test_auto_goes_on_without_a_gpu_that_does_not_start(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        asked = fake_runtime(monkeypatch, available, got=["CPUExecutionProvider"])
        monkeypatch.setattr(onnx_runtime, "_has_nvidia_gpu", lambda: True)
        with open_embedder(model) as embedder:
            assert embedder.device == "cpu"
            assert embedder.fell_back
            assert (
                "a GPU was found, but: --device cuda:0: CUDAExecutionProvider did not start" in embedder.device_reason
            )
        assert asked[-1] == ["CPUExecutionProvider"]

    @pytest.mark.parametrize(
        "text",
        [
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : CUDA error: out of memory",
            "Failed to allocate memory for requested buffer of size 1234",
            "std::bad_alloc",
        ],
    )
    def test_out_of_memory_says_which_batch_to_try(self, model: Path, text: str) -> None:
        with open_embedder(model, "cpu") as embedder:
            embedder._session = failing_session(text)
            with pytest.raises(DeviceError, match="out of memory on a batch of 6") as caught:
                embedder.embed(pictures(6))
        assert caught.value.hint == "try --batch-size 3"

    def test_another_failure_is_the_models(self, model: Path) -> None:
        with open_embedder(model, "cpu") as embedder:
            embedder._session = failing_session("[ONNXRuntimeError] : 1 : FAIL : Non-zero status\nand a stack\n")
            with pytest.raises(ModelError, match=r"on a batch of 2: Non-zero status$"):
                embedder.embed(pictures(2))


def failing_session(text: str) -> SimpleNamespace:
    def run(*_: object) -> None:
        raise RuntimeError(text)

    return SimpleNamespace(run=run)


def fake_runtime(
    monkeypatch: pytest.MonkeyPatch,
    available: list[str],
    *,
    got: list[str] | None = None,
    fault: Exception | None = None,
) -> list:
    """An ONNX Runtime that claims `available`, and opens every session on the CPU while it claims `got`."""
    import onnxruntime

    asked: list = []

    def session(path: str, *, sess_options: object, providers: list) -> SimpleNamespace:
        asked.append(providers)
        if fault is not None:
            raise fault
        real = onnxruntime.InferenceSession(path, sess_options=sess_options, providers=["CPUExecutionProvider"])
        return SimpleNamespace(
            get_providers=lambda: got or real.get_providers(), disable_fallback=real.disable_fallback,
            get_inputs=real.get_inputs, get_outputs=real.get_outputs, get_modelmeta=real.get_modelmeta, run=real.run,
        )  # fmt: skip

    runtime = SimpleNamespace(
        get_available_providers=lambda: available,
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=session,
    )
    monkeypatch.setattr(onnx_runtime, "import_onnxruntime", lambda: runtime)
    return asked


class TestImport:
    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingPackageError) as caught:
            onnx_runtime.import_onnxruntime()
        assert "geoinfer-toolkit[cpu]" in caught.value.hint
        assert caught.value.exit_code == 2

    def test_half_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
        with pytest.raises(MissingPackageError, match="broken"):
            onnx_runtime.import_onnxruntime()

    def test_telemetry_is_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        calls: list[str] = []
        monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: calls.append("off"))
        onnx_runtime.import_onnxruntime()
        assert calls == ["off"]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """The example photos as the shipped model sees them."""
    folder = Path(__file__).parents[2] / "examples" / "photos"
    wanted = Preprocessing(size=260, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return np.stack([load_pixels(os.fsencode(path), wanted) for path in sorted(folder.glob("*.jpg"))])


class TestShippedModel:
    def test_embeddings_do_not_depend_on_the_batch(self, pixels: np.ndarray) -> None:
        with open_embedder(SHIPPED / "model.onnx", "cpu", threads=1) as embedder:
            alone = np.concatenate([embedder.embed(pixels[i : i + 1]) for i in range(10)])
            assert len(np.unique(alone, axis=0)) == 10
            for size in (2, 5):
                batched = np.concatenate([embedder.embed(pixels[i : i + size]) for i in range(0, 10, size)])
                np.testing.assert_array_equal(batched, alone)

    @pytest.mark.gpu
    def test_cuda_gives_what_the_cpu_gives(self, pixels: np.ndarray) -> None:
        with open_embedder(SHIPPED / "model.onnx", "cpu") as embedder:
            wanted = embedder.embed(pixels)
        with open_embedder(SHIPPED / "model.onnx", "cuda") as embedder:
            assert embedder.device == "cuda:0"
            got = embedder.embed(pixels)
        assert (wanted * got).sum(axis=1).min() >= 0.9999

    @pytest.mark.gpu
    def test_auto_picks_cuda(self) -> None:
        with open_embedder(SHIPPED / "model.onnx") as embedder:
            assert embedder.device == "cuda:0"
