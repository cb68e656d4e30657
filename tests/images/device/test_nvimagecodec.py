"""nvImageCodec itself, decoding on the CPU, where it is installed; and what is said where it is not."""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
from importlib.metadata import distributions

import numpy as np
import pytest
from PIL import Image

from geoinfer.errors import DeviceError, MissingPackageError
from geoinfer.images.device.check import as_jpeg, check, drawn
from geoinfer.images.device.nvimagecodec import NvImageCodec
from geoinfer.images.preprocessing import Preprocessing
from tests.images.device.fake_gpu import install, open_decoder


@pytest.fixture
def codec() -> NvImageCodec:
    # Not by importing it: what it says on standard error is settled before it is.
    if not any(entry.metadata["Name"].startswith("nvidia-nvimgcodec") for entry in distributions()):
        pytest.skip("nvImageCodec is not installed")
    return NvImageCodec(None, threads=1)


def pixels_of(picture) -> np.ndarray:
    raw = (ctypes.c_uint8 * (picture.pitch * picture.height)).from_address(picture.address)
    rows = np.frombuffer(raw, np.uint8).reshape(picture.height, picture.pitch)
    return rows[:, : 3 * picture.width].reshape(picture.height, picture.width, 3)


def test_decodes_as_pillow_and_does_not_turn(codec):
    files = [as_jpeg(drawn(61, 40, 1), 6), as_jpeg(drawn(30, 50, 2), progressive=True)]
    for data, found in zip(files, codec.decode(files, 0), strict=True):
        expected = np.asarray(Image.open(io.BytesIO(data)))
        assert (found.height, found.width) == expected.shape[:2]
        assert abs(pixels_of(found).astype(int) - expected).max() <= 1


def test_grey_becomes_rgb(codec):
    file = io.BytesIO()
    drawn(40, 30, 1).convert("L").save(file, "JPEG")
    (found,) = codec.decode([file.getvalue()], 0)
    pixels = pixels_of(found)
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_what_cannot_be_decoded_is_none_and_nothing_else(codec, capfd):
    good = as_jpeg(drawn(61, 40, 1))
    found = codec.decode([b"", good, b"rubbish", good[: len(good) // 2], good], 0)
    assert [picture is not None for picture in found] == [False, True, False, False, True]
    assert codec.decode([b"rubbish"], 0) == [None]
    assert codec.decode([], 0) == []
    assert capfd.readouterr() == ("", "")


def test_says_nothing_when_it_is_loaded(codec):
    code = "from geoinfer.images.device.nvimagecodec import NvImageCodec as N; print(N(None, threads=1).title)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("nvImageCodec 0.")


def test_the_whole_path_but_the_gpu(codec, monkeypatch):
    cuda, _ = install(monkeypatch)
    with open_decoder(Preprocessing(size=32), codec) as decoder:
        check(decoder)
    assert cuda.misuse == []


def test_no_gpu_is_said(codec):
    from geoinfer.engines.gpu import find_gpu

    try:
        find_gpu()
    except (DeviceError, MissingPackageError):
        with pytest.raises(DeviceError, match=r"nvImageCodec .* does not start"):
            NvImageCodec(0, threads=1)
    else:
        pytest.skip("there is a GPU")


def test_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(MissingPackageError, match="nvImageCodec cannot be imported") as error:
        NvImageCodec(0, threads=1)
    assert "[nvjpeg]" in error.value.hint


def test_errors_come_back_to_the_terminal(monkeypatch, capfd):
    """Also where loading fails: what is written to standard error afterwards is seen."""
    monkeypatch.delitem(sys.modules, "nvidia.nvimgcodec", raising=False)
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(MissingPackageError):
        NvImageCodec(0, threads=1)
    print("heard", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo too >&2"], check=True)
    assert capfd.readouterr().err == "heard\ntoo\n"
