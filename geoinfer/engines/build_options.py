"""What the builder of engines can be told, and everything of it that can be refused before TensorRT is started."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from geoinfer.engines.description import DEFAULT_PROFILE, FORMAT, parsed_capability
from geoinfer.engines.flavors import FLAVORS, TENSORRT, TENSORRT_RTX, Flavor
from geoinfer.engines.sidecar import check_engine_file, plan_flavor, read_sidecar, sidecar_path
from geoinfer.errors import InputError, ModelError, OutputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.engines.gpu import Gpu

LARGEST_BATCH: Final = 4096
LARGEST_WORKSPACE_BYTES: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build.

    Attributes:
        flavor: one of `FLAVORS`; None for what is installed, see `default_flavor`.
        min_batch: smallest batch that the engine takes.
        opt_batch: the batch that it is tuned for.
        max_batch: largest batch; more than `opt_batch` is for other programs, as geoinfer computes no more at once.
        workspace_bytes: limit of the memory that layers may use as scratch; None for all there is.
        portable: TensorRT: for all GPUs from Ampere on, at some cost in speed. TensorRT-RTX builds so anyway.
        compute_capabilities: TensorRT-RTX: what to build for, as in `8.9`; empty for all that it builds for by default.
        timing_cache: TensorRT: file of timings that is read and added to, which makes the next build fast.
        device: N of `cuda:N`, for TensorRT.
        force: overwrite a file that is no engine of geoinfer's.
    """

    flavor: str | None = None
    min_batch: int = DEFAULT_PROFILE[0]
    opt_batch: int = DEFAULT_PROFILE[1]
    max_batch: int = DEFAULT_PROFILE[2]
    workspace_bytes: int | None = None
    portable: bool = False
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    device: int = 0
    force: bool = False


def check_options(options: BuildOptions) -> None:
    """Raises UsageError for options that make no sense with any flavour."""
    smallest, tuned, largest = options.min_batch, options.opt_batch, options.max_batch
    if not 1 <= smallest <= tuned <= largest <= LARGEST_BATCH:
        raise UsageError(
            f"--min-batch {smallest}, --opt-batch {tuned}, --max-batch {largest}: expected each to be at least the one "
            f"before, from 1 to {LARGEST_BATCH}"
        )
    if options.workspace_bytes is not None and not 1 << 20 <= options.workspace_bytes <= LARGEST_WORKSPACE_BYTES:
        raise UsageError(f"--workspace {options.workspace_bytes} bytes: expected 1MiB to 1024GiB")
    for capability in options.compute_capabilities:
        parsed_capability(capability)
    if options.portable and options.compute_capabilities:
        raise UsageError("--portable and --compute-capability exclude one another", hint="leave one of them out")
    if options.flavor is not None and options.flavor not in FLAVORS:
        raise UsageError(f"--flavor {options.flavor}: expected {' or '.join(FLAVORS)}")


def check_out(out: Path, onnx: Path, *, force: bool) -> None:
    """Finds out before minutes of work what would stop the engine from being written.

    Raises:
        UsageError: its name is none for an engine, or the model's.
        OutputError: it cannot be written, or would overwrite something that is no engine.
    """
    if out.suffix.lower() != ".trt":
        raise UsageError(f"--out {out}: an engine is called *.trt", hint=f"--out {out.with_suffix('.trt')}")
    if not out.parent.is_dir():
        raise OutputError(f"--out {out}: there is no folder {out.parent}", hint="make it, or choose another")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"--out {out}: cannot be written: permission denied", hint="choose another folder")
    if out.is_dir():
        raise OutputError(f"--out {out}: is a folder", hint="--out names the file of the engine")
    if out.exists() and onnx.exists() and out.samefile(onnx):
        raise UsageError(f"--out {out}: is the model itself", hint="choose another name")
    if out.exists() and not force and plan_flavor(out) is None and not _is_described(out):
        raise OutputError(
            f"--out {out}: exists, and is no engine of TensorRT", hint="choose another name, or overwrite it: --force"
        )
    beside = sidecar_path(out)
    if beside.exists() and not force and not _is_sidecar(beside):
        raise OutputError(
            f"{beside}: exists, and is no sidecar of an engine", hint="choose another name, or overwrite it: --force"
        )


def _is_described(engine: Path) -> bool:
    """Whether a sidecar says that this is an engine: one of a TensorRT whose plans begin otherwise."""
    try:
        check_engine_file(engine, read_sidecar(engine))
    except (InputError, ModelError):
        return False
    return True


def _is_sidecar(path: Path) -> bool:
    try:
        return FORMAT.encode() in path.read_bytes()
    except OSError:
        return False


def check_flavor_options(options: BuildOptions, flavor: Flavor) -> None:
    """Raises UsageError for an option that this flavour does not have."""
    if flavor.name == TENSORRT and options.compute_capabilities:
        raise UsageError(
            "--compute-capability: TensorRT builds for the GPU in this machine",
            hint=f"leave it out, or take --portable, or --flavor {TENSORRT_RTX}",
        )
    if flavor.name == TENSORRT_RTX and options.timing_cache is not None:
        raise UsageError(
            "--timing-cache: TensorRT-RTX times nothing when it builds", hint=f"it goes with --flavor {TENSORRT}"
        )


def target_capabilities(flavor: Flavor, options: BuildOptions, gpu: Gpu | None) -> tuple[str, ...]:
    """What the engine will run on, as in `Sidecar.compute_capabilities`.

    Raises:
        UsageError: TensorRT-RTX does not build for one that was named.
    """
    if flavor.name == TENSORRT:
        assert gpu is not None
        return ("8.0+",) if options.portable else ("{}.{}".format(*gpu.compute_capability),)
    known = _known_capabilities(flavor)
    if not options.compute_capabilities:
        # By default Turing is left out: it would cost the others speed. What comes after the latest is documented to
        # be served too.
        default = [name for name in known if parsed_capability(name) >= (8, 0)]
        return (*default[:-1], f"{default[-1]}+")
    unknown = [name for name in options.compute_capabilities if name not in known]
    if unknown:
        raise UsageError(
            f"--compute-capability {unknown[0]}: {flavor.title} builds for {', '.join(known)}",
            hint=f"a GPU of another kind is served by --flavor {TENSORRT}, on the machine that holds it",
        )
    return tuple(sorted(set(options.compute_capabilities), key=parsed_capability))


def _known_capabilities(flavor: Flavor) -> list[str]:
    """`SM75`, ..., `SM120` of its enumeration as `7.5`, ..., `12.0`, ascending."""
    numbers = [name[2:] for name in flavor.api.ComputeCapability.__members__ if re.fullmatch(r"SM\d{2,3}", name)]
    return sorted((f"{number[:-1]}.{number[-1]}" for number in numbers), key=parsed_capability)
