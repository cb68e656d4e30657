"""Photos whose neighbours are made by hand, so that it is known which way of answering is best."""

from __future__ import annotations

import numpy as np
import pytest

from geoinfer.geodesy import destination
from geoinfer.index import LeaveOneOut


@pytest.fixture
def world():
    """`world(seed, photos, neighbors)`: (held out, coordinates of references, true places)."""

    def make(seed=0, photos=120, neighbors=12, near_km=100.0, stray=0.4):
        rng = np.random.default_rng(seed)
        latitudes = np.rad2deg(np.arcsin(rng.uniform(-0.95, 0.95, photos)))
        truth = np.stack([latitudes, rng.uniform(-180, 180, photos)], axis=1)
        shape = (photos, neighbors)
        near = destination(truth[:, None], rng.uniform(0, 360, shape), np.abs(rng.normal(0, near_km, shape)))
        far = np.stack([rng.uniform(-80, 80, shape), rng.uniform(-180, 180, shape)], axis=-1)
        places = np.where((rng.random(shape) < stray)[..., None], far, near)
        similarities = np.sort(rng.uniform(0.5, 0.8, shape).astype(np.float32), axis=1)[:, ::-1].copy()
        ids = rng.permutation(photos * neighbors).reshape(shape)
        coordinates = np.empty((photos * neighbors, 2))
        coordinates[ids.ravel()] = places.reshape(-1, 2)
        return LeaveOneOut(np.full(photos, -1, np.int64), ids, similarities, truth), coordinates, truth

    return make
