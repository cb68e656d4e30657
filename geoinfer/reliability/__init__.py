"""Whether radii and scores can be trusted: on photos that the calibration never saw."""

from geoinfer.reliability.groups import SPLITS, SplitBy, group_folds, group_photos
from geoinfer.reliability.intervals import grouped_interval, wilson
from geoinfer.reliability.risk import RiskCoverage, risk_coverage
from geoinfer.reliability.table import LEVELS, Reliability, Row, reliability, reliability_on_new

__all__ = [
    "LEVELS",
    "SPLITS",
    "Reliability",
    "RiskCoverage",
    "Row",
    "SplitBy",
    "group_folds",
    "group_photos",
    "grouped_interval",
    "reliability",
    "reliability_on_new",
    "risk_coverage",
    "wilson",
]
