"""The sidecar: what `vit.trt` is, in `vit.trt.json` beside it, and whether it can run here.

TensorRT says of an engine that does not fit little more than that it does not. Everything that can go wrong is
therefore found here, before TensorRT sees the file, and said in a sentence with the command that mends it.
"""

from __future__ import annotations

import json
import platform as machine_platform
import shlex
import sys
from typing import TYPE_CHECKING, Final

from geoinfer.engines.description import (
    DEFAULT_PROFILE,
    FORMAT,
    VERSION,
    BuiltOn,
    Parity,
    Profile,
    Sidecar,
    StoredFile,
    parsed_capability,
    parsed_sidecar,
)
from geoinfer.engines.flavors import INSTALL, MAGIC, TENSORRT, TENSORRT_RTX, TITLES
from geoinfer.errors import InputError, MismatchError, ModelError, OutputError
from geoinfer.integrity import sha256_of, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.engines.gpu import Gpu

__all__ = [
    "BuiltOn",
    "Parity",
    "Profile",
    "Sidecar",
    "StoredFile",
    "check_engine_file",
    "check_fits",
    "parsed_capability",
    "plan_flavor",
    "read_sidecar",
    "rebuild_command",
    "sidecar_path",
    "this_platform",
    "write_sidecar",
]

_VERSION_BYTES: Final = slice(24, 28)
_HEADER_BYTES: Final = 32


def this_platform() -> str:
    """Operating system and processor: an engine of one does not run on another."""
    processor = machine_platform.machine().lower()
    return f"{sys.platform}-{'x86_64' if processor == 'amd64' else processor}"


def sidecar_path(engine: Path) -> Path:
    """Where the sidecar of an engine is."""
    return engine.with_name(f"{engine.name}.json")


def write_sidecar(engine: Path, sidecar: Sidecar) -> None:
    """Writes it beside the engine, atomically.

    Raises:
        OutputError: it cannot be written.
    """
    path = sidecar_path(engine)
    try:
        write_json(path, sidecar.as_dict())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def read_sidecar(engine: Path) -> Sidecar:
    """Reads the sidecar of an engine.

    Raises:
        InputError: there is no such engine.
        ModelError: it has no sidecar, or one that is damaged, foreign or of a newer geoinfer.
    """
    if not engine.is_file():
        raise InputError(
            f"{engine}: {'is a folder' if engine.is_dir() else 'there is no such engine'}",
            hint=f"{rebuild_command(engine)} makes one",
        )
    path = sidecar_path(engine)
    hint = f"copy it with its engine, or build the engine again: {rebuild_command(engine)}"
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"{engine}: has no sidecar: {path.name} should lie beside it and say what built it ({_looks_like(engine)})",
            hint=hint,
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON; the sidecar is damaged", hint=hint) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ModelError(f"{path}: not the sidecar of a geoinfer engine", hint=hint)
    if values.get("version") != VERSION:
        raise ModelError(
            f"{path}: sidecar of version {values.get('version')!r}; this geoinfer reads {VERSION}",
            hint=f"install a geoinfer that fits, or build the engine again: {rebuild_command(engine)}",
        )
    try:
        return parsed_sidecar(values)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{path}: the sidecar is damaged: {reason}", hint=hint) from error


def check_engine_file(engine: Path, sidecar: Sidecar, *, contents: bool = True) -> None:
    """Whether the engine is the file that the sidecar was written for.

    Args:
        engine: the plan.
        sidecar: its sidecar.
        contents: compare the checksum too, which reads all of the file.

    Raises:
        ModelError: it is truncated, damaged, another engine or no engine at all.
    """
    hint = f"copy engine and sidecar again, or build it: {rebuild_command(engine, sidecar)}"
    try:
        size = engine.stat().st_size
        if size != sidecar.engine.bytes:
            fault = "truncated" if size < sidecar.engine.bytes else "damaged, or another engine than its sidecar's"
            fault = f"{size} bytes where its sidecar says {sidecar.engine.bytes}: the file is {fault}"
        elif contents and sha256_of(engine) != sidecar.engine.sha256:
            fault = "does not match the checksum in its sidecar: the file is damaged, or another engine"
        else:
            return
        found = plan_flavor(engine)
        # First bytes make the sentence, and never the verdict: how plans of later versions begin is not documented.
        if found is None or found[0] != sidecar.flavor:
            fault += f"; it looks like {_looks_like(engine)}"
        raise ModelError(f"{engine}: {fault}", hint=hint)
    except OSError as error:
        raise ModelError(f"{engine}: cannot be read: {(error.strerror or str(error)).lower()}", hint=hint) from error


