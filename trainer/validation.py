"""How good an embedder is: kNN of validation photos among training photos, as the paper judges its models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from geoinfer.aggregate import aggregate
from geoinfer.answer import Answer
from geoinfer.errors import UsageError
from geoinfer.geodesy import from_unit_vectors, haversine_km
from geoinfer.index.flat import FlatIndex
from geoinfer.metrics import OSV5M, accuracy_percent, geoscores
from trainer.batches import drawn, make_batches
from trainer.data.loader import BatchLoader
from trainer.devices import from_all_ranks
from trainer.embedding import embed_rows
from trainer.metrics import RADII_KM
from trainer.objective import Answers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric import Fabric
    from numpy.typing import NDArray

    from trainer.data.examples import Examples
    from trainer.data.loader import BadPhoto
    from trainer.models import GeoModel
    from trainer.objective import Objective
    from trainer.recipe import Recipe, StageTable

_SEED: Final = 7


@dataclass(frozen=True, slots=True)
class GeolocationErrors:
    """Errors of a set of answers.

    Attributes:
        k: neighbours that each answer was made of; 0 where the model answered with coordinates itself.
        distances_km: (q,) float64, great-circle distance from answer to truth.
    """

    k: int
    distances_km: NDArray[np.float64]

    @property
    def median_km(self) -> float:
        """Median error."""
        return float(np.median(self.distances_km))

    def as_row(self) -> dict[str, Any]:
        """The columns of `metrics.csv`: accuracies in percent, `d < r` and GeoScore as OSV-5M defines them."""
        d = self.distances_km
        row: dict[str, Any] = {"best_k": self.k, "median_km": self.median_km, "mean_km": float(d.mean())}
        row |= {f"accuracy_{radius}_km": accuracy_percent(d, radius, OSV5M) for radius in RADII_KM}
        return row | {"geoscore": float(geoscores(d, OSV5M).mean())}


class Validator:
    """Judges a model after each epoch, always on the same photos."""

    def __init__(self, recipe: Recipe, model: GeoModel, examples: Examples, fabric: Fabric, *, workers: int) -> None:
        """Queries come from the validation part, references from the training part; the recipe says how many."""
        table = recipe.validation
        self._queries = drawn(examples.of_split("validation"), table.queries, _SEED)
        self._references = drawn(examples.of_split("train"), table.references, _SEED)
        self._ks = table.k
        self._model = model
        self._fabric = fabric
        self._workers = workers

    def validate(self, stage: StageTable, objective: Objective) -> tuple[dict[str, Any], tuple[BadPhoto, ...]]:
        """The columns of `metrics.csv` for an epoch, none without validation photos; and photos that were not read.

        A stage that learns coordinates alone is judged by them, any other by its embedding.
        """
        if len(self._queries) == 0:
            return {}, ()
        answers, queries, bad = self._embed(self._queries, stage)
        if len(queries) == 0:
            return {}, bad
        row = {"validation_loss": batched_loss(objective, stage, answers, queries, seed=_SEED)}
        embeddings, places = self._model.split(torch.from_numpy(answers))
        if all(loss.kind == "haversine" for loss in stage.losses):
            assert places is not None
            return row | place_errors(places.numpy(), queries.coordinates).as_row(), bad
        found, references, more = self._embed(self._references, stage)
        known, _ = self._model.split(torch.from_numpy(found))
        assert embeddings is not None
        assert known is not None
        if len(references) == 0:
            return row, bad + more
        errors = neighbor_errors(
            np.ascontiguousarray(embeddings), queries.coordinates,
            np.ascontiguousarray(known), references.coordinates, self._ks,
        )  # fmt: skip
        return row | best_of(errors).as_row(), bad + more

    def _embed(
        self, examples: Examples, stage: StageTable
    ) -> tuple[NDArray[np.float32], Examples, tuple[BadPhoto, ...]]:
        size = max(1, (stage.micro_batch or stage.batch_size) // self._fabric.world_size)
        pinned = self._fabric.device.type == "cuda"
        with BatchLoader(examples, self._model.preprocessing, workers=self._workers, pinned=pinned) as loader:
            outputs, valid, bad = embed_rows(self._fabric, self._model, loader, np.arange(len(examples)), size)
        kept = np.flatnonzero(valid)
        return outputs[kept], examples.take(kept), from_all_ranks(self._fabric, tuple(bad))


def neighbor_errors(
    queries: NDArray[np.float32],
    truth: NDArray[np.float64],
    references: NDArray[np.float32],
    places: NDArray[np.float64],
    ks: Sequence[int],
) -> list[GeolocationErrors]:
    """Errors of the top-1 neighbour (k = 1) and of the weighted geographic mean of k neighbours, one for each k.

    Args:
        queries: (q, d) unit rows, q at least 1.
        truth: (q, 2) degrees.
        references: (r, d) unit rows, r at least 1.
        places: (r, 2) degrees.
        ks: numbers of neighbours; more than r is as many as r.
    """
    neighbors = FlatIndex(references).search(queries, max(ks))
    found = places[neighbors.ids]
    errors = []
    for k in ks:
        used = min(k, found.shape[1])
        answer = Answer(aggregate="top1" if k == 1 else "mean")
        answers = aggregate(found[:, :used], neighbors.similarities[:, :used], answer)
        errors.append(GeolocationErrors(k, haversine_km(answers, truth)))
    return errors


def best_of(errors: Sequence[GeolocationErrors]) -> GeolocationErrors:
    """The smallest median; of equal ones the smallest k."""
    return min(errors, key=lambda e: (e.median_km, e.k))


def place_errors(places: NDArray[np.float32], truth: NDArray[np.float64]) -> GeolocationErrors:
    """Errors of a coordinate head's answers, (q, 3) unit vectors."""
    return GeolocationErrors(0, haversine_km(from_unit_vectors(places), truth))


def batched_loss(
    objective: Objective, stage: StageTable, outputs: NDArray[np.float32], examples: Examples, *, seed: int
) -> float:
    """The objective over validation photos in batches made as the stage makes them, so that the two losses compare.

    Args:
        objective: of the stage.
        stage: says how batches are made.
        outputs: (n, width), the model's answers.
        examples: the n photos.
        seed: of the batches.

    Returns:
        The mean over batches; NaN where the photos make none, because no two are of one cell, say.
    """
    if len(examples) == 0:
        return float("nan")
    losses = []
    try:
        batches = make_batches(examples, stage, seed, smaller=True)
    except UsageError:
        return float("nan")
    for rows in batches.epoch(0):
        answers = Answers(
            torch.from_numpy(outputs[rows]),
            torch.from_numpy(examples.leaf_cells[rows].view(np.int64)),
            torch.from_numpy(examples.coordinates[rows]),
        )
        with torch.no_grad():
            losses.append(float(objective(answers)[0]))
    return float(np.mean(losses)) if losses else float("nan")
