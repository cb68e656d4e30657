"""`manifest.json` of a reference index: what it says, and how it is read without being believed."""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from geoinfer.answer import Answer
from geoinfer.backends.base import EmbedderIdentity
from geoinfer.bundle import check_files, is_bundle, read_manifest
from geoinfer.errors import IndexFolderError, InputError
from geoinfer.index.exchange import INDEX_FORMAT as INDEX_FORMAT
from geoinfer.index.exchange import is_index as is_index
from geoinfer.index.exchange import recover_unattended
from geoinfer.index_kinds import KINDS
from geoinfer.integrity import canonical_json

if TYPE_CHECKING:
    from pathlib import Path

    from geoinfer.index_kinds import Kind

INDEX_VERSION: Final = 2
COVERAGE_LEVEL: Final = 6
"""S2 level at which a manifest counts the cells that hold references; a cell is about 140 km wide."""

MANIFEST: Final = "manifest.json"
VECTORS: Final = "vectors.npy"
COORDINATES: Final = "coordinates.npy"
DIGESTS: Final = "digests.npy"
REFERENCES: Final = "references.arrow"
SEARCH: Final = "search.faiss"
LEAVE_ONE_OUT: Final = re.compile(r"leave_one_out-[0-9a-f]{16}\.npz")
"""Named by its contents, so that it and the manifest that names it are exchanged by one rename: the manifest's."""

DATA_FILES: Final = frozenset({VECTORS, COORDINATES, DIGESTS, REFERENCES})
HALF_KINDS: Final = frozenset({"flat-fp16", "sq8", "ivf-pq"})
"""Kinds whose vectors are stored as float16."""
EXACT_KINDS: Final = frozenset({"flat", "flat-fp16"})
"""Kinds that search the vectors themselves; the others have a `search.faiss`."""

_LARGEST_SCALE: Final = 1e6


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """What `manifest.json` says.

    Attributes:
        kind: of the index.
        size: number of references.
        embedder: which embedder made the embeddings.
        geocells: number of S2 cells of level 6 with at least one reference.
        calibrated_on: number of photos that calibration learns from.
        files: name to {"bytes", "sha256"}.
        answer: how to answer where nobody says otherwise; None for the general defaults.
        logit_scale: what similarities are multiplied by before the softmax that makes probabilities of them; None where
            they have no such meaning.
        parameters: what the search is run with, such as `nprobe`; empty for an exact one.
        recall: how much of the exact answer the search finds, as `RecallReport.as_dict` says; None for an exact one.
        tuning: the table that `geoinfer index tune` chose the parameters from; None where it was not run.
    """

    kind: Kind
    size: int
    embedder: EmbedderIdentity
    geocells: int
    calibrated_on: int
    files: dict[str, dict[str, Any]]
    answer: Answer | None = None
    logit_scale: float | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    recall: dict[str, Any] | None = None
    tuning: list[dict[str, Any]] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that an answer depends on; two indexes with the same one, asked in the same way, agree."""
        parts = {
            "files": {name: entry["sha256"] for name, entry in self.files.items()},
            "kind": self.kind,
            "logit_scale": self.logit_scale,
            "parameters": self.parameters,
        }
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()

    @property
    def of_photos(self) -> bool:
        """Whether the references are photos, which have relatives and can stand in for queries.

        Those of an index with a scale are not: a tower of their own embedded them, as GeoCLIP's does places.
        """
        return self.logit_scale is None

    @property
    def leave_one_out(self) -> str:
        """Name of the file that calibration learns from."""
        return next(name for name in self.files if LEAVE_ONE_OUT.fullmatch(name))

    def as_dict(self) -> dict[str, Any]:
        """What is written; what is None or empty is not."""
        values: dict[str, Any] = {
            "format": INDEX_FORMAT,
            "version": INDEX_VERSION,
            "kind": self.kind,
            "size": self.size,
            "embedder": self.embedder.as_dict(),
            "geocells": self.geocells,
            "calibrated_on": self.calibrated_on,
            "files": self.files,
        }
        optional = {
            "answer": None if self.answer is None else self.answer.as_dict(),
            "logit_scale": self.logit_scale,
            "parameters": self.parameters or None,
            "recall": self.recall,
            "tuning": self.tuning,
        }
        return values | {name: value for name, value in optional.items() if value is not None}


def read_index_manifest(folder: Path, *, verify: bool = False) -> IndexManifest:
    """Reads the manifest and compares the files with it.

    Args:
        folder: the index.
        verify: hash the large files too.

    Raises:
        InputError: there is no such folder.
        IndexFolderError: it is not an index, is of another version, or is damaged.
    """
    if not os.path.isdir(folder) and not recover_unattended(folder):
        # Unlike Path.is_dir, os.path's raises nothing, for a name that is too long, say.
        raise InputError(
            f"{folder}: there is no such index", hint="`geoinfer index build` makes one; --index takes its folder"
        )
    if is_bundle(folder):
        raise IndexFolderError(f"{folder}: this is a bundle, not an index", hint=f"its index is {folder / 'index'}")
    values = read_manifest(folder / MANIFEST, INDEX_FORMAT, INDEX_VERSION, IndexFolderError, "index")
    try:
        manifest = _parsed(values)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        raise IndexFolderError(f"{folder}/{MANIFEST}: damaged: {reason}", hint="build the index again") from error
    _check_names(folder, manifest)
    check_files(folder, manifest.files, IndexFolderError, verify=verify)
    return manifest


def checked_scale(value: Any) -> float:
    """A scale that makes sense.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 0 and at most a million.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"logit_scale is {value!r}; expected a number")
    if not 0 < value <= _LARGEST_SCALE:  # NaN compares false
        raise ValueError(f"logit_scale is {value!r}; expected a number above 0, at most {_LARGEST_SCALE:g}")
    return float(value)


