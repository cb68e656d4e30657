"""Embeddings of a whole set, written as they come: what an index is built from."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geoinfer.errors import GeoInferError, InputError, ModelError, OutputError
from geoinfer.integrity import atomic_file, sha256_of, temporary_name, write_json
from trainer.checkpoint import load_model, read_checkpoint_info
from trainer.data.loader import BatchLoader
from trainer.embedding import embed_batches

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightning_fabric import Fabric

    from trainer.data.examples import Examples

EMBEDDINGS: Final = "embeddings.parquet"
BAD_PHOTOS: Final = "bad_photos.csv"
MANIFEST: Final = "embeddings.json"
DATA: Final = "data"


@dataclass(frozen=True, slots=True)
class EmbedSummary:
    """What came of it: photos embedded, photos that could not be read."""

    embedded: int
    bad: int


def embed(
    checkpoint: Path,
    examples: Examples,
    out: Path,
    fabric: Fabric,
    *,
    batch_size: int,
    workers: int,
    channels_last: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> EmbedSummary:
    """Embeds photos with a checkpoint into `out`.

    `embeddings.parquet` has a row for each photo that could be read: id, path, latitude, longitude, country, sequence,
    split, and `embedding`, a list of float32 of unit length. `bad_photos.csv` has the others, `embeddings.json` what
    the embeddings were made with.

    Args:
        checkpoint: of the trainer's.
        examples: the photos.
        out: folder, made if need be; what it holds of an earlier call is replaced.
        fabric: of one process.
        batch_size: photos at a time.
        workers: decoding threads.
        channels_last: lay convolutions out so.
        progress: told how many photos are done, and how many of them could not be read.

    Raises:
        InputError: the checkpoint is not there, or not one photo could be read.
        ModelError: it is none, or has no embedding, only coordinates, or answers with what is no number.
        OutputError: the folder cannot be written, or holds something else.
    """
    check_embeds(checkpoint)
    check_folder(out)
    model, info = load_model(checkpoint)
    if channels_last:
        model.use_channels_last()
    module: Any = fabric.setup_module(model)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)  # written last: with it, the set is whole
        summary = _write(out, model, module, examples, fabric, batch_size, workers, progress)
        if not summary.embedded:
            (out / EMBEDDINGS).unlink()
            raise InputError(
                f"none of the {summary.bad} photos could be read; {out / BAD_PHOTOS} says why",
                hint="if they were moved or changed, prepare the set again",
            )
        write_json(
            out / MANIFEST,
            {
                "format": 1,
                "checkpoint_sha256": sha256_of(checkpoint),
                "model": info.model,
                "preprocessing": info.preprocessing.as_dict(),
                "precision": str(fabric.strategy.precision.precision),
                "embedded": summary.embedded,
                "bad": summary.bad,
            },
        )
    except OSError as error:
        if isinstance(error, GeoInferError):
            raise
        raise OutputError(f"{out}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    return summary


def check_embeds(checkpoint: Path) -> None:
    """Raises ModelError, or InputError, unless a checkpoint can be read and has an embedding."""
    if not read_checkpoint_info(checkpoint).model["dim"]:
        raise ModelError(
            f"{checkpoint}: it answers with coordinates and has no embedding",
            hint="embed with a checkpoint of a recipe whose model.dim is not 0",
        )


def check_folder(out: Path) -> None:
    """Raises OutputError if a folder holds anything but what an earlier call left."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: a file, not a folder", hint="name a new folder")
    ours = {EMBEDDINGS, BAD_PHOTOS, MANIFEST, DATA, temporary_name(out / EMBEDDINGS).name}
    foreign = sorted({entry.name for entry in out.iterdir()} - ours) if out.is_dir() else []
    if foreign:
        raise OutputError(f"{out}: holds {foreign[0]}, which embed did not write", hint="name a new folder")


def _write(
    out: Path,
    model: Any,
    module: Any,
    examples: Examples,
    fabric: Fabric,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> EmbedSummary:
    schema = _schema(model.dim)
    embedded = bad = done = 0
    pinned = fabric.device.type == "cuda"
    with (
        atomic_file(out / EMBEDDINGS) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
        (out / BAD_PHOTOS).open("w", encoding="utf-8", newline="") as errors,
        BatchLoader(examples, model.preprocessing, workers=workers, pinned=pinned) as loader,
    ):
        listed = csv.writer(errors, lineterminator="\n")
        listed.writerow(("id", "code", "message"))
        for outputs, valid, unread in embed_batches(fabric, module, loader, np.arange(len(examples)), batch_size):
            kept = done + np.flatnonzero(valid.cpu().numpy())
            rows = outputs[valid, : model.dim].cpu().numpy()
            if not np.isfinite(rows).all():
                raise ModelError(
                    "the model answers with values that are no numbers", hint="--precision fp32 may mend it"
                )
            done += len(outputs)
            writer.write_batch(_record_batch(examples, kept, rows, schema))
            listed.writerows((photo.id, photo.code, photo.message) for photo in unread)
            embedded += len(kept)
            bad += len(unread)
            if progress is not None:
                progress(done, bad)
    return EmbedSummary(embedded, bad)


def _schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            ("id", pa.string()),
            ("path", pa.string()),
            ("latitude", pa.float64()),
            ("longitude", pa.float64()),
            ("country", pa.string()),
            ("sequence", pa.string()),
            ("split", pa.string()),
            ("embedding", pa.list_(pa.float32(), dim)),
        ]
    )


def _record_batch(examples: Examples, rows: np.ndarray, embeddings: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    from trainer.data.examples import SPLITS

    some = examples.take(rows)
    sequences = [some.sequence_names[code] if code >= 0 else "" for code in some.sequences.tolist()]
    columns = [
        pa.array(list(some.ids), pa.string()),
        pa.array([path.decode(errors="backslashreplace") for path in some.paths], pa.string()),
        pa.array(some.coordinates[:, 0]),
        pa.array(some.coordinates[:, 1]),
        pa.array(list(some.countries), pa.string()),
        pa.array(sequences, pa.string()),
        pa.array([SPLITS[code] for code in some.splits.tolist()], pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel(), pa.float32()), embeddings.shape[1]),
    ]
    return pa.record_batch(columns, schema=schema)
