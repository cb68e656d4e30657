from __future__ import annotations

import numpy as np
import pytest

from geoinfer.index import ExactIndex, References
from geoinfer.tuning.held_out import find_neighbors

COUNT = 8


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def photos(count, seed, **changed):
    rng = np.random.default_rng(seed)
    values = {
        "ids": [f"{seed}/{i}.jpg" for i in range(count)],
        "coordinates": np.stack([rng.uniform(-60, 60, count), rng.uniform(-180, 180, count)], axis=1),
        "sources": [""] * count,
        "attributions": [""] * count,
        "content_sha256": rng.integers(1, 256, (count, 32), np.uint8),
        "perceptual_hashes": rng.integers(0, 256, (count, 32), np.uint8),
        "sequences": [""] * count,
    }
    return References(**(values | changed))


@pytest.fixture
def vectors():
    return unit(np.random.default_rng(0).normal(size=(COUNT, 16)))


def found(vectors, references, mine, *, of_photos=True):
    """The references that each photo is located by, a set; photo i is the picture of reference i."""
    held_out = find_neighbors(ExactIndex(vectors), references, vectors[: len(mine)], mine, of_photos=of_photos)
    assert held_out.rows.tolist() == [-1] * len(mine)
    assert np.array_equal(held_out.places, mine.coordinates)
    return [set(row[row >= 0].tolist()) for row in held_out.ids]


EVERYTHING = set(range(COUNT))


def test_strangers_are_all_neighbors_the_most_similar_first(vectors):
    references, mine = photos(COUNT, 1), photos(3, 2)
    held_out = find_neighbors(ExactIndex(vectors), references, vectors[:3], mine)
    expected = np.argsort(-(vectors[:3] @ vectors.T), axis=1)
    assert np.array_equal(held_out.ids, expected)
    assert held_out.ids[:, 0].tolist() == [0, 1, 2]


def test_relatives_are_left_out(vectors):
    references = photos(COUNT, 1, sequences=["", "", "drive", "drive", "", "", "", ""])
    mine = photos(5, 2, sequences=["", "", "drive", "", ""])
    mine.content_sha256[0] = references.content_sha256[0]
    mine.perceptual_hashes[1] = references.perceptual_hashes[1]
    mine.perceptual_hashes[1, 0] ^= 255
    mine.ids[3] = references.ids[4]
    mine.coordinates[4] = references.coordinates[6] + [0.0005, 0.0]
    assert found(vectors, references, mine) == [
        EVERYTHING - {0}, EVERYTHING - {1}, EVERYTHING - {2, 3}, EVERYTHING - {4}, EVERYTHING - {6}
    ]  # fmt: skip


def test_a_relative_takes_its_sequence_along(vectors):
    # Numbers of occasions are of one set of photos only: the same file says which occasion it is in the other.
    references = photos(COUNT, 1, sequences=["taken together 1"] * 2 + ["taken together 2"] * 3 + [""] * 3)
    mine = photos(2, 2, sequences=["taken together 1", "taken together 1"])
    mine.content_sha256[0] = references.content_sha256[3]
    assert found(vectors, references, mine) == [EVERYTHING - {2, 3, 4}, EVERYTHING]


def test_references_that_are_no_photos_are_no_relatives(vectors):
    nothing = np.zeros((COUNT, 32), np.uint8)
    references = photos(COUNT, 1, content_sha256=nothing, perceptual_hashes=nothing, sequences=())
    mine = photos(2, 2, perceptual_hashes=nothing[:2], sequences=())
    mine.coordinates[0] = references.coordinates[0]
    mine.ids[1] = references.ids[1]
    assert found(vectors, references, mine, of_photos=False) == [EVERYTHING, EVERYTHING]


def test_ready_embeddings_have_names_places_and_sequences_but_no_files(vectors):
    nothing = np.zeros((COUNT, 32), np.uint8)
    sequences = ["", "", "drive", "drive", "", "", "", ""]
    references = photos(COUNT, 1, content_sha256=nothing, perceptual_hashes=nothing, sequences=sequences)
    mine = photos(4, 2, perceptual_hashes=nothing[:4], sequences=["", "", "drive", ""])
    mine.coordinates[0] = references.coordinates[5]
    mine.ids[1] = references.ids[6]
    # Photo i has the embedding of reference i, and is that photo, whatever it is called.
    assert found(vectors, references, mine) == [
        EVERYTHING - {0, 5}, EVERYTHING - {1, 6}, EVERYTHING - {2, 3}, EVERYTHING - {2, 3}
    ]  # fmt: skip


def test_a_long_sequence_is_searched_past():
    # 300 frames of the photo's own drive are nearer than all others.
    rng = np.random.default_rng(4)
    drive = np.tile([1.0, 0.0, 0.0, 0.0], (300, 1)) + rng.normal(0, 0.01, (300, 4))
    vectors = unit(np.concatenate([drive, rng.normal(size=(200, 4))]))
    references = photos(500, 1, sequences=["drive"] * 300 + [f"other {i}" for i in range(200)])
    mine = photos(1, 2, sequences=["drive"])
    held_out = find_neighbors(ExactIndex(vectors), references, unit(np.array([[1.0, 0, 0, 0]])), mine)
    assert held_out.ids.shape == (1, 100)
    assert held_out.ids.min() >= 300
    expected = 300 + np.argsort(-vectors[300:, 0], kind="stable")[:100]
    assert set(held_out.ids[0].tolist()) == set(expected.tolist())
