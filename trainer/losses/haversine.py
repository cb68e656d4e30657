"""Haversine loss: the great-circle distance between where an image was taken and where the model puts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trainer.losses.pairs import check_shape
from trainer.losses.spherical import central_angles, to_unit_vectors

if TYPE_CHECKING:
    from torch import Tensor


def haversine_loss(predicted: Tensor, coordinates: Tensor) -> Tensor:
    """Mean central angle between predicted and true positions, in radians: times 6371 it is the mean error in km.

    Computed in float64 whatever the prediction's precision, three numbers a row costing nothing, so that the last
    metres still have a gradient. The length of a prediction has no influence: the gradient lies along the sphere.

    Args:
        predicted: (n, 3) unit vectors as in `spherical.to_unit_vectors`, floats of any precision.
        coordinates: (n, 2) degrees.

    Returns:
        A scalar, float64 for a float64 prediction and float32 otherwise; 0 for no rows.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    check_shape("predicted", predicted, (None, 3), "one unit vector a row")
    if not predicted.is_floating_point():
        raise ValueError(f"predicted of shape {tuple(predicted.shape)} is {predicted.dtype}; expected floats")
    check_shape("coordinates", coordinates, (len(predicted), 2), "latitude and longitude for each prediction")
    angles = central_angles(predicted.double(), to_unit_vectors(coordinates))
    mean = angles.sum() / max(1, len(predicted))
    return mean if predicted.dtype == torch.float64 else mean.float()
