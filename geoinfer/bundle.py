"""The bundle: the versioned folder that travels, a model and a reference index with their checksums.

demo/
    bundle.json       what this is: format version, name, files with sizes and SHA-256, licences, a notice
    model.onnx
    model.int8.onnx   the same embedder in int8, if the bundle has it, see geoinfer.engines.int8_beside
    *.trt             engines built from the model, if any, each with its sidecar *.trt.json
    index/            a reference index, see geoinfer.index.store
    ATTRIBUTION.md    where weights and references come from
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from geoinfer.errors import GeoInferError, InputError, ModelError
from geoinfer.integrity import sha256_of, write_json

MANIFEST_NAME: Final = "bundle.json"
BUNDLE_FORMAT: Final = "geoinfer-bundle"
BUNDLE_VERSION: Final = 1
SHIPPED: Final = Path(__file__).parent / "bundles" / "demo"
"""The bundle that comes with the package: a demonstration."""

# Hashing a file this large takes about a second: past it only the size is compared, and `geoinfer info --verify` does
# the rest.
HASHED_AT_OPEN: Final = 64 << 20
ENGINE_TAKES: Final = "--engine takes a bundle folder, an .onnx model or a .trt engine"
"""The hint wherever something else is given."""

_MAKE: Final = {
    "bundle": ENGINE_TAKES,
    "index": "`geoinfer index build` makes one; --index takes its folder",
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle.

    Attributes:
        folder: where it is.
        name: short name, such as `demo`.
        description: one line.
        notice: one line that every run with it must show, or empty.
        licences: what each part is under.
        files: name to {"bytes", "sha256"}.
        metrics: what is known of its quality: `parity` of the model, figures of the `index`, `leave_one_out`; see
            docs/file-formats.md. Empty where the bundle says nothing.
    """

    folder: Path
    name: str
    description: str
    notice: str
    licences: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def model_path(self) -> Path:
        """The ONNX model."""
        return self.folder / "model.onnx"

    @property
    def index_path(self) -> Path:
        """The folder of the reference index."""
        return self.folder / "index"


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder with a bundle's manifest."""
    return (path / MANIFEST_NAME).is_file()


def open_bundle(folder: Path, *, verify: bool = False) -> Bundle:
    """Reads a bundle's manifest and compares the files with it.

    Args:
        folder: the bundle.
        verify: hash the large files too.

    Raises:
        InputError: there is no such folder.
        ModelError: it is not a bundle, is of a version that this geoinfer does not know, or a file is missing or is
            not the one that the manifest was written for.
    """
    if not os.path.isdir(folder):  # unlike Path.is_dir, it raises nothing, for a name that is too long, say
        raise InputError(f"{folder}: there is no such bundle", hint=ENGINE_TAKES)
    manifest = read_manifest(folder / MANIFEST_NAME, BUNDLE_FORMAT, BUNDLE_VERSION, ModelError, "bundle")
    check_files(folder, manifest["files"], ModelError, verify=verify)
    if not {"model.onnx", "index/manifest.json"} <= set(manifest["files"]):
        raise ModelError(f"{folder}: the bundle lists no model.onnx or no index/manifest.json")
    texts = {"name": folder.name, "description": "", "notice": ""}
    for field_name in texts:
        texts[field_name] = manifest.get(field_name, texts[field_name])
        if not isinstance(texts[field_name], str):
            raise _damaged(folder, f"{field_name} is no text")
    licences, metrics = manifest.get("licences", {}), manifest.get("metrics", {})
    if not isinstance(licences, dict) or not all(isinstance(terms, str) for terms in licences.values()):
        raise _damaged(folder, "licences is no object of texts")
    if not isinstance(metrics, dict):
        raise _damaged(folder, "metrics is no object")
    return Bundle(folder=folder, **texts, licences=licences, files=manifest["files"], metrics=metrics)


def _damaged(folder: Path, what: str) -> ModelError:
    return ModelError(f"{folder}/{MANIFEST_NAME}: damaged: {what}", hint="copy or build it again")