def check_fits(engine: Path, sidecar: Sidecar, flavor_version: str | None, gpu: Gpu) -> str:
    """Whether an engine can run here.

    Args:
        engine: the plan.
        sidecar: its sidecar.
        flavor_version: of the TensorRT of its flavour that is installed here; None for none.
        gpu: what it would run on.

    Returns:
        Empty, or what a reader should know though it runs: that it was built on another model of GPU.

    Raises:
        MismatchError: other flavour, version, platform or GPU: what it was built by and for, what is here, and the
            command that builds it here.
    """
    rebuild = rebuild_command(engine, sidecar)
    if flavor_version is None:
        raise MismatchError(
            f"{engine}: built by {sidecar.title}, which is not installed here",
            hint=f"{INSTALL[sidecar.flavor]}, or build it with what is installed: "
            f"{rebuild_command(engine, sidecar, flavor=False)}",
        )
    if flavor_version != sidecar.flavor_version:
        raise MismatchError(
            f"{engine}: built by {sidecar.title}, here is {flavor_version}; an engine runs only with the version "
            "that built it",
            hint=rebuild,
        )
    if not _same_platform(sidecar):
        raise MismatchError(
            f"{engine}: built on {sidecar.platform}, this is {this_platform()}; engines do not move between platforms",
            hint=rebuild,
        )
    if not sidecar.runs_on(gpu.compute_capability):
        raise MismatchError(
            f"{engine}: built for {_built_for(sidecar)}, here is {gpu}",
            hint=_mend(sidecar, gpu, rebuild_command(engine, sidecar, targets=False)),
        )
    if sidecar.flavor == TENSORRT and not sidecar.portable and sidecar.gpu and sidecar.gpu.name != gpu.name:
        return f"built on {sidecar.gpu.name}, here is {gpu.name}: it runs, perhaps slower than one built here"
    return ""


def rebuild_command(engine: Path, sidecar: Sidecar | None = None, *, flavor: bool = True, targets: bool = True) -> str:
    """The command that builds an engine again, on the machine that it is to run on.

    Args:
        engine: the plan.
        sidecar: how it was built; None if that is not known.
        flavor: with the same flavour; else with the one that is installed.
        targets: for the same GPUs, where it was told which; else for those that its flavour builds for by itself.
    """
    onnx = engine.with_name(sidecar.onnx.name if sidecar else f"{engine.stem}.onnx")
    parts = ["geoinfer", "engine", "build", str(onnx), "--out", str(engine)]
    if sidecar is not None:
        if flavor and sidecar.flavor == TENSORRT_RTX:
            parts += ["--flavor", sidecar.flavor]
        stored = (sidecar.profile.min, sidecar.profile.opt, sidecar.profile.max)
        if stored != DEFAULT_PROFILE:
            for name, value in zip(("min", "opt", "max"), stored, strict=True):
                parts += [f"--{name}-batch", str(value)]
        if sidecar.workspace_bytes is not None:
            parts += ["--workspace", str(sidecar.workspace_bytes)]
        if targets and flavor and sidecar.flavor == TENSORRT and sidecar.portable:
            parts += ["--portable"]
        if targets and flavor and sidecar.flavor == TENSORRT_RTX and not sidecar.portable:
            for capability in sidecar.compute_capabilities:
                parts += ["--compute-capability", capability]
    return shlex.join(parts)


def plan_flavor(engine: Path) -> tuple[str, str] | None:
    """Flavour and version (three numbers) that a plan's own first bytes tell; None if it is no plan."""
    try:
        with engine.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError:
        return None
    for name, magic in MAGIC.items():
        if header.startswith(magic) and len(header) == _HEADER_BYTES:
            return name, ".".join(str(number) for number in header[_VERSION_BYTES][:3])
    return None


def _looks_like(engine: Path) -> str:
    found = plan_flavor(engine)
    return (
        "no engine of a TensorRT known to geoinfer" if found is None else f"an engine of {TITLES[found[0]]} {found[1]}"
    )


def _same_platform(sidecar: Sidecar) -> bool:
    here = this_platform()
    if sidecar.flavor == TENSORRT_RTX:  # documented to move between Linux and Windows
        return sidecar.platform.partition("-")[2] == here.partition("-")[2]
    return sidecar.platform == here


def _built_for(sidecar: Sidecar) -> str:
    capabilities = ", ".join(e.replace("+", " and later") for e in sidecar.compute_capabilities)
    if sidecar.gpu is not None and not sidecar.portable and sidecar.flavor == TENSORRT:
        return f"{sidecar.gpu.name} (compute capability {capabilities})"
    return f"compute capability {capabilities}"


def _mend(sidecar: Sidecar, gpu: Gpu, rebuild: str) -> str:
    if sidecar.flavor == TENSORRT:
        return rebuild
    major, minor = gpu.compute_capability
    if (major, minor) == (7, 5) or sidecar.portable is False:
        return f"{rebuild} --compute-capability {major}.{minor}, if this TensorRT-RTX knows it; else --flavor tensorrt"
    return (
        f"TensorRT-RTX serves RTX GPUs; for this one build with TensorRT: {INSTALL[TENSORRT]}, then "
        f"{rebuild.replace(f'--flavor {TENSORRT_RTX}', f'--flavor {TENSORRT}')}"
    )
