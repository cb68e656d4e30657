"""`geoinfer info`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from geoinfer.backends import EmbedderIdentity
    from geoinfer.engines.sidecar import Sidecar


def info(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="BUNDLE|MODEL",
            help="A bundle's folder, an .onnx model or a .trt engine.",
            show_default="shipped bundle",
        ),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the checksums of large files too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a bundle, an ONNX model or an engine is, and whether geoinfer can use it.

    \b
    Examples:
      geoinfer info
      geoinfer info vit.onnx
      geoinfer info vit.trt
    """
    from geoinfer.backends import ENGINE_SUFFIX
    from geoinfer.bundle import SHIPPED, is_bundle
    from geoinfer.cli.console import answer
    from geoinfer.cli.engine import info as engine_info
    from geoinfer.errors import InputError, ModelError

    target = path or SHIPPED
    if not target.exists():
        raise InputError(
            f"{target}: there is no such bundle or model",
            hint="name a bundle's folder, an .onnx or .trt file, or nothing",
        )
    if (target / "manifest.json").is_file():
        raise ModelError(f"{target}: this is an index", hint=f"geoinfer index info {target}")
    if target.suffix.lower() == ENGINE_SUFFIX and target.is_file():
        engine_info(target, as_json=as_json)
        return
    values = _bundle(target, verify=verify) if target.is_dir() or is_bundle(target) else _model(target)
    if as_json:
        answer(json.dumps(values, indent=2, ensure_ascii=False, default=str))
        return
    width = max(len(key) for key in values)
    for key, value in values.items():
        lines = value if isinstance(value, list) else [value]
        for number, line in enumerate(lines):
            answer(f"{(key + ':') if number == 0 else '':<{width + 1}} {line}")


def _bundle(folder: Path, *, verify: bool) -> dict[str, Any]:
    from geoinfer.bundle import open_bundle
    from geoinfer.cli.console import checksums
    from geoinfer.index import read_index_manifest

    bundle = open_bundle(folder, verify=verify)
    manifest = read_index_manifest(bundle.index_path, verify=verify)
    size = sum(file["bytes"] for file in bundle.files.values())
    values: dict[str, Any] = {
        "bundle": f"{bundle.name} ({folder}), {size / 1e6:.1f} MB",
        "checksums": checksums(bundle.files, verified=verify),
        "description": bundle.description,
        "embedder": str(manifest.embedder),
        "index": f"{manifest.kind}, {manifest.size} references, {manifest.geocells} geocells (S2 level 6)",
        "licences": [f"{part}: {licence}" for part, licence in bundle.licences.items()],
    }
    if int8 := _int8(bundle.model_path):
        values["int8"] = int8
    if engines := _engines(folder, manifest.embedder, verify=verify):
        values["engines"] = engines
    values |= _measured(bundle.metrics)
    if bundle.notice:
        values["notice"] = bundle.notice
    return values


def _int8(model: Path) -> str:
    """Whether the model's int8 sibling serves; empty where there is none."""
    from geoinfer.engines.int8_beside import int8_beside
    from geoinfer.errors import GeoInferError

    try:
        sibling = int8_beside(model)
    except GeoInferError as error:
        return f"not used: {str(error).removeprefix(f'{model.parent}/')}"
    if sibling is None:
        return ""
    return f"{sibling.name}, {sibling.stat().st_size / 1e6:.1f} MB, for CPUs that are faster with it"


def _engines(folder: Path, embedder: EmbedderIdentity, *, verify: bool) -> list[str]:
    """A line for each engine beside the model: what it was built for, and whether it serves here."""
    from geoinfer.engines.choose import engines_beside
    from geoinfer.engines.sidecar import check_engine_file, read_sidecar
    from geoinfer.errors import GeoInferError

    lines = []
    for engine in engines_beside(folder):
        about = ""
        try:
            sidecar = read_sidecar(engine)
            capabilities = ", ".join(name.replace("+", " and later") for name in sidecar.compute_capabilities)
            about = f"{sidecar.precision}, for compute capability {capabilities}, {sidecar.platform}, {sidecar.title}; "
            check_engine_file(engine, sidecar, contents=verify)
            verdict = _verdict(engine, sidecar, embedder)
        except GeoInferError as error:
            verdict = f"not used: {str(error).removeprefix(f'{engine}: ').removeprefix(f'{folder}/')}"
        lines.append(f"{engine.name}: {about}{verdict}")
    return lines


def _verdict(engine: Path, sidecar: Sidecar, embedder: EmbedderIdentity) -> str:
    from geoinfer.backends import EmbedderIdentity
    from geoinfer.engines.flavors import load_flavor
    from geoinfer.engines.gpu import find_gpu
    from geoinfer.engines.sidecar import check_fits
    from geoinfer.errors import DeviceError, MismatchError, MissingPackageError
    from geoinfer.images import Preprocessing

    own = EmbedderIdentity(sidecar.identity, sidecar.dim, Preprocessing.from_dict(sidecar.preprocessing))
    if own != embedder:
        raise MismatchError(f"of another embedder, {own}")
    try:
        gpu = find_gpu(0)
    except (DeviceError, MissingPackageError) as error:
        return f"not used here: {error}"
    try:
        version: str | None = load_flavor(sidecar.flavor).version
    except MissingPackageError:
        version = None
    remark = check_fits(engine, sidecar, version, gpu)
    return f"fits {gpu}" + (f" ({remark})" if remark else "")


def _measured(metrics: dict[str, Any]) -> dict[str, str]:
    """A bundle's metrics as far as they are what this geoinfer writes; a later one may write others."""
    measured: dict[str, str] = {}
    for name, noun in (("parity", "parity"), ("parity_int8", "parity of int8")):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            parity = metrics[name]
            measured[noun] = f"cosine with torch at least {float(parity['min_cosine'])}, on {parity['photos']} photos"
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        figures = metrics["leave_one_out"]
        shares = sorted((int(radius), float(share)) for radius, share in figures["within_percent"].items())
        within = ", ".join(f"{share:.1f}% within {radius}" for radius, share in shares)
        measured["measured"] = (
            f"{figures['count']} photos located by the index: median {float(figures['median_km']):.1f} km; "
            f"{within} km; GeoScore {float(figures['geoscore']):.0f}"
        )
    return measured


def _model(path: Path) -> dict[str, Any]:
    from geoinfer.backends import open_embedder
    from geoinfer.backends.onnx_runtime import model_metadata
    from geoinfer.errors import ModelError

    meta = model_metadata(path)
    values: dict[str, Any] = {
        "model": f"{path}, {path.stat().st_size / 1e6:.1f} MB",
        "inputs": [f"{name} {kind} {shape}" for name, kind, shape in meta["inputs"]],
        "outputs": [f"{name} {kind} {shape}" for name, kind, shape in meta["outputs"]],
        "metadata": [f"{key} = {value}" for key, value in meta["metadata"].items()] or ["none"],
    }
    try:
        with open_embedder(path, "cpu") as embedder:
            values["usable"] = f"yes: {embedder.identity}"
    except ModelError as error:
        values["usable"] = f"no: {error}" + (f" ({error.hint})" if error.hint else "")
    return values
