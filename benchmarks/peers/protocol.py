"""What the peers' programs have in common: the shipped references, and what they say at the end."""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from geoinfer.bundle import SHIPPED

if TYPE_CHECKING:
    import faiss
    from numpy.typing import NDArray

HEADER = ("path", "latitude", "longitude", "similarity")


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")
    parser.add_argument("--clip", type=Path, help="of GeoCLIP: folder with CLIP's weights")
    return parser.parse_args()


def open_references() -> tuple[faiss.Index, NDArray[np.float64]]:
    """FAISS over the shipped references, and their coordinates, (n, 2) degrees."""
    import faiss

    vectors = np.load(SHIPPED / "index" / "vectors.npy").astype(np.float32)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index, np.load(SHIPPED / "index" / "coordinates.npy")


def write_rows(output: Path, rows: list[tuple]) -> None:
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(rows)


def finished(seconds: float) -> None:
    """The last line of standard output: how long the photos took, without the start."""
    print(json.dumps({"seconds": seconds, "threads": len(os.sched_getaffinity(0))}), flush=True)
