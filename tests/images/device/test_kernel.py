from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from geoinfer.backends.cuda import Cuda
from geoinfer.errors import DeviceError, MissingPackageError
from geoinfer.images.decode import pixels_from_array
from geoinfer.images.device import kernel
from geoinfer.images.device.decoder import DeviceDecoder
from geoinfer.images.device.frame import Frame
from geoinfer.images.device.plan import PASS, plan_resize
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.resize import Decoded, resize_decoded
from tests.images.device.emulator import Emulator, program
from tests.images.device.fake_gpu import CODE, FakeDriver, PillowCodec, install, picture_of
from tests.images.device.test_resample import random_pixels


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("kernel"))


def by_cpu(pixels: np.ndarray, orientation: int, preprocessing: Preprocessing) -> np.ndarray:
    height, width = pixels.shape[:2]
    return resize_decoded(Decoded(Image.fromarray(pixels), orientation, (width, height)), preprocessing)


def by_kernels(
    run, monkeypatch: pytest.MonkeyPatch, jobs: list[tuple[np.ndarray, int]], preprocessing: Preprocessing
) -> np.ndarray:
    """Upright pixels of (picture, orientation) each, all in one go."""
    cuda, _ = install(monkeypatch, run)
    with DeviceDecoder(preprocessing, Cuda(0, when_full="-"), PillowCodec(), CODE) as decoder:
        pictures = [
            (
                picture_of(pixels, room=5),
                plan_resize(Frame(pixels.shape[1], pixels.shape[0], orientation, "web"), preprocessing),
            )
            for pixels, orientation in jobs
        ]
        found = decoder.resize(pictures).copy()
    assert cuda.misuse == []
    return found


def test_a_pass_lies_in_memory_as_the_kernels_read_it(emulator):
    assert emulator.size_of_pass == PASS.itemsize


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_pixels_are_those_of_pillow(emulator, monkeypatch, resize, interpolation):
    """Of both orders, every orientation, larger and smaller than the result, and ranges longer than a stage."""
    preprocessing = Preprocessing(size=37, resize=resize, interpolation=interpolation)
    sizes = [(50, 41), (41, 130), (9, 12), (37, 37), (1700, 40), (40, 900), (1, 1), (130, 33)]
    jobs = [
        (random_pixels(width, height, number, hard=number % 3 == 0), number % 8 + 1)
        for number, (width, height) in enumerate(sizes)
    ]
    found = by_kernels(emulator, monkeypatch, jobs, preprocessing)
    for (pixels, orientation), one in zip(jobs, found, strict=True):
        assert np.array_equal(one, by_cpu(pixels, orientation, preprocessing)), (pixels.shape, orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(emulator, monkeypatch, orientation):
    preprocessing = Preprocessing(size=8)
    jobs = [(random_pixels(21, 13, 1, hard=False), orientation), (random_pixels(13, 40, 2, hard=False), orientation)]
    found = by_kernels(emulator, monkeypatch, jobs, preprocessing)
    for (pixels, _), one in zip(jobs, found, strict=True):
        assert np.array_equal(one, by_cpu(pixels, orientation, preprocessing))


def test_upright_pictures_are_those_of_the_python_interface(emulator, monkeypatch):
    preprocessing = Preprocessing(size=16)
    pixels = random_pixels(64, 48, 3, hard=False)
    (found,) = by_kernels(emulator, monkeypatch, [(pixels, 1)], preprocessing)
    assert np.array_equal(found, pixels_from_array(pixels, preprocessing))


@pytest.mark.slow
def test_at_full_size(emulator, monkeypatch):
    preprocessing = Preprocessing(size=224)
    jobs = [(random_pixels(1024, 683, 1, hard=False), 6), (random_pixels(426, 640, 2, hard=False), 1)]
    found = by_kernels(emulator, monkeypatch, jobs, preprocessing)
    for (pixels, orientation), one in zip(jobs, found, strict=True):
        assert np.array_equal(one, by_cpu(pixels, orientation, preprocessing))


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_touches_no_memory_but_its_own_and_has_no_races(tmp_path, sanitizer):
    made = program(tmp_path, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g")
    done = subprocess.run([made], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def supported() -> list[int]:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    try:
        _, found = nvrtc.nvrtcGetSupportedArchs()
    except (OSError, RuntimeError) as error:
        pytest.skip(f"NVRTC is not installed: {error}")
    return list(found)


def test_compiles_for_every_gpu():
    """By NVIDIA's own compiler, which needs no GPU."""
    for arch in supported():
        code = kernel.compiled(divmod(arch, 10))
        assert code.startswith(b"\x7fELF")
        assert kernel.ALONG_ROWS.encode() in code
        assert kernel.ALONG_COLUMNS.encode() in code


def test_a_later_gpu_gets_assembly():
    newest = max(supported())
    code = kernel.compiled((newest // 10 + 1, 0))
    assert b".visible .entry along_rows" in code
    assert f".target sm_{newest}".encode() in code


def test_a_gpu_too_old_is_said_so():
    supported()
    with pytest.raises(DeviceError, match=r"compute capability, 2\.0") as error:
        kernel.compiled((2, 0))
    assert "--decode cpu" in error.value.hint


def test_a_kernel_that_does_not_compile_says_why(monkeypatch):
    supported()
    monkeypatch.setattr(kernel, "source", lambda: "this is no program")
    with pytest.raises(DeviceError, match=r"does not compile .*\n?.*resample\.cu\(1\): error"):
        kernel.compiled.__wrapped__((9, 0))


def test_nvrtc_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingPackageError, match="NVRTC cannot be used") as error:
        kernel.compiled.__wrapped__((9, 0))
    assert "nvidia-cuda-nvrtc" in error.value.hint


def test_the_fake_driver_has_the_names_of_the_real_one():
    driver = pytest.importorskip("cuda.bindings.driver")
    names = [name for name in dir(FakeDriver) if name.startswith("cu") and name != "cuda"]
    assert len(names) == 5
    assert [name for name in names if not hasattr(driver, name)] == []