def check_loaded(bundle: Bundle, path: Path, sha256: str) -> None:
    """Compares a model or engine that was loaded whole, and hashed on the way, with what the manifest says of it.

    That closes the gap which `open_bundle` leaves for large files. A file that the manifest does not list, such as an
    engine that was built beside the model later, is not the manifest's affair.

    Raises:
        ModelError: the contents are not those that the manifest was written for.
    """
    try:
        name = path.relative_to(bundle.folder).as_posix()
    except ValueError:
        return
    if name in bundle.files and bundle.files[name]["sha256"] != sha256:
        raise ModelError(
            f"{path}: the contents do not match the manifest's checksum; the file is damaged",
            hint="copy or build it again",
        )


def write_bundle_manifest(
    folder: Path,
    *,
    name: str,
    description: str,
    notice: str,
    licences: dict[str, str],
    metrics: dict[str, Any] | None = None,
) -> None:
    """Writes `bundle.json` over whatever files the folder holds; without `metrics` it has no such entry."""
    files = describe_files(
        folder, [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST_NAME]
    )
    write_json(
        folder / MANIFEST_NAME,
        {
            "format": BUNDLE_FORMAT,
            "version": BUNDLE_VERSION,
            "name": name,
            "description": description,
            "notice": notice,
            "licences": licences,
            "files": files,
        }
        | ({"metrics": metrics} if metrics else {}),
    )


def describe_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file, by its name relative to `folder`."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in sorted(names)
    }


def read_manifest(
    path: Path, expected_format: str, expected_version: int, error: type[GeoInferError], noun: str
) -> dict[str, Any]:
    """Reads a manifest and checks its format and version.

    Raises:
        GeoInferError: of the class `error`: missing, not JSON, of another format or version, without `files`.
    """
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as fault:
        reason = (fault.strerror or str(fault)).lower()
        raise error(
            f"{path.parent}: there is no {noun} here: {path.name} cannot be read: {reason}", hint=_MAKE[noun]
        ) from fault
    except (ValueError, RecursionError) as fault:
        raise error(
            f"{path}: the manifest is not JSON; the {noun} is damaged", hint="copy or build it again"
        ) from fault
    if not isinstance(manifest, dict) or manifest.get("format") != expected_format:
        raise error(f"{path}: not the manifest of a geoinfer {noun}")
    if manifest.get("version") != expected_version:
        raise error(
            f"{path}: {noun} format version {manifest.get('version')!r}; this geoinfer reads {expected_version}",
            hint=f"install a geoinfer that fits, or build the {noun} again",
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(v, dict) and isinstance(v.get("bytes"), int) and isinstance(v.get("sha256"), str)
        for v in files.values()
    ):
        raise error(f"{path}: the manifest lists no files; the {noun} is damaged", hint="copy or build it again")
    return manifest


def check_files(folder: Path, files: dict[str, Any], error: type[GeoInferError], *, verify: bool) -> None:
    """Compares files with their manifest: sizes always, checksums of all (`verify`) or of those under 64 MiB.

    Raises:
        GeoInferError: of the class `error`, naming the file.
    """
    for name, expected in files.items():
        path = folder / name
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
        except (ValueError, RuntimeError):  # a NUL byte, a loop of links
            inside = False
        if not inside:
            raise error(f"{folder}: the manifest names {name}, which lies outside the folder")
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise error(
                    f"{path}: {size} bytes where the manifest says {expected['bytes']}; the file is damaged",
                    hint="copy or build it again",
                )
            if (verify or size <= HASHED_AT_OPEN) and sha256_of(path) != expected["sha256"]:
                raise error(
                    f"{path}: the contents do not match the manifest's checksum; the file is damaged",
                    hint="copy or build it again",
                )
        except OSError as fault:
            if isinstance(fault, GeoInferError):
                raise
            raise error(
                f"{path}: cannot be read: {(fault.strerror or str(fault)).lower()}", hint="copy or build it again"
            ) from fault
