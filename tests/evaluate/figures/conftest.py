from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from geoinfer.evaluate.measure import Evaluation
from geoinfer.evaluate.outcomes import ERROR, OK, Outcomes, Run
from geoinfer.geodesy import destination, haversine_km
from geoinfer.metrics import convention

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike

    Make = Callable[..., Evaluation]


@pytest.fixture
def make_evaluation() -> Make:
    """Makes an evaluation of true and predicted places; a prediction of NaN is a failure."""

    def make(
        truth: ArrayLike,
        predicted: ArrayLike,
        *,
        scores: ArrayLike | None = None,
        countries: Sequence[str] | None = None,
        sets: Mapping[str, ArrayLike] | None = None,
        name: str = "a model",
    ) -> Evaluation:
        true = np.asarray(truth, np.float64).reshape(-1, 2)
        answers = np.asarray(predicted, np.float64).reshape(-1, 2)
        n = len(true)
        answered = np.isfinite(answers[:, 0])
        empty = [""] * n
        unknown = np.full(n, np.nan)
        outcomes = Outcomes(
            ids=[str(i) for i in range(n)], paths=[b""] * n, truth=true, predicted=answers,
            statuses=[OK if good else ERROR for good in answered], reasons=empty,
            scores=unknown if scores is None else np.asarray(scores, np.float64), radii_km=unknown,
            countries=list(countries or empty), regions=empty, sub_regions=empty, cities=empty, sources=empty,
            sequences=empty,
        )  # fmt: skip
        distances = np.full(n, np.nan)
        distances[answered] = haversine_km(true[answered], answers[answered])
        masks = {"Global": np.ones(n, bool)} | {key: np.asarray(mask, bool) for key, mask in (sets or {}).items()}
        return Evaluation(Run(name, 10), convention("osv5m"), outcomes, distances, masks, "by hand", {}, {})

    return make


@pytest.fixture
def make_random(make_evaluation: Make) -> Make:
    """Makes an evaluation of random photos, a tenth of which have no answer."""

    def make(n: int, seed: int = 0, **more: object) -> Evaluation:
        generator = np.random.default_rng(seed)
        truth = np.column_stack([generator.uniform(-55, 70, n), generator.uniform(-180, 180, n)])
        distances = np.exp(generator.uniform(0, np.log(20000), n))
        predicted = destination(truth, generator.uniform(0, 360, n), distances)
        predicted[generator.random(n) < 0.1] = np.nan
        return make_evaluation(truth, predicted, scores=generator.random(n), **more)

    return make
