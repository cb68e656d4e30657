"""Model and index, and engines if there are any, become a bundle: the folder that `geoinfer predict --engine` takes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.answer import DEFAULT_ANSWER
from geoinfer.backends import EmbedderIdentity, open_embedder
from geoinfer.backends.onnx_runtime import model_metadata
from geoinfer.bundle import BUNDLE_FORMAT, MANIFEST_NAME, Bundle, open_bundle, write_bundle_manifest
from geoinfer.calibration import leave_one_out_errors_km
from geoinfer.engines.choose import engines_beside
from geoinfer.engines.sidecar import check_engine_file, read_sidecar, sidecar_path
from geoinfer.errors import GeoInferError, InputError, MismatchError, ModelError, OutputError, UsageError
from geoinfer.images import Preprocessing
from geoinfer.index import open_index, read_index_manifest
from geoinfer.integrity import sync_file, sync_folder, temporary_name
from geoinfer.lock import OutputLock
from geoinfer.metrics import OSV5M, RADII_KM, accuracy_percent, geoscores
from geoinfer.model_metadata import precision_of
from geoinfer.unfinished import undone_at_the_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from geoinfer.index import StoredIndex

MODEL: Final = "model.onnx"
INT8_MODEL: Final = "model.int8.onnx"
INDEX: Final = "index"
ATTRIBUTION: Final = "ATTRIBUTION.md"
_MOST_SOURCES: Final = (
    1000  # lines of ATTRIBUTION.md; where nearly every photo has its own, the table is the better list
)
_CHUNK_BYTES: Final = 1 << 20
_NOT_STATED: Final = "NOASSERTION"
_NAMED: Final = 5  # files, in a message
_ENGINE_NAME: Final = re.compile(r"[^./][^/]*\.trt(\.json|\.cache)?", re.IGNORECASE | re.DOTALL)
_ENGINE_FILES: Final = ("", ".json", ".cache")
"""Endings of an engine's name: itself, its sidecar, and what TensorRT-RTX compiled for a GPU."""


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What a bundle is made of.

    Attributes:
        model: an ONNX model with geoinfer's metadata.
        index: folder of a reference index that this model made.
        int8: the model in int8, None for none.
        engines: TensorRT engines of the same embedder, each with its sidecar beside it.
        name: short; the output folder's if empty.
        description: one line; made from the model's source and the index's size if empty.
        notice: one line that every run with the bundle shows; may be empty.
        licences: part (`model.onnx`, `model.int8.onnx`, `index`, an engine's file name) to terms; of a part that is
            left out, what the model's metadata and the index's attributions say.
        attribution: text of ATTRIBUTION.md; made from the model's metadata and the index's sources if None.
    """

    model: Path
    index: Path
    int8: Path | None = None
    engines: tuple[Path, ...] = ()
    name: str = ""
    description: str = ""
    notice: str = ""
    licences: Mapping[str, str] = field(default_factory=dict)
    attribution: str | None = None


def write_bundle(
    parts: BundleParts,
    output: Path,
    *,
    force: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Checks that the parts were made for one another, copies them, and writes the manifest.

    The folder appears whole or not at all. What is there already is replaced only if it is a bundle and `force` is set,
    and only when the new one is whole. Engines that lie in it are kept where they fit the new one.

    Args:
        parts: what goes into it.
        output: the bundle's folder.
        force: replace a bundle that is there.
        report: is told which engines of the old bundle are kept and which are not, a line each.

    Raises:
        UsageError: a text has several lines, or two engines have one name.
        InputError: a part is missing or cannot be read.
        ModelError, IndexFolderError: a part is damaged, or lacks what a bundle needs.
        MismatchError: models, index and engines are not of one embedder.
        OutputError: the output exists and must not be replaced, or cannot be written.
    """
    check_bundle_output(output, force=force)
    checked = _checked(parts)
    with bundle_lock(output):
        return _write(checked, output, force=force, report=report, link=False)


def write_locked_bundle(
    parts: BundleParts, output: Path, *, force: bool = False, report: Callable[[str], None] = lambda _: None
) -> Bundle:
    """`write_bundle` for who holds `bundle_lock`, of parts that were made for it alone: they are linked, not copied.

    Raises:
        GeoInferError: as `write_bundle`.
    """
    return _write(_checked(parts), output, force=force, report=report, link=True)


@contextlib.contextmanager
def bundle_lock(output: Path) -> Iterator[None]:
    """The lock on a bundle's folder, which one process at a time holds; what a killed one left beside it is removed.

    Raises:
        OutputError: another process holds it, or it cannot be made.
    """
    output = Path(os.path.realpath(output))  # a link is followed, not replaced
    lock = OutputLock(output.with_name(f".{output.name}.lock"), output, option="--out")

    def undo() -> None:
        _wind_up(output)
        lock.remove()

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock.take()
    except OSError as error:
        if isinstance(error, GeoInferError):
            raise
        raise _unwritable(output, error) from error
    with undone_at_the_end(undo):
        try:
            _wind_up(output)
            yield
        finally:
            _wind_up(output)
            lock.remove()


def check_bundle_output(output: Path, *, force: bool) -> None:
    """What `write_bundle` asks of its output, for who has long work to do before it.

    Raises:
        OutputError: the output exists and is no bundle, or is one and `force` is not set, or holds files that are
            neither the bundle's nor engines with what belongs to them.
        UsageError: it has no name.
    """
    output = Path(os.path.realpath(output))
    if not output.name:
        raise UsageError(f"--out {output}: expected the name of a new folder")
    if not os.path.lexists(output):
        return
    if not _has_manifest(output):
        raise OutputError(f"{output}: exists and is not a bundle, so it is not replaced", hint="choose another --out")
    if not force:
        raise OutputError(f"{output}: exists already", hint="choose another --out, or --force to replace it")
    strangers = _strangers(output)
    if strangers:
        more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
        raise OutputError(
            f"{output}: not replaced, since it holds files that are no part of the bundle: "
            f"{', '.join(strangers[:_NAMED])}{more}",
            hint="move them elsewhere, or choose another --out",
        )


def read_attribution(path: Path) -> str:
    """Text for `BundleParts.attribution`; raises InputError if it cannot be read or is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8") from error


def leave_one_out_figures(stored: StoredIndex) -> dict[str, Any] | None:
    """How well an index locates the photos that its calibration learns from, in its own way of answering.

    Returns:
        Plain values: `count`, `k`, `aggregate`, `median_km`, `mean_km`, `within_percent` (radius in km to percent) and
        `geoscore`; None where there are no such photos.
    """
    answer = stored.manifest.answer or DEFAULT_ANSWER
    errors_km = leave_one_out_errors_km(stored.leave_one_out, stored.references.coordinates, answer)
    if len(errors_km) == 0:
        return None
    return {
        "count": len(errors_km),
        **answer.as_dict(),
        "median_km": round(float(np.median(errors_km)), 1),
        "mean_km": round(float(errors_km.mean()), 1),
        "within_percent": {str(radius): round(accuracy_percent(errors_km, radius, OSV5M), 1) for radius in RADII_KM},
        "geoscore": round(float(geoscores(errors_km, OSV5M).mean())),
    }


@dataclass(frozen=True, slots=True)
class _Checked:
    """Parts that were made for one another; `sha256` is of the models, by their names in the bundle."""

    parts: BundleParts
    embedder: EmbedderIdentity
    stored: StoredIndex
    sha256: dict[str, str]


def _checked(parts: BundleParts) -> _Checked:
    _check_texts(parts)
    made_by = read_index_manifest(parts.index, verify=True).embedder
    sha256 = {MODEL: _check_model(parts, made_by)}
    if parts.int8 is not None:
        sha256[INT8_MODEL] = _check_int8(parts.int8, made_by)
    for engine in _by_name(parts.engines).values():
        _check_engine(engine, made_by)
    return _Checked(parts, made_by, open_index(parts.index), sha256)


def _write(checked: _Checked, output: Path, *, force: bool, report: Callable[[str], None], link: bool) -> Bundle:
    output = Path(os.path.realpath(output))
    building = temporary_name(output)
    try:
        check_bundle_output(output, force=force)
        building.mkdir()
        _fill(building, checked, output, link=link)
        _keep_engines(output, building, checked, report)
        _exchange(building, output)
    except OSError as error:
        if isinstance(error, GeoInferError):
            raise
        raise _unwritable(output, error) from error
    return open_bundle(output)


def _strangers(bundle: Path) -> list[str]:
    """Files of a bundle's folder that nobody expects there, by name; what a damaged manifest fails to list is one."""
    try:
        own = {MANIFEST_NAME, MODEL, ATTRIBUTION, *json.loads((bundle / MANIFEST_NAME).read_bytes())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        own = {MANIFEST_NAME, MODEL, ATTRIBUTION}
    found = [path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_symlink() or path.is_file()]
    return sorted(name for name in found if name not in own and not _of_engine(name))


def _of_engine(name: str) -> bool:
    """Whether a file is an engine or belongs to one, by its name; those that are still being built are hidden."""
    return _ENGINE_NAME.fullmatch(name) is not None


def _keep_engines(old: Path, building: Path, checked: _Checked, report: Callable[[str], None]) -> None:
    """Engines of the old bundle come along, unless the new one brings another of their name.

    They stay out of its manifest, like engines that are built into a bundle: each has its sidecar.
    """
    for engine in engines_beside(old):
        if (building / engine.name).exists():
            continue
        try:
            _check_engine(engine, checked.embedder)
        except GeoInferError as error:
            report(f"the engine {engine.name} of the old bundle is left out: {str(error).removeprefix(f'{engine}: ')}")
            continue
        for ending in _ENGINE_FILES:
            source = engine.with_name(f"{engine.name}{ending}")
            if source.is_file():
                _link(source, building / source.name)
        report(f"the engine {engine.name} of the old bundle is kept")


def _wind_up(output: Path) -> None:
    """Nothing of an unfinished bundle stays, and an old one that was to be replaced is back in its place."""
    shutil.rmtree(temporary_name(output), ignore_errors=True)
    old = _replaced(output)
    if not os.path.lexists(output) and _has_manifest(old):
        with contextlib.suppress(OSError):
            old.replace(output)  # a kill came between the two renames of `_exchange`
    else:
        shutil.rmtree(old, ignore_errors=True)


def _check_texts(parts: BundleParts) -> None:
    for option, text in (("--name", parts.name), ("--description", parts.description), ("--notice", parts.notice)):
        if len(text.splitlines()) > 1:
            raise UsageError(f"{option}: expected one line")
    known = {MODEL, INDEX, *_by_name(parts.engines)} | ({INT8_MODEL} if parts.int8 else set())
    for part in parts.licences:
        if part not in known:
            raise UsageError(
                f"--licence {part}=…: the bundle has no such part", hint=f"its parts are {', '.join(sorted(known))}"
            )


def _check_model(parts: BundleParts, made_by: EmbedderIdentity) -> str:
    """Opens the model and tries it out; returns its SHA-256."""
    if parts.model.suffix.lower() == ".trt":
        raise UsageError(
            f"--model {parts.model}: expected an ONNX model", hint="an engine goes with --engine, beside it"
        )
    try:
        with open_embedder(parts.model, "cpu") as embedder:
            identity, sha256 = embedder.identity, embedder.fingerprint
    except InputError as error:
        raise InputError(str(error), hint="--model takes an .onnx model") from error
    except ModelError as error:
        hint = error.hint
        if "--preprocessing" in hint or "--engine" in hint:
            hint = "a bundle takes an .onnx model whose metadata say what it is: make one with `python -m export onnx`"
        raise ModelError(str(error), hint=hint) from error
    if identity != made_by:
        raise MismatchError(
            f"the index {parts.index} was made by {made_by}, but the model {parts.model} is {identity}",
            hint=f"build the index again with `geoinfer index build --engine {parts.model} …`",
        )
    return sha256


def _check_int8(model: Path, made_by: EmbedderIdentity) -> str:
    """Opens the int8 model and tries it out; returns its SHA-256."""
    hint = "`python -m export onnx CHECKPOINT --precision int8 --calibration PHOTOS --int8-target cpu` makes one"
    if not model.is_file():
        raise InputError(f"--int8 {model}: there is no such model", hint=hint)
    precision = precision_of(model, model_metadata(model)["metadata"], hint)
    if precision != "int8":
        raise ModelError(f"--int8 {model}: the metadata say that it is {precision}", hint=hint)
    with open_embedder(model, "cpu") as embedder:
        identity, sha256 = embedder.identity, embedder.fingerprint
    if identity != made_by:
        raise MismatchError(f"the int8 model {model} is {identity}, but model and index are of {made_by}", hint=hint)
    return sha256


def _check_engine(engine: Path, made_by: EmbedderIdentity) -> None:
    sidecar = read_sidecar(engine)
    check_engine_file(engine, sidecar)
    identity = EmbedderIdentity(sidecar.identity, sidecar.dim, Preprocessing.from_dict(sidecar.preprocessing))
    if identity != made_by:
        raise MismatchError(
            f"the engine {engine} is of {identity}, but model and index are of {made_by}",
            hint="build it from this model: geoinfer engine build MODEL.onnx --out ENGINE.trt",
        )


def _by_name(engines: tuple[Path, ...]) -> dict[str, Path]:
    """Engines by the name that they have in the bundle."""
    named: dict[str, Path] = {}
    for engine in engines:
        if engine.suffix.lower() != ".trt":
            raise UsageError(f"--engine {engine}: expected a .trt engine")
        if engine.name in named:
            raise UsageError(f"--engine {engine}: there is another of this name", hint="rename one, and its sidecar")
        named[engine.name] = engine
    return named


def _fill(building: Path, checked: _Checked, output: Path, *, link: bool) -> None:
    parts, stored = checked.parts, checked.stored
    sources = {MODEL: parts.model} | ({INT8_MODEL: parts.int8} if parts.int8 else {})
    sources |= {f"{INDEX}/{name}": parts.index / name for name in ("manifest.json", *stored.manifest.files)}
    for name, engine in _by_name(parts.engines).items():
        sidecar = sidecar_path(engine)
        sources |= {name: engine, sidecar.name: sidecar}
    if not link:
        _check_space(building, sources, output)
    (building / INDEX).mkdir()
    for name, original in sources.items():
        (_link if link else _copy)(original, building / name)
    metadata = _metadata_of_copy(building / MODEL, parts.model)
    of_int8 = _metadata_of_copy(building / INT8_MODEL, parts.int8) if parts.int8 else {}
    (building / ATTRIBUTION).write_text(
        _attribution(metadata, stored) if parts.attribution is None else parts.attribution, encoding="utf-8"
    )
    source = metadata.get("geoinfer.source") or stored.manifest.embedder.name
    write_bundle_manifest(
        building,
        name=parts.name or output.name,
        description=parts.description or f"{source}, with an index of {stored.manifest.size} references",
        notice=parts.notice,
        licences=_licences(parts, metadata, stored),
        metrics=_metrics(metadata, of_int8, stored, parts),
    )
    for path in building.rglob("*"):
        if path.is_file():
            sync_file(path)
    _check_copies(building, checked)


def _check_space(building: Path, sources: Mapping[str, Path], output: Path) -> None:
    needed, free = 0, shutil.disk_usage(building).free
    for source in sources.values():
        try:
            needed += source.stat().st_size
        except OSError as error:
            raise _unreadable(source, error) from error
    if needed > free:
        raise OutputError(
            f"{output}: the bundle takes {needed / 1e6:.0f} MB, and the disk has {free / 1e6:.0f} MB left",
            hint="make room, or choose another --out",
        )


def _copy(source: Path, target: Path) -> None:
    """Copies contents alone; says of which of the two an error is."""
    try:
        reading = source.open("rb")
    except OSError as error:
        raise _unreadable(source, error) from error
    with reading, target.open("wb") as writing:
        while True:
            try:
                chunk = reading.read(_CHUNK_BYTES)
            except OSError as error:
                raise _unreadable(source, error) from error
            if not chunk:
                return
            writing.write(chunk)


def _link(source: Path, target: Path) -> None:
    """A second name for a file that nobody will write, or a copy where the file system has no such thing."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        _copy(source, target)


def _metadata_of_copy(copy: Path, original: Path) -> dict[str, str]:
    """The metadata of the model; that it opens away from its folder shows that it is one file."""
    try:
        return dict(model_metadata(copy)["metadata"])
    except ModelError as error:
        raise ModelError(
            f"{original}: its weights lie in another file, and a bundle's model is one file",
            hint="export it with `python -m export`, which writes one",
        ) from error


def _check_copies(building: Path, checked: _Checked) -> None:
    parts, files = checked.parts, open_bundle(building).files
    of_index = {f"{INDEX}/{name}": about["sha256"] for name, about in checked.stored.manifest.files.items()}
    for name, sha256 in (checked.sha256 | of_index).items():
        if files[name]["sha256"] != sha256:
            original = {MODEL: parts.model, INT8_MODEL: parts.int8}.get(name, parts.index)
            raise InputError(
                f"{name}: the copy differs from what {original} held a moment ago",
                hint="is something else writing it? try again",
            )


def _exchange(building: Path, output: Path) -> None:
    """The old bundle stays until the new one is whole, so a kill costs at most the moment between two renames."""
    old = _replaced(output)
    if output.exists():
        output.replace(old)
    building.replace(output)  # if that fails, `_wind_up` puts the old one back
    sync_folder(output.parent)


def _replaced(output: Path) -> Path:
    """Where an old bundle is while a new one takes its place."""
    return output.with_name(f".{output.name}.replaced")


def _has_manifest(folder: Path) -> bool:
    """Whether a folder is a bundle of ours, damaged perhaps: others may have files of that name too."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == BUNDLE_FORMAT


def _licences(parts: BundleParts, metadata: Mapping[str, str], stored: StoredIndex) -> dict[str, str]:
    terms = metadata.get("geoinfer.licence", "")
    source = metadata.get("geoinfer.source", "")
    stated = "licence not stated" if terms in ("", _NOT_STATED) else terms
    model = f"{stated} ({source})" if source else stated
    licences = {MODEL: model}
    licences |= dict.fromkeys([INT8_MODEL] * (parts.int8 is not None) + list(_by_name(parts.engines)), f"as {MODEL}")
    attributions = sorted({text for text in stored.references.attributions if text})
    if len(attributions) == 1 and all(stored.references.attributions):
        licences[INDEX] = f"embeddings and coordinates of references under: {attributions[0]}"
    elif attributions:
        licences[INDEX] = f"embeddings and coordinates of references under several terms, see {ATTRIBUTION}"
    else:
        licences[INDEX] = "embeddings and coordinates of references whose terms are not stated"
    return licences | dict(parts.licences)


def _metrics(
    metadata: Mapping[str, str], of_int8: Mapping[str, str], stored: StoredIndex, parts: BundleParts
) -> dict[str, Any]:
    manifest = stored.manifest
    metrics: dict[str, Any] = {
        "index": {"kind": manifest.kind, "size": manifest.size, "geocells": manifest.geocells},
    }
    for name, values, model in (("parity", metadata, parts.model), ("parity_int8", of_int8, parts.int8)):
        if "geoinfer.parity" in values:
            try:
                metrics[name] = json.loads(values["geoinfer.parity"])
            except (ValueError, RecursionError) as error:
                raise ModelError(f"{model}: the metadata is damaged: geoinfer.parity is not JSON") from error
    figures = leave_one_out_figures(stored)
    if figures is not None:
        metrics["leave_one_out"] = figures
    return metrics


def _attribution(metadata: Mapping[str, str], stored: StoredIndex) -> str:
    references = stored.references
    counts = Counter(zip(references.sources, references.attributions, strict=True))
    rows = [
        f"- {count} from {source or 'a source that is not named'}: {terms or 'terms not stated'}"
        for (source, terms), count in sorted(counts.items())
    ]
    more = len(rows) - _MOST_SOURCES
    if more > 0:
        rows = [*rows[:_MOST_SOURCES], f"- and {more} more, which `references.arrow` names"]
    terms = metadata.get("geoinfer.licence", "")
    lines = [
        "# Where this bundle comes from",
        "",
        f"`{MODEL}`: {metadata.get('geoinfer.source') or stored.manifest.embedder.name}.",
        "Licence: " + ("not stated." if terms in ("", _NOT_STATED) else f"{terms}."),
    ]
    if sha256 := metadata.get("geoinfer.weights_sha256"):
        lines.append(f"SHA-256 of the weights: {sha256}.")
    lines += [
        "",
        f"`{INDEX}/`: embeddings and coordinates of {len(references)} references, and no photos; `references.arrow`",
        "names each one's source.",
        "",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}")


def _unwritable(output: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{output}: the bundle cannot be written: {(error.strerror or str(error)).lower()}",
        hint="choose another --out, or make room",
    )