def checked_parameters(values: Any) -> dict[str, float]:
    """Run-time parameters that make sense to a manifest; whether they do to a search, the search knows.

    Raises:
        TypeError: they are no object.
        ValueError: one is no finite number.
    """
    if not isinstance(values, dict):
        raise TypeError(f"parameters is {values!r}; expected an object")
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"the parameter {name} is {value!r}; expected a finite number")
    return dict(values)


def _parsed(values: dict[str, Any]) -> IndexManifest:
    kind = values["kind"]
    if kind not in KINDS:
        raise ValueError(f"an index of kind {kind!r}; this geoinfer reads {', '.join(KINDS)}")
    recall, tuning = values.get("recall"), values.get("tuning")
    if recall is not None and not isinstance(recall, dict):
        raise TypeError(f"recall is {recall!r}; expected an object")
    if tuning is not None and not (isinstance(tuning, list) and all(isinstance(row, dict) for row in tuning)):
        raise TypeError(f"tuning is {tuning!r}; expected a list of objects")
    return IndexManifest(
        kind=kind,
        size=_count(values, "size", least=1),
        embedder=EmbedderIdentity.from_dict(values["embedder"]),
        geocells=_count(values, "geocells"),
        calibrated_on=_count(values, "calibrated_on"),
        files=values["files"],
        answer=Answer.from_dict(values["answer"]) if "answer" in values else None,
        logit_scale=checked_scale(values["logit_scale"]) if "logit_scale" in values else None,
        parameters=checked_parameters(values.get("parameters", {})),
        recall=recall,
        tuning=tuning,
    )


def _count(values: dict[str, Any], name: str, *, least: int = 0) -> int:
    value = values[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; expected a number, at least {least}")
    return value


def _check_names(folder: Path, manifest: IndexManifest) -> None:
    """Raises IndexFolderError unless the files are those that an index of this kind consists of."""
    named = set(manifest.files)
    held_out = {name for name in named if LEAVE_ONE_OUT.fullmatch(name)}
    wanted = DATA_FILES if manifest.kind in EXACT_KINDS else DATA_FILES | {SEARCH}
    missing = wanted - named
    if missing or not held_out:
        names = ", ".join(sorted(missing)) or "leave_one_out-*.npz"
        raise IndexFolderError(f"{folder}/{MANIFEST}: does not list {names}", hint="build the index again")
    foreign = sorted(named - wanted - held_out) or sorted(held_out)[1:]
    if foreign:
        raise IndexFolderError(
            f"{folder}/{MANIFEST}: lists {foreign[0]}, which is no part of an index of kind {manifest.kind}",
            hint="build the index again",
        )
