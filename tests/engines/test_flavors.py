from __future__ import annotations

import importlib
import importlib.util
from types import SimpleNamespace

import pytest

from geoinfer.engines import flavors
from geoinfer.engines.flavors import default_flavor, installed_flavors, load_flavor
from geoinfer.errors import DeviceError, MissingPackageError, UsageError

VERSIONS = {"tensorrt": "10.13.3.9", "tensorrt_rtx": "1.7.1.116"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """`installed("tensorrt")`: these modules are there, and no others of the two."""

    def install(*names: str, gpu: bool = True, error: Exception | None = None) -> None:
        find, load = importlib.util.find_spec, importlib.import_module

        def imported(name: str, package: str | None = None):
            if name not in VERSIONS:
                return load(name, package)
            if name not in names:
                raise ModuleNotFoundError(f"No module named {name!r}")
            if error is not None:
                raise error
            return SimpleNamespace(__version__=VERSIONS[name], Builder=object)

        monkeypatch.setattr(
            importlib.util, "find_spec",
            lambda name: (SimpleNamespace() if name in names else None) if name in VERSIONS else find(name),
        )  # fmt: skip
        monkeypatch.setattr(importlib, "import_module", imported)

        def find_gpu(ordinal: int = 0) -> None:
            if not gpu:
                raise DeviceError("none")

        monkeypatch.setattr(flavors, "find_gpu", find_gpu)

    return install


@pytest.mark.parametrize(
    ("names", "gpu", "chosen"),
    [
        (["tensorrt"], True, "tensorrt"),
        (["tensorrt"], False, "tensorrt"),
        (["tensorrt_rtx"], True, "tensorrt-rtx"),
        (["tensorrt_rtx"], False, "tensorrt-rtx"),
        (["tensorrt", "tensorrt_rtx"], True, "tensorrt"),
        (["tensorrt", "tensorrt_rtx"], False, "tensorrt-rtx"),
    ],
)
def test_the_default_is_what_is_installed(installed, names: list[str], gpu: bool, chosen: str) -> None:
    installed(*names, gpu=gpu)
    assert default_flavor().name == chosen
    assert installed_flavors() == [name.replace("_", "-") for name in names]


def test_neither(installed) -> None:
    installed()
    assert installed_flavors() == []
    with pytest.raises(MissingPackageError, match="neither TensorRT nor TensorRT-RTX is installed") as caught:
        default_flavor()
    assert "geoinfer-toolkit[tensorrt]" in caught.value.hint
    assert "geoinfer-toolkit[rtx]" in caught.value.hint


def test_what_a_flavour_is(installed) -> None:
    installed("tensorrt", "tensorrt_rtx")
    flavor = load_flavor("tensorrt-rtx")
    assert (flavor.name, flavor.version, flavor.magic) == ("tensorrt-rtx", "1.7.1.116", b"vtrt")
    assert flavor.title == "TensorRT-RTX 1.7.1.116"
    assert load_flavor("tensorrt").magic == b"ftrt"


def test_not_installed_broken_and_unknown(installed) -> None:
    installed("tensorrt", error=OSError("libnvinfer.so.10: cannot open\nshared object file"))
    with pytest.raises(
        MissingPackageError, match=r"TensorRT cannot be imported: libnvinfer\.so\.10: cannot open shared"
    ):
        load_flavor("tensorrt")
    with pytest.raises(MissingPackageError, match="TensorRT-RTX is not installed") as caught:
        load_flavor("tensorrt-rtx")
    assert "geoinfer-toolkit[rtx]" in caught.value.hint
    with pytest.raises(UsageError, match="--flavor trt: expected tensorrt or tensorrt-rtx"):
        load_flavor("trt")


def test_a_package_that_is_half_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace())
    with pytest.raises(MissingPackageError, match="is broken"):
        load_flavor("tensorrt")
