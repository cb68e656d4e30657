"""Embeddings to search among: made-up ones that lie as embeddings do, and those of GeoCLIP's gallery.

White noise in 256 dimensions is no test: all its neighbours are equally far, so that every approximate index fails on
it. Embeddings of places lie in clusters of very different sizes, the clusters near others, and within one they vary
along a few directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.format import open_memmap

if TYPE_CHECKING:
    from pathlib import Path

TOP, MIDDLE, BASES, LOCAL = 50, 1000, 64, 24
PERTURBED_KM = 50.0
AT_ONCE = 65536


@dataclass
class Data:
    """Embeddings, unit rows in float32.

    Attributes:
        name: for the report.
        references: (n, d), mapped.
        queries: (m, d), of the same distribution and none of the references.
        tuning: (t, d), likewise; settings are chosen on these, so that `queries` stay unseen.
        nature: how they lie, as figures with a name.
    """

    name: str
    references: np.ndarray
    queries: np.ndarray
    tuning: np.ndarray
    nature: dict[str, float]


class Clusters:
    """Three levels of centres, each around those above; cluster sizes follow a power law.

    Around its centre a cluster varies along `LOCAL` of the directions, the first ones most, and a little everywhere.
    Clusters share `BASES` sets of directions.
    """

    def __init__(self, dim: int, clusters: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.dim = dim

        def around(points: np.ndarray, width: float) -> np.ndarray:
            return unit(points + width * rng.standard_normal(points.shape) / np.sqrt(dim))

        top = unit(rng.standard_normal((TOP, dim)))
        middle = around(top[rng.integers(TOP, size=MIDDLE)], 0.9)
        self.centres = around(middle[rng.integers(MIDDLE, size=clusters)], 0.7)
        weights = rng.pareto(1.2, clusters) + 1
        self.shares = weights / weights.sum()
        self.bases = rng.standard_normal((BASES, LOCAL, dim)) / np.sqrt(dim)

    def draw(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(count, dim) float32 unit rows, and the cluster of each."""
        rng = np.random.default_rng(seed)
        cluster = rng.choice(len(self.centres), count, p=self.shares)
        along = rng.standard_normal((count, LOCAL)) / np.sqrt(1 + np.arange(LOCAL))
        rows = self.centres[cluster] + 0.15 / np.sqrt(self.dim) * rng.standard_normal((count, self.dim))
        for number, basis in enumerate(self.bases):
            chosen = cluster % BASES == number
            rows[chosen] += 0.5 * (along[chosen] @ basis)
        return unit(rows).astype(np.float32), cluster


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered(folder: Path, count: int, dim: int, queries: int, tuning: int) -> Data:
    """Made-up embeddings; the references are written to a file in blocks, once."""
    made = Clusters(dim, max(TOP, count // 50))
    path = folder / f"clustered-{count}x{dim}.npy"
    sizes = np.zeros(len(made.centres), np.int64)
    temporary = path.with_suffix(".part")
    kept = path.is_file()
    out: Any = None if kept else open_memmap(temporary, "w+", np.float32, (count, dim))
    for number, start in enumerate(range(0, count, AT_ONCE)):
        if kept:
            break
        rows, cluster = made.draw(min(AT_ONCE, count - start), seed=1000 + number)
        out[start : start + len(rows)] = rows
        sizes += np.bincount(cluster, minlength=len(sizes))
    if not kept:
        out.flush()
        del out
        temporary.rename(path)
    # Expected, not counted: the same whether the file was kept or not.
    largest = np.sort(made.shares)[::-1][: max(1, len(sizes) // 100)].sum()
    asked, _ = made.draw(queries, seed=1)
    tuned, _ = made.draw(tuning, seed=2)
    nature = {"clusters": float(len(sizes)), "share of references in the largest 1 % of clusters": float(largest)}
    return Data(f"clustered, {count:,} x {dim}", np.load(path, mmap_mode="r"), asked, tuned, nature)


def gallery(folder: Path, queries: int, tuning: int, most: int | None = None) -> Data:
    """GeoCLIP's 100,000 coordinates embedded by its location encoder; queries are places some 50 km off.

    Raises:
        ImportError: torch or geoclip is not installed.
    """
    import torch
    from geoclip import LocationEncoder

    from export.geoclip import embed_gallery

    path = folder / "gallery.npz"
    if not path.is_file():
        made = embed_gallery()
        rng = np.random.default_rng(3)
        chosen = made.coordinates[rng.choice(len(made.coordinates), 2 * 4096, replace=False)]
        degrees = PERTURBED_KM / 111.2
        moved = chosen + degrees * rng.standard_normal(chosen.shape) / np.maximum(
            0.1, np.stack([np.ones(len(chosen)), np.cos(np.radians(chosen[:, 0]))], axis=1)
        )
        moved = np.stack([np.clip(moved[:, 0], -90, 90), (moved[:, 1] + 180) % 360 - 180], axis=1)
        with torch.inference_mode():
            encoder = LocationEncoder().eval()
            asked = torch.nn.functional.normalize(encoder(torch.tensor(moved, dtype=torch.float32)), dim=1).numpy()
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, references=made.embeddings.astype(np.float32), queries=asked)
        path.with_suffix(".part").rename(path)
    with np.load(path) as kept:
        references, asked = kept["references"][:most], kept["queries"]
    name = f"GeoCLIP gallery, {len(references):,} x {references.shape[1]}"
    return Data(name, references, asked[:queries], asked[4096 : 4096 + tuning], {})


def describe(data: Data, similarities: np.ndarray) -> dict[str, float]:
    """How the embeddings lie; `similarities`: (m, k) of the queries with their nearest references, descending."""
    rng = np.random.default_rng(4)
    some, others = (np.asarray(data.references[np.sort(rng.integers(len(data.references), size=2000))]) for _ in "ab")
    return data.nature | {
        "mean similarity of the nearest": float(similarities[:, 0].mean()),
        f"mean similarity of the {similarities.shape[1]}th": float(similarities[:, -1].mean()),
        "mean similarity of any two": float((some @ others.T).mean()),
    }
