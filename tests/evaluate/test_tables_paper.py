"""The founding paper's own numbers give the founding paper's own tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geoinfer.evaluate.bootstrap import Interval
from geoinfer.evaluate.measure import Evaluation
from geoinfer.evaluate.outcomes import Outcomes, Run
from geoinfer.evaluate.set_metrics import SetMetrics
from geoinfer.evaluate.tables import make_tables
from geoinfer.metrics import OSV5M

# Bold as the paper has it. Titles of the appendix are those of its body, which says Europe-Only where that says EU.
PAPER = """
1. Global Test Set: Error Metrics
Model	Best k	Median Error (km)	Mean Error (km)
ResNet50	10	4625.30	5784.09
ViT (Single Stage)	1	1628.45	4296.87
ViT (Two-Stage)	1	<b>1567.39</b>	<b>3907.71</b>
OSV5M (Baseline)	N/A	196.12	1726.75

2. Europe-Only Test Set: Error Metrics
Model	Best k	Median Error (km)	Mean Error (km)
ResNet50	10	1200.12	2303.76
ViT (Single Stage)	1	<b>648.60</b>	1988.10
ViT (Two-Stage)	1	671.56	<b>1755.32</b>
OSV5M (Baseline)	N/A	61.98	592.88

3. North America-Only Test Set: Error Metrics
Model	Best k	Median Error (km)	Mean Error (km)
ResNet50	1	2616.33	4718.30
ViT (Single Stage)	1	<b>1338.02</b>	<b>3284.21</b>
ViT (Two-Stage)	1	1594.37	3868.25
OSV5M (Baseline)	N/A	256.73	1471.77

4. Global Test Set: Accuracy Metrics
Model	Acc@25km (%)	Acc@750km (%)	Acc@2500km (%)
ResNet50	0.00	8.20	31.40
ViT (Single Stage)	7.13	<b>38.73</b>	55.93
ViT (Two-Stage)	<b>9.00</b>	38.60	<b>58.27</b>
OSV5M (Baseline)	16.6	69.33	83.27

5. Europe-Only Test Set: Accuracy Metrics
Model	Acc@25km (%)	Acc@750km (%)	Acc@2500km (%)
ResNet50	0.13	28.60	74.73
ViT (Single Stage)	8.67	<b>53.73</b>	84.07
ViT (Two-Stage)	<b>9.33</b>	52.87	<b>86.40</b>
OSV5M (Baseline)	32.33	85.00	95.87

6. North America-Only Test Set: Accuracy Metrics
Model	Acc@25km (%)	Acc@750km (%)	Acc@2500km (%)
ResNet50	0.27	14.60	48.47
ViT (Single Stage)	6.80	<b>37.47</b>	<b>64.60</b>
ViT (Two-Stage)	<b>7.20</b>	36.60	60.07
OSV5M (Baseline)	16.53	69.60	86.73

8. Global Test Set: Error Metrics
Model	Best k	Median Error (km)	Mean Error (km)
ResNet50 (Baseline)	10	4625.30	5784.09
ViT (Single Stage)	1	1628.45	4296.87
ViT (Two-Stage)	1	1567.39	3907.71
ViT-Large (Multi-Stage)	1	<b>1071.67</b>	<b>3115.58</b>

9. Europe-Only Test Set: Error Metrics
Model	Best k	Median Error (km)	Mean Error (km)
ResNet50 (Baseline)	10	1200.12	2303.76
ViT (Single Stage)	1	648.60	1988.10
ViT (Two-Stage)	1	671.56	1755.32
ViT-Large (Multi-Stage)	10	<b>418.32</b>	<b>1047.86</b>

10. North America-Only Test Set: Error Metrics
Model	Best k	Median Error (km)	Mean Error (km)
ResNet50 (Baseline)	1	2616.33	4718.30
ViT (Single Stage)	1	1338.02	3284.21
ViT (Two-Stage)	1	1594.37	3868.25
ViT-Large (Multi-Stage)	1	<b>917.57</b>	<b>2756.05</b>

11. Global Test Set: Accuracy Metrics
Model	Acc@25km (%)	Acc@750km (%)	Acc@2500km (%)
ResNet50 (Baseline)	0.00	8.20	31.40
ViT (Single Stage)	7.13	38.73	55.93
ViT (Two-Stage)	<b>9.00</b>	38.60	58.27
ViT-Large (Multi-Stage)	3.33	<b>42.80</b>	<b>68.13</b>

12. Europe-Only Test Set: Accuracy Metrics
Model	Acc@25km (%)	Acc@750km (%)	Acc@2500km (%)
ResNet50 (Baseline)	0.13	28.60	74.73
ViT (Single Stage)	8.67	53.73	84.07
ViT (Two-Stage)	<b>9.33</b>	52.87	86.40
ViT-Large (Multi-Stage)	1.67	<b>68.70</b>	<b>91.50</b>

