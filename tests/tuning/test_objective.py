from __future__ import annotations

import math

import numpy as np
import pytest

from geoinfer.errors import UsageError
from geoinfer.tuning.objective import Objective

ERRORS = np.array([[1.0, 3.0, 24.0, 25.0, 1492.7], [0.0, 0.0, 0.0, 0.0, 20_000.0]])


@pytest.mark.parametrize(
    ("text", "expected", "written"),
    [
        ("median", [24.0, 0.0], "24 km"),
        ("mean", [1545.7 / 5, 4000.0], "309 km"),
        ("acc@25", [60.0, 80.0], "60.0%"),
        ("acc@0.5", [0.0, 80.0], "0.0%"),
        ("geoscore", [1000 * math.fsum(math.exp(-e / 1492.7) for e in row) for row in ERRORS.tolist()], "4333 points"),
    ],
)
def test_values_by_hand(text, expected, written):
    objective = Objective.parse(text)
    assert objective.values(ERRORS) == pytest.approx(expected, rel=1e-6)
    assert objective.written(float(objective.values(ERRORS)[0])) == written
    assert objective.larger_is_better is (text not in ("median", "mean"))
    assert np.array_equal(objective.costs(ERRORS), objective.values(ERRORS) * (-1 if objective.larger_is_better else 1))


@pytest.mark.parametrize(
    "text", ["", "best", "acc", "acc@", "acc@x", "acc@0", "acc@-5", "acc@nan", "acc@inf", "mean@5"]
)
def test_another_is_refused(text):
    with pytest.raises(UsageError, match="expected median, mean, geoscore or acc@25"):
        Objective.parse(text)
