"""`geoinfer engine build` and `geoinfer engine info`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoinfer.cli.options import Quiet  # noqa: TC001 - typer reads annotations at run time
from geoinfer.errors import EXIT_INTERRUPTED, EXIT_OK, InputError, UsageError

if TYPE_CHECKING:
    from geoinfer.engines.build import BuildOptions
    from geoinfer.engines.sidecar import Sidecar

app = typer.Typer(
    name="engine",
    help="Build and look at TensorRT engines, for NVIDIA GPUs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Start with: geoinfer engine build vit.onnx --out vit.trt",
)

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 1000, "MB": 1000**2, "GB": 1000**3}


def build(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL|BUNDLE", help="An .onnx model or a bundle's folder.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The engine to write.", show_default="the model's name with .trt; within a bundle"
        ),
    ] = None,
    flavor: Annotated[
        str | None,
        typer.Option(
            "--flavor",
            help="TensorRT's kind: tensorrt or tensorrt-rtx.",
            metavar="FLAVOR",
            show_default="the one that is installed",
        ),
    ] = None,
    min_batch: Annotated[int, typer.Option("--min-batch", help="Smallest batch that the engine takes.")] = 1,
    opt_batch: Annotated[
        int | None, typer.Option("--opt-batch", help="Batch it is tuned for.", show_default="64, or the nearest")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", help="Largest batch, for other programs.", show_default="--opt-batch")
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", help="Limit of scratch memory, as in 4GiB.", metavar="SIZE", show_default="none"),
    ] = None,
    portable: Annotated[
        bool,
        typer.Option("--portable", help="Build for all GPUs from Ampere on (tensorrt-rtx does so anyway)."),
    ] = False,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            help="Build for this kind of GPU alone, as in 8.9; may be repeated (tensorrt-rtx).",
            metavar="N.N",
            show_default="all but 7.5",
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            "--timing-cache",
            help="File of timings, read and added to: later builds are fast (tensorrt).",
            metavar="FILE",
            show_default="none",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="GPU to build and check on.", metavar="cuda[:N]")] = "cuda:0",
    photos: Annotated[
        Path | None,
        typer.Option("--photos", help="Folder of photos to check the engine with.", show_default="drawn pictures"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is no engine.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compile a model for the NVIDIA GPU in this machine, or for RTX GPUs in general.

    \b
    Examples:
      geoinfer engine build vit.onnx --out vit.trt
      geoinfer engine build vit.onnx --opt-batch 128 --workspace 4GiB
      geoinfer predict ./photos --engine vit.trt --index my-index

    Needs TensorRT and nothing else. Precision is the model's own: export it with --precision fp16 for a fast engine.
    Where there is a GPU, the engine is compared with the model, and is not written if it differs.
    """  # fmt: skip
    from geoinfer.cli.console import answer, say
    from geoinfer.cli.interrupts import interrupts_raise
    from geoinfer.engine_check import check_engine
    from geoinfer.engines.build import BuildOptions, build_engine
    from geoinfer.engines.flavors import default_flavor

    bundle, onnx = _model_of(model)
    tuned, largest = _batches(min_batch, opt_batch, max_batch)
    ordinal = _ordinal(device)
    run = BuildOptions(
        flavor=flavor if flavor is not None else default_flavor().name,
        min_batch=min_batch,
        opt_batch=tuned,
        max_batch=largest,
        workspace_bytes=None if workspace is None else parsed_size(workspace),
        portable=portable,
        compute_capabilities=tuple(compute_capability or ()),
        timing_cache=timing_cache,
        device=ordinal,
        force=force,
    )
    if out is None:
        out = onnx.with_suffix(".trt") if bundle is None else bundle / _name_in_bundle(onnx, run)
    if photos is not None and not photos.is_dir():
        raise UsageError(f"--photos {photos}: there is no such folder")

    def tell(line: str) -> None:
        if not quiet:
            say(line)

    def check(engine: Path, sidecar: Sidecar) -> dict[str, Any] | None:
        return check_engine(engine, sidecar, onnx, photos=photos, device=ordinal, report=tell)

    # While TensorRT is at work a signal ends the process, for no exception reaches it; then files must be removed.
    try:
        sidecar = build_engine(onnx, out, run, tell, check, writing=interrupts_raise)
    except KeyboardInterrupt:
        say("geoinfer: interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not quiet:
        answer(f"Built {out} ({sidecar.engine.bytes / 1e6:.1f} MB) in {_duration(sidecar.build_seconds)}.")
        use = f"{out} --index INDEX" if bundle is None else model
        answer(f"  Use it: geoinfer predict PHOTOS --engine {use}")
    raise typer.Exit(EXIT_OK)


def info(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="A .trt file.", show_default=False)],
    device: Annotated[str, typer.Option("--device", help="GPU that it should run on.", metavar="cuda[:N]")] = "cuda:0",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what an engine is, whether it is whole, and whether it runs here.

    \b
    Example:
      geoinfer engine info vit.trt
    """
    from geoinfer.cli.console import answer
    from geoinfer.engines.sidecar import check_engine_file, read_sidecar

    ordinal = _ordinal(device)
    sidecar = read_sidecar(engine)
    check_engine_file(engine, sidecar)
    runs, reason, mend = _runs_here(engine, sidecar, ordinal)
    if as_json:
        values = {**sidecar.as_dict(), "file": str(engine), "runs_here": runs, "reason": reason, "hint": mend}
        answer(json.dumps(values, indent=2, ensure_ascii=False))
        return
    answer(f"{engine}: an engine of {sidecar.title}, {sidecar.engine.bytes / 1e6:.1f} MB, checksum good")
    rows = _rows(sidecar)
    rows["runs here"] = f"{'yes' if runs else 'no'}{': ' if reason else ''}{reason}"
    if mend:
        rows[""] = mend
    width = max(map(len, rows)) + 1
    for key, value in rows.items():
        answer(f"  {f'{key}:' if key else '':<{width}} {value}")


app.command("build", short_help="Compile a model for a GPU.")(build)
app.command("info", short_help="Say what an engine is.")(info)


def parsed_size(text: str) -> int:
    """`4GiB`, `512MiB`, `2GB` or a number of bytes.

    Raises:
        UsageError: anything else.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None:
        raise UsageError(f"--workspace {text}: expected a size, as in 4GiB or 512MiB")
    return round(float(match.group(1)) * unit)


