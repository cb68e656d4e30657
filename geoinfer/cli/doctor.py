"""`geoinfer doctor`: what is installed, what clashes, what is missing."""

from __future__ import annotations

import json
import platform
from typing import Annotated, Any

import typer

from geoinfer.cli.console import answer
from geoinfer.errors import EXIT_FAILED_INPUTS, EXIT_OK, GeoInferError

_PACKAGES = (
    "numpy",
    "pillow",
    "simplejpeg",
    "pyarrow",
    "s2sphere",
    "typer",
    "rich",
    "pi-heif",
    "onnxruntime",
    "onnxruntime-gpu",
    "faiss-cpu",
    "faiss-gpu",
    "faiss-gpu-cu12",
    "tensorrt",
    "tensorrt-rtx",
    "nvidia-ml-py",
)
# Wheels that install the same files over one another: whichever came last is half there.
_CLASHES = (
    ("onnxruntime", "onnxruntime-gpu"),
    ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"),
)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what is installed, which devices there are, what clashes and what to install.

    \b
    Example:
      geoinfer doctor
    """
    report = examine()
    if as_json:
        answer(json.dumps(report, indent=2))
    else:
        _print(report)
    raise typer.Exit(EXIT_FAILED_INPUTS if report["problems"] else EXIT_OK)


def examine() -> dict[str, Any]:
    """Versions, providers, devices and problems, as plain values."""
    import geoinfer
    from geoinfer.backends.onnx_runtime import INSTALL_GPU
    from geoinfer.machine import available_cores

    versions = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    problems: list[str] = []
    for group in _CLASHES:
        installed = [name for name in group if _version(name) is not None]
        if len(installed) > 1:
            problems.append(
                f"{' and '.join(installed)} overwrite each other's files: pip uninstall {' '.join(installed)}, then "
                "install one of them again"
            )
    report: dict[str, Any] = {
        "geoinfer": geoinfer.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": available_cores(),
        "packages": versions,
        "providers": _providers(problems),
        "gpus": _gpus(),
        "formats": _formats(),
        "shipped_bundle": _shipped(problems),
        "problems": problems,
        "advice": [],
    }
    _check_faiss(problems)
    if not report["formats"]["HEIC"]:
        report["advice"].append("HEIC photos (iPhones) cannot be read: pip install 'geoinfer-toolkit[heic]'")
    if report["gpus"] and "CUDAExecutionProvider" not in report["providers"]:
        report["advice"].append(f"there is a GPU, but this ONNX Runtime cannot use it: {INSTALL_GPU}")
    return report


def _print(report: dict[str, Any]) -> None:
    answer(f"geoinfer {report['geoinfer']}, Python {report['python']}, {report['platform']}")
    answer(f"CPU:       {report['cpu_cores']} cores for this process")
    answer(f"GPU:       {'; '.join(report['gpus']) or 'none found'}")
    answer(f"providers: {', '.join(report['providers']) or 'none'}")
    formats = ", ".join(name if there else f"no {name}" for name, there in report["formats"].items())
    answer(f"formats:   {formats}")
    answer(f"bundle:    {report['shipped_bundle']}")
    answer("packages:  " + ", ".join(f"{name} {version}" for name, version in report["packages"].items()))
    for line in report["advice"]:
        answer(f"advice:    {line}")
    for line in report["problems"]:
        answer(f"problem:   {line}")
    count = len(report["problems"])
    answer(f"{count} problem{'s' if count > 1 else ''}." if count else "All well.")


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _providers(problems: list[str]) -> list[str]:
    from geoinfer.backends.onnx_runtime import import_onnxruntime

    try:
        return list(import_onnxruntime().get_available_providers())
    except GeoInferError as error:
        problems.append(f"{error}: {error.hint}")
        return []


def _check_faiss(problems: list[str]) -> None:
    from geoinfer.index.faiss_index import import_faiss

    try:
        import_faiss()
    except GeoInferError as error:
        problems.append(f"{error}: {error.hint}")


def _gpus() -> list[str]:
    try:
        import pynvml
    except ImportError:
        return _gpus_by_files()
    try:
        pynvml.nvmlInit()
        gpus = []
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total
            gpus.append(f"{number}: {pynvml.nvmlDeviceGetName(handle)}, {memory / 2**30:.0f} GiB")
    except pynvml.NVMLError:
        return []
    return gpus


def _gpus_by_files() -> list[str]:
    """Without NVIDIA's management library: as many as the driver made device files for."""
    import glob

    return [f"{number}: an NVIDIA GPU" for number, _ in enumerate(sorted(glob.glob("/dev/nvidia[0-9]*")))]


def _formats() -> dict[str, bool]:
    from PIL import features

    return {
        "JPEG": True,
        "PNG": True,
        "WebP": bool(features.check("webp")),
        "TIFF": True,
        "AVIF": bool(features.check("avif")),
        "JPEG 2000": bool(features.check("jpg_2000")),
        "HEIC": _has_heic(),
    }


def _has_heic() -> bool:
    # Imported, not looked for: its library may be there and not load.
    try:
        import pi_heif  # noqa: F401
    except ImportError:
        return False
    return True


def _shipped(problems: list[str]) -> str:
    from geoinfer.bundle import SHIPPED, open_bundle

    try:
        return f"{open_bundle(SHIPPED).name}, whole"
    except GeoInferError as error:
        problems.append(str(error))
        return "damaged or missing"
