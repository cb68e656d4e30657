"""`geoinfer doctor`: what is installed, what clashes, what is missing."""

from __future__ import annotations

import contextlib
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
    "cuda-python",
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
        "engines": _engines(),
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
    if report["gpus"] or report["engines"]["installed"]:
        report["advice"] += _advice_on_engines(report["engines"], there_is_a_gpu=bool(report["gpus"]))
    return report


def _print(report: dict[str, Any]) -> None:
    answer(f"geoinfer {report['geoinfer']}, Python {report['python']}, {report['platform']}")
    answer(f"CPU:       {report['cpu_cores']} cores for this process")
    answer(f"GPU:       {'; '.join(report['gpus']) or 'none found'}")
    answer(f"providers: {', '.join(report['providers']) or 'none'}")
    engines = report["engines"]
    answer(f"engines:   {', '.join(engines['installed']) or 'no TensorRT'}{_built_by(engines)}")
    answer(f"CUDA:      {_cuda_line(engines)}")
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
    from geoinfer.index.flat import import_faiss

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


def _engines() -> dict[str, Any]:
    """What TensorRT engines need: the flavours that load, the one that builds, CUDA's driver, and the GPUs it sees."""
    from geoinfer.engines.flavors import default_flavor, installed_flavors, load_flavor
    from geoinfer.engines.gpu import cuda_runtime, find_gpu

    found: dict[str, Any] = {"installed": [], "builds": None, "faults": [], "cuda_driver": None, "gpus": []}
    for name in installed_flavors():
        try:
            found["installed"].append(load_flavor(name).title)
        except GeoInferError as error:
            found["faults"].append(f"{error}: {error.hint}")
    with contextlib.suppress(GeoInferError):  # told by what is not installed, or among the faults
        found["builds"] = default_flavor().title
    try:
        runtime = cuda_runtime()
    except GeoInferError:
        found["cuda_python"] = False
        return found
    found["cuda_python"] = True
    status, version = runtime.cudaDriverGetVersion()
    if int(status) == 0 and version:
        found["cuda_driver"] = f"{version // 1000}.{version % 1000 // 10}"
    try:
        ordinal = 0
        while True:
            found["gpus"].append(f"cuda:{ordinal} {find_gpu(ordinal)}")
            ordinal += 1
    except GeoInferError as fault:
        if not found["gpus"]:
            found["no_gpu"] = str(fault)
    return found


def _built_by(engines: dict[str, Any]) -> str:
    if len(engines["installed"]) < 2:
        return ""
    return f"; `geoinfer engine build` takes {engines['builds']}"


def _cuda_line(engines: dict[str, Any]) -> str:
    if not engines["cuda_python"]:
        return "not looked at: cuda-python is not installed"
    driver = "no driver" if engines["cuda_driver"] is None else f"the driver serves CUDA {engines['cuda_driver']}"
    return f"{driver}; {', '.join(engines['gpus']) or 'no GPU that it can use'}"


def _advice_on_engines(engines: dict[str, Any], *, there_is_a_gpu: bool) -> list[str]:
    from geoinfer.engines.flavors import INSTALL, TENSORRT

    advice = list(engines["faults"])
    if there_is_a_gpu and not engines["installed"] and not engines["faults"]:
        advice.append(f"an engine of the model for this very GPU is faster still: {INSTALL[TENSORRT]}")
    if engines["installed"] and not engines["cuda_python"]:
        advice.append("TensorRT engines cannot run: pip install cuda-python")
    elif engines["installed"] and there_is_a_gpu and not engines["gpus"]:
        advice.append(f"TensorRT engines cannot run: {engines['no_gpu']}")
    return advice


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