def _model_of(path: Path) -> tuple[Path | None, Path]:
    """The bundle that was named, if it is one, and the ONNX model.

    Raises:
        InputError: a folder that is no bundle.
        ModelError: a bundle that is damaged.
    """
    from geoinfer.bundle import is_bundle, open_bundle

    if is_bundle(path):
        return path, open_bundle(path).model_path
    if path.is_dir() or not path.name:
        raise InputError(f"{path}: is a folder and no bundle", hint="name an .onnx file or the folder of a bundle")
    return None, path


def _batches(smallest: int, tuned: int | None, largest: int | None) -> tuple[int, int]:
    """Batch to tune for and largest batch; what is left out gives way to what is given."""
    from geoinfer.engines.description import DEFAULT_PROFILE

    _, usual, _ = DEFAULT_PROFILE
    if tuned is None:
        tuned = max(smallest, usual if largest is None else min(usual, largest))
    return tuned, tuned if largest is None else largest


def _ordinal(device: str) -> int:
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if match is None:
        raise UsageError(f"--device {device}: expected cuda or cuda:N", hint="an engine runs on an NVIDIA GPU alone")
    return int(match.group(1) or 0)


def _name_in_bundle(onnx: Path, run: BuildOptions) -> str:
    """`model.tensorrt-10.13.3.9-sm89-fp16.trt`: several machines may share a bundle, each with engines of its own."""
    from geoinfer.engines.embedder_model import read_embedder_model
    from geoinfer.engines.flavors import TENSORRT, load_flavor
    from geoinfer.engines.gpu import find_gpu

    flavor = load_flavor(run.flavor or TENSORRT)
    if run.portable or (flavor.name != TENSORRT and not run.compute_capabilities):
        kind = "portable"
    elif flavor.name == TENSORRT:
        kind = "sm{}{}".format(*find_gpu(run.device).compute_capability)
    else:
        kind = "-".join(f"sm{name.replace('.', '')}" for name in run.compute_capabilities)
    return f"{onnx.stem}.{flavor.name}-{flavor.version}-{kind}-{read_embedder_model(onnx).precision}.trt"


def _runs_here(engine: Path, sidecar: Sidecar, ordinal: int) -> tuple[bool, str, str]:
    """Whether, why (not), and what mends it."""
    from geoinfer.engines.flavors import load_flavor
    from geoinfer.engines.gpu import find_gpu
    from geoinfer.engines.sidecar import check_fits
    from geoinfer.errors import DeviceError, MismatchError, MissingPackageError

    try:
        version: str | None = load_flavor(sidecar.flavor).version
    except MissingPackageError:
        version = None
    try:
        gpu = find_gpu(ordinal)
        return True, check_fits(engine, sidecar, version, gpu) or f"on {gpu}", ""
    except (DeviceError, MismatchError, MissingPackageError) as error:
        return False, str(error).removeprefix(f"{engine}: "), error.hint


def _rows(sidecar: Sidecar) -> dict[str, str]:
    from geoinfer.images import Preprocessing

    profile, onnx, engine = sidecar.profile, sidecar.onnx, sidecar.parity.engine
    capabilities = ", ".join(name.replace("+", " and later") for name in sidecar.compute_capabilities)
    limit = "no limit" if sidecar.workspace_bytes is None else f"{sidecar.workspace_bytes / (1 << 20):g} MiB"
    built_on = "a machine without a GPU" if sidecar.gpu is None else sidecar.gpu.name
    rows = {
        "runs on": f"compute capability {capabilities}; {sidecar.platform}; {sidecar.title} only",
        "built on": f"{built_on}, by geoinfer {sidecar.geoinfer}, in {_duration(sidecar.build_seconds)}",
        "precision": sidecar.precision,
        "batches": f"{profile.min} to {profile.max}, tuned for {profile.opt}",
        "workspace": limit,
        "input": str(sidecar.input),
        "output": str(sidecar.output),
        "embedder": f"{sidecar.identity} ({sidecar.dim} dimensions; {Preprocessing.from_dict(sidecar.preprocessing)})",
        "model": f"{onnx.name}, {onnx.bytes / 1e6:.1f} MB, sha256 {onnx.sha256[:16]}",
        "source": sidecar.source or "not said",
        "licence": sidecar.licence or "not said",
        "weights": f"sha256 {sidecar.weights_sha256[:16]}" if sidecar.weights_sha256 else "not said",
    }
    if sidecar.parity.onnx is not None and "min_cosine" in sidecar.parity.onnx:
        rows["export's parity"] = f"smallest cosine {sidecar.parity.onnx['min_cosine']}"
    rows["check"] = (
        "not checked against its model"
        if engine is None
        else f"smallest cosine {engine.get('min_cosine')} on {engine.get('pictures')} pictures, against "
        f"{engine.get('against')}"
    )
    return rows


def _duration(seconds: float) -> str:
    from geoinfer.cli.console import duration

    return duration(seconds)