13. North America-Only Test Set: Accuracy Metrics
Model	Acc@25km (%)	Acc@750km (%)	Acc@2500km (%)
ResNet50 (Baseline)	0.27	14.60	48.47
ViT (Single Stage)	6.80	37.47	64.60
ViT (Two-Stage)	<b>7.20</b>	36.60	60.07
ViT-Large (Multi-Stage)	2.47	<b>44.27</b>	<b>72.27</b>
"""


def parsed():
    """Number to title, heading and rows of cells as the paper prints them."""
    found = {}
    for block in PAPER.strip().split("\n\n"):
        title, *lines = block.split("\n")
        number, _, title = title.partition(". ")
        found[int(number)] = (title, lines[0].split("\t"), [line.split("\t") for line in lines[1:]])
    return found


TABLES = parsed()


def exactly(value):
    return Interval(value, value, value)


def number(cell):
    return float(cell.removeprefix("<b>").removesuffix("</b>"))


def evaluations(numbers, k_from=None):
    """One a model, with nothing but the numbers of some of the paper's tables, and the k of one of them."""
    sets = ("Global", "Europe", "North America")
    errors, accuracies = numbers[:3], numbers[3:]
    found = []
    for row, (name, k, *_) in enumerate(TABLES[k_from or errors[0]][2]):
        metrics = {}
        for set_name, error, accuracy in zip(sets, errors, accuracies, strict=True):
            _, _, median, mean = TABLES[error][2][row]
            shares = TABLES[accuracy][2][row][1:]
            metrics[set_name] = SetMetrics(
                name=set_name, labelled=1500, count=1500, failed=0, skipped=0, missing=0, groups=1500, farthest=None,
                median_km=exactly(number(median)), mean_km=exactly(number(mean)), geoscore=exactly(math.nan),
                accuracy={25.0: exactly(number(shares[0])), 750.0: exactly(number(shares[1])),
                          2500.0: exactly(number(shares[2])), 1.0: exactly(math.nan), 200.0: exactly(math.nan)},
                areas={},
            )  # fmt: skip
        nothing = np.empty((0, 2))
        outcomes = Outcomes([], [], nothing, nothing, [], [], np.empty(0), np.empty(0), [], [], [], [], [], [])
        masks = {set_name: np.empty(0, bool) for set_name in sets}
        run = Run(name, None if k == "N/A" else int(k))
        found.append(Evaluation(run, OSV5M, outcomes, np.empty(0), masks, "", metrics, {}))
    return found


@pytest.mark.parametrize("numbers", [(1, 2, 3, 4, 5, 6), (8, 9, 10, 11, 12, 13)], ids=["paper", "appendix"])
def test_the_papers_numbers_give_the_papers_tables(numbers):
    baselines = [name for name, *_ in TABLES[numbers[0]][2] if name.endswith("(Baseline)")]
    for place, paper in enumerate(numbers):
        title, columns, rows = TABLES[paper]
        # A run has one k. The paper chose it set by set.
        runs = evaluations(numbers, k_from=paper if columns[1] == "Best k" else None)
        table = make_tables(runs, baselines=baselines)[place]
        assert table.title == title
        assert table.columns == columns
        assert table.bold == [[cell.startswith("<b>") for cell in row] for row in rows]
        # No errors photo by photo are known, so that no winner is shown to be one.
        assert [[cell.endswith("†") for cell in row] for row in table.rows] == table.bold
        cells = [[cell.removesuffix("†") for cell in row] for row in table.rows]
        plain = [[cell.removeprefix("<b>").removesuffix("</b>") for cell in row] for row in rows]
        # The paper's one figure of a single decimal gets its second.
        assert cells == [["16.60" if cell == "16.6" else cell for cell in row] for row in plain]


def test_a_baseline_that_is_not_said_to_be_one_wins():
    table = make_tables(evaluations((1, 2, 3, 4, 5, 6)))[0]
    assert table.bold[3] == [False, False, True, True]
    assert not any(any(marks) for marks in table.bold[:3])


def test_six_tables_of_the_paper_and_three_of_all_metrics():
    tables = make_tables(evaluations((1, 2, 3, 4, 5, 6)))
    assert [table.title for table in tables[6:]] == [
        "Global Test Set: All Metrics with 95% Intervals",
        "Europe-Only Test Set: All Metrics with 95% Intervals",
        "North America-Only Test Set: All Metrics with 95% Intervals",
    ]
    assert len({table.label for table in tables}) == 9
    for table in tables[:6]:
        assert "1,500 photos, all answered by every model" in table.note
        assert "sphere of 6371 km, within R km is d < R" in table.whole_note
        assert "bootstrap" in table.note
    for table in tables[:3]:
        assert "validation data" in table.whole_note
