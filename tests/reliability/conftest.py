"""A made-up world: towns, some of which look alike, and photos of them taken on occasions."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import pytest

from geoinfer.index import LeaveOneOut, References, held_out_photos
from geoinfer.index.flat import FlatIndex


@dataclass(frozen=True)
class World:
    """References with photos that are none of them; `groups` says on which occasion each photo was taken."""

    places: np.ndarray
    vectors: np.ndarray
    index: FlatIndex
    photo_places: np.ndarray
    photo_vectors: np.ndarray
    groups: np.ndarray
    held_out: LeaveOneOut

    def references(self, places: np.ndarray, name: str) -> References:
        count = len(places)
        digests = b"".join(hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(2 * count))
        digests = np.frombuffer(digests, np.uint8).reshape(2, count, 32)
        return References([f"{name}{i}" for i in range(count)], places, [""] * count, [""] * count, *digests)


def make_world(seed: int = 0, references: int = 1000, photos: int = 800, shots: int = 1) -> World:
    rng = np.random.default_rng(seed)
    towns = np.stack([np.degrees(np.arcsin(rng.uniform(-0.95, 0.95, 40))), rng.uniform(-170, 170, 40)], axis=1)
    looks = rng.normal(size=(40, 16))
    looks[1::2] = looks[::2] + 0.6 * looks[1::2]
    noise = rng.uniform(0.1, 1.0, 40)

    def shoot(count: int, of_one: int) -> tuple[np.ndarray, np.ndarray]:
        town = rng.integers(0, 40, count)
        offset = rng.normal(0, 0.6, (count, 2))
        seen = looks[town] + noise[town][:, None] * rng.normal(size=(count, 16))
        places, seen = np.repeat(towns[town] + offset, of_one, axis=0), np.repeat(seen, of_one, axis=0)
        seen = seen + 0.05 * rng.normal(size=seen.shape)
        return places, (seen / np.linalg.norm(seen, axis=1, keepdims=True)).astype(np.float32)

    places, vectors = shoot(references, 1)
    photo_places, photo_vectors = shoot(photos // shots, shots)
    index = FlatIndex(vectors)
    return World(
        places, vectors, index, photo_places, photo_vectors, np.repeat(np.arange(photos // shots), shots),
        held_out_photos(index, photo_vectors, photo_places),
    )  # fmt: skip


def some_of(held_out: LeaveOneOut, chosen: np.ndarray) -> LeaveOneOut:
    return dataclasses.replace(
        held_out,
        rows=held_out.rows[chosen],
        ids=held_out.ids[chosen],
        similarities=held_out.similarities[chosen],
        places=None if held_out.places is None else held_out.places[chosen],
    )


@pytest.fixture(scope="session")
def kit():
    """What this file defines: test files have no names to import it by."""
    import sys

    return sys.modules[__name__]


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()
