"""Embeddings in a Parquet file, read by row groups, and what the trainer's `embed` writes beside them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.errors import ImageError, InputError, LabelsError, MismatchError
from geoinfer.integrity import canonical_json
from geoinfer.labels import Label, bad_coordinates, column_positions, estimated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from geoinfer.backends.base import EmbedderIdentity

TRAINER_TABLE: Final = "embeddings.parquet"
TRAINER_MANIFEST: Final = "embeddings.json"

_EMBEDDING: Final = ("embedding", "embeddings", "vector")
_TEXTS: Final = ("source", "attribution", "sequence", "country", "location_type")
_SUFFIXES: Final = (".parquet", ".pq")
_BUFFER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ParquetEmbeddings:
    """A Parquet file whose columns are recognised.

    Attributes:
        path: of the file.
        rows: how many.
        dim: length of an embedding; of the first one where the column does not fix it, 0 where there is none.
        columns: role (`name`, `latitude`, ..., `embedding`) to the name of its column.
    """

    path: Path
    rows: int
    dim: int
    columns: dict[str, str]

    def blocks(self, rows: int) -> Iterator[tuple[NDArray[Any], list[Label]]]:
        """(embeddings (m, dim), labels) in the file's order, at most so many rows at a time.

        A row without an embedding of this length has a `problem` and NaN.

        Raises:
            InputError: the file cannot be read to its end.
        """
        line = 0
        with _readable(self.path) as file:
            # Buffered, a row group's pages are read as they are needed and not all at once.
            for batch in file.iter_batches(rows, columns=list(self.columns.values())):
                values = {role: batch.column(name) for role, name in self.columns.items()}
                vectors, lengths = _vectors(values["embedding"], self.dim)
                yield vectors, _labels(values, lengths, self.dim, line)
                line += len(batch)


def is_parquet(path: Path) -> bool:
    """Whether a path is called like a Parquet file, or is a folder that the trainer's `embed` wrote."""
    return path.suffix.lower() in _SUFFIXES or (path.is_dir() and (path / TRAINER_TABLE).is_file())


def open_parquet(path: Path) -> ParquetEmbeddings:
    """Reads the schema of a Parquet file, or of the one in a folder of the trainer's.

    Raises:
        InputError: it is missing, damaged or has no rows.
        LabelsError: a column is missing, or of a type that cannot be what its name says.
    """
    import pyarrow as pa

    if path.is_dir():
        path = path / TRAINER_TABLE
    with _readable(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        columns = _columns(path, schema)
        kind = schema.field(columns["embedding"]).type
        if not _is_list(kind) or not pa.types.is_floating(kind.value_type):
            raise LabelsError(
                f"{path}: column {columns['embedding']} is {kind}; expected lists of float32",
                hint="write it as list<float32> or fixed_size_list<float32>",
            )
        if rows == 0:
            raise InputError(f"{path}: has no rows")
        dim = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(file, columns["embedding"])
    return ParquetEmbeddings(path, rows, dim, columns)


def check_trainer(folder: Path, identity: EmbedderIdentity) -> None:
    """Compares what `embeddings.json` says of the checkpoint with the embedder that is named.

    An exported checkpoint is called `<backbone>-<recipe>:<the first 16 digits of its SHA-256>`, see
    `export.torch_embedder`.

    Raises:
        InputError: there is no readable `embeddings.json`: it is written last, so the set is not whole.
        MismatchError: checkpoint, dimensions or preprocessing are others.
    """
    path = folder / TRAINER_MANIFEST
    try:
        values = json.loads(path.read_bytes())
        digest, model, preprocessing = values["checkpoint_sha256"], values["model"], values["preprocessing"]
        backbone, dim = str(model["backbone"]), int(model["dim"])
        version, digest = values["format"], str(digest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise InputError(
            f"{path}: {reason}, so the embeddings beside it are not known to be whole",
            hint="`python -m trainer embed` writes it last: let it end",
        ) from error
    if version != 1:
        raise InputError(f"{path}: of format {version}; this geoinfer reads 1", hint="embed again")
    made = f"{backbone}:{digest[:16]} of {dim} dimensions"
    name = identity.name
    if dim != identity.dim or not (name.startswith(backbone) and name.endswith(f":{digest[:16]}")):
        raise MismatchError(
            f"{folder}: the embeddings are of the checkpoint {made}, but --engine is {identity}",
            hint="give the model that was exported from this checkpoint",
        )
    if canonical_json(preprocessing) != canonical_json(identity.preprocessing.as_dict()):
        raise MismatchError(
            f"{folder}: the embeddings were made with other pixels ({canonical_json(preprocessing)}) than --engine "
            f"is given ({identity.preprocessing})",
            hint="give the model that was exported from this checkpoint",
        )


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:  # pyarrow itself opens only names that are UTF-8
            yield pq.ParquetFile(file, buffer_size=_BUFFER_BYTES)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path}: cannot be read: {error.strerror.lower()}") from error
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a Parquet file, or damaged: {reason}") from error


def _columns(path: Path, schema: Any) -> dict[str, str]:
    import pyarrow as pa

    names: list[str] = schema.names
    lowered = [name.strip().lower() for name in names]
    embedding = next((lowered.index(name) for name in _EMBEDDING if name in lowered), None)
    if embedding is None:
        raise LabelsError(
            f"{path}: no column for the embedding: looked for {', '.join(_EMBEDDING)}; the file has {', '.join(names)}"
        )
    try:
        positions = column_positions(path, names)
    except LabelsError as error:
        raise LabelsError(str(error)) from error  # its hint is for a CSV
    if "id" in lowered:  # no photo is looked for, so what identifies a row comes before where it lay
        positions["name"] = lowered.index("id")
    roles = {role: positions[role] for role in ("name", "latitude", "longitude", *_TEXTS) if role in positions}
    for role, position in roles.items():
        kind = schema.field(position).type
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        textual = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
        fits = numeric if role in ("latitude", "longitude") else textual or pa.types.is_integer(kind)
        if not fits and not pa.types.is_null(kind):
            raise LabelsError(
                f"{path}: column {names[position]} is {kind}; expected "
                f"{'numbers' if role in ('latitude', 'longitude') else 'text'}"
            )
    return {role: names[position] for role, position in roles.items()} | {"embedding": names[embedding]}


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _first_length(file: Any, column: str) -> int:
    for batch in file.iter_batches(1024, columns=[column]):
        lengths = batch.column(0).value_lengths().drop_null()
        if len(lengths):
            return int(lengths[0].as_py())
    return 0


def _vectors(column: Any, dim: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Embeddings (m, dim), NaN where there is none of this length, and the lengths (m,), -1 for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    fits = lengths == dim
    if not fits.all():
        column = column.filter(pa.array(fits))
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim) if dim else np.empty((len(column), 0))
    if fits.all():
        return values, lengths
    vectors = np.full((len(fits), dim), np.nan, values.dtype)
    vectors[fits] = values
    return vectors, lengths


def _labels(values: dict[str, Any], lengths: NDArray[np.int64], dim: int, line: int) -> list[Label]:
    import pyarrow as pa

    def texts(role: str) -> list[str]:
        column = values.get(role)
        if column is None:
            return [""] * len(lengths)
        return [text or "" for text in column.cast(pa.string()).to_pylist()]

    def degrees(role: str) -> list[float]:
        column = values[role].cast(pa.float64(), safe=False)
        return [math.nan if value is None else value for value in column.to_pylist()]

    columns = [texts(role) for role in ("name", *_TEXTS)]
    places = degrees("latitude"), degrees("longitude")
    labels = []
    for row, (name, source, attribution, sequence, country, location_type, latitude, longitude) in enumerate(
        zip(*columns, *places, strict=True)
    ):
        problem = None
        if not name:
            problem = ImageError("labels", "no_name", f"row {line + row}, counted from 0, has no name")
        elif location_type == "estimated":
            problem = estimated()
        elif not (abs(latitude) <= 90.0 and abs(longitude) <= 180.0):
            problem = bad_coordinates((str(latitude), str(longitude)))
        elif lengths[row] != dim:
            found = "no embedding" if lengths[row] < 0 else f"an embedding of {lengths[row]} numbers"
            problem = ImageError("labels", "wrong_dimension", f"the row has {found}; expected {dim}")
        labels.append(
            Label(
                id=name,
                path=os.fsencode(name),
                latitude=latitude,
                longitude=longitude,
                source=source,
                attribution=attribution,
                sequence=sequence,
                country=country,
                line=line + row,
                problem=problem,
            )
        )
    return labels
