from __future__ import annotations

import hashlib

import numpy as np
import pytest

from geoinfer.images.near_duplicates import NEAR_DUPLICATE_BITS
from geoinfer.index import MAX_K, FlatIndex, References, held_out_photos
from geoinfer.index.leave_one_out import MAX_ROWS, leave_one_out


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def references_of(n, *, seed=0, ids=None, digests=None, hashes=None, sequences=(), places=None) -> References:
    rng = np.random.default_rng(seed)
    if digests is None:
        digests = [hashlib.sha256(str(i).encode()).digest() for i in range(n)]
    return References(
        ids=ids or [f"{i}.jpg" for i in range(n)],
        coordinates=np.stack([np.linspace(-80, 80, n), np.zeros(n)], axis=1) if places is None else np.array(places),
        sources=[""] * n,
        attributions=[""] * n,
        content_sha256=np.frombuffer(b"".join(digests), np.uint8).reshape(n, 32),
        perceptual_hashes=rng.integers(0, 256, (n, 32), dtype=np.uint8) if hashes is None else hashes,
        sequences=sequences,
    )


def plain(vectors, references, rows, columns):
    """The neighbours of each row by plain Python."""
    result = []
    for i in rows:
        left = []
        for j in range(len(vectors)):
            bits = sum(
                (int(a) ^ int(b)).bit_count()
                for a, b in zip(references.perceptual_hashes[i], references.perceptual_hashes[j], strict=True)
            )
            copy = (
                i == j
                or references.ids[i] == references.ids[j]
                or bytes(references.content_sha256[i]) == bytes(references.content_sha256[j])
                or bits <= NEAR_DUPLICATE_BITS
                or (
                    references.sequences
                    and references.sequences[i] != ""
                    and references.sequences[i] == references.sequences[j]
                )
            )
            if not copy:
                product = np.float32(np.dot(vectors[i].astype(np.float64), vectors[j].astype(np.float64)))
                left.append((-float(product), j))
        order = [j for _, j in sorted(left)][:columns]
        result.append(order + [-1] * (columns - len(order)))
    return result


def flipped(hash_, bits):
    """The hash with its first `bits` bits turned over."""
    array = np.unpackbits(hash_)
    array[:bits] ^= 1
    return np.packbits(array)


def test_without_copies_it_is_everyone_else():
    rng = np.random.default_rng(1)
    vectors, references = unit(rng, 30, 6), references_of(30)
    held_out = leave_one_out(FlatIndex(vectors), references)
    assert held_out.rows.tolist() == list(range(30))
    assert held_out.ids.tolist() == plain(vectors, references, range(30), 29)
    assert (held_out.rows.dtype, held_out.ids.dtype, held_out.similarities.dtype) == (np.int64, np.int64, np.float32)
    for i in range(30):
        products = [float(np.dot(vectors[i], vectors[j])) for j in held_out.ids[i]]
        assert held_out.similarities[i] == pytest.approx(products, abs=1e-6)


def test_photos_of_one_sequence_are_never_neighbors():
    rng = np.random.default_rng(8)
    # No sequence at all is not a sequence that all such photos share.
    sequences = [rng.choice(["", "walk", "drive", "flight"]) for _ in range(40)]
    vectors, references = unit(rng, 40, 6), references_of(40, sequences=sequences)
    held_out = leave_one_out(FlatIndex(vectors), references)
    assert held_out.ids.tolist() == plain(vectors, references, range(40), 39)


def test_photos_of_one_spot_are_no_neighbors_unless_sequences_tell_them_apart():
    # A degree of latitude is 111.2 km: 0.0008 are 89 m, 0.001 are 111 m.
    places = [(10.0, 20.0), (10.0008, 20.0), (10.0018, 20.0), (-40.0, 179.99995), (-40.0, -179.99995)]
    rng = np.random.default_rng(10)
    vectors = unit(rng, 5, 4)

    def neighbors(sequences):
        held_out = leave_one_out(FlatIndex(vectors), references_of(5, sequences=sequences, places=places))
        return [set(ids) - {-1} for ids in held_out.ids.tolist()]

    assert neighbors(()) == [{2, 3, 4}, {2, 3, 4}, {0, 1, 3, 4}, {0, 1, 2}, {0, 1, 2}]
    # Known to be of other occasions, they are each other's neighbours, however near.
    assert neighbors(["a", "b", "c", "d", "e"]) == [{0, 1, 2, 3, 4} - {i} for i in range(5)]
    assert neighbors(["a", "", "", "d", ""])[:2] == [{1, 2, 3, 4}, {0, 2, 3, 4}]


def test_a_long_sequence_does_not_use_up_the_neighbors():
    # 300 photos of one walk look more like one another than like the other 250, all of which remain to be found.
    rng = np.random.default_rng(9)
    walk = np.array([1.0, 0, 0, 0, 0, 0]) + 0.01 * rng.normal(size=(300, 6))
    vectors = np.concatenate([walk / np.linalg.norm(walk, axis=1, keepdims=True), unit(rng, 250, 6)]).astype(np.float32)
    references = references_of(550, sequences=["walk"] * 300 + [f"other {i}" for i in range(250)])
    held_out = leave_one_out(FlatIndex(vectors), references)
    assert held_out.ids[:300].min() >= 300
    assert held_out.ids[:3].tolist() == plain(vectors, references, range(3), MAX_K)


def test_copies_are_never_neighbors():
    rng = np.random.default_rng(2)
    n = 40
    vectors = unit(rng, n, 6)
    ids = [f"{i}.jpg" for i in range(n)]
    digests = [hashlib.sha256(str(i).encode()).digest() for i in range(n)]
    hashes = rng.integers(0, 256, (n, 32), dtype=np.uint8)
    # Copies look alike to the embedder, and would come first.
    for copy, original in ((11, 3), (12, 3), (21, 20), (31, 30), (33, 32)):
        vectors[copy] = vectors[original]
    digests[11] = digests[12] = digests[3]
    ids[21] = ids[20]
    hashes[31] = flipped(hashes[30], NEAR_DUPLICATE_BITS)
    hashes[33] = flipped(hashes[32], NEAR_DUPLICATE_BITS + 1)  # just another photo
    references = references_of(n, ids=ids, digests=digests, hashes=hashes)
    held_out = leave_one_out(FlatIndex(vectors), references)
    assert held_out.ids.tolist() == plain(vectors, references, range(n), n - 1)
    for group in ({3, 11, 12}, {20, 21}, {30, 31}):
        for i in group:
            assert not group & set(held_out.ids[i].tolist())
            # What is missing is padding at the end, with similarity 0.
            assert held_out.ids[i, -len(group) + 1 :].tolist() == [-1] * (len(group) - 1)
            assert held_out.similarities[i, -len(group) + 1 :].tolist() == [0] * (len(group) - 1)
            assert held_out.ids[i, : -len(group) + 1].min() >= 0
    assert held_out.ids[32, 0] == 33
    assert held_out.ids[33, 0] == 32


@pytest.mark.parametrize("how", ["bytes", "names", "hashes"])
def test_nothing_but_copies(how):
    n = 200
    digests = [b"x" * 32] * n if how == "bytes" else None
    ids = ["same"] * n if how == "names" else None
    hashes = np.zeros((n, 32), np.uint8) if how == "hashes" else None
    references = references_of(n, ids=ids, digests=digests, hashes=hashes)
    held_out = leave_one_out(FlatIndex(np.tile(unit(np.random.default_rng(0), 1, 4), (n, 1))), references)
    assert held_out.ids.shape == (n, MAX_K)
    assert (held_out.ids == -1).all()
    assert not held_out.similarities.any()


def test_a_group_of_many_copies():
    # 50 copies leave room for 100 others among the 164 candidates.
    rng = np.random.default_rng(5)
    n = 220
    vectors = unit(rng, n, 8)
    vectors[:50] = vectors[0]
    digests = [hashlib.sha256(str(max(i, 49)).encode()).digest() for i in range(n)]
    references = references_of(n, digests=digests)
    held_out = leave_one_out(FlatIndex(vectors), references)
    assert held_out.ids.shape == (n, MAX_K)
    assert held_out.ids.min() >= 0
    assert held_out.ids[:3].tolist() == plain(vectors, references, range(3), MAX_K)


def test_one_and_two_references():
    vectors = np.eye(2, dtype=np.float32)
    held_out = leave_one_out(FlatIndex(vectors[:1]), references_of(1))
    assert held_out.rows.tolist() == [0]
    assert held_out.ids.shape == held_out.similarities.shape == (1, 0)
    held_out = leave_one_out(FlatIndex(vectors), references_of(2))
    assert held_out.ids.tolist() == [[1], [0]]
    assert held_out.similarities.tolist() == [[0], [0]]
    held_out = leave_one_out(FlatIndex(vectors), references_of(2, ids=["same", "same"]))
    assert held_out.ids.tolist() == [[-1], [-1]]


def test_a_large_index_is_sampled():
    rng = np.random.default_rng(6)
    n = MAX_ROWS + 500
    vectors, references = unit(rng, n, 4), references_of(n)
    index = FlatIndex(vectors)
    held_out = leave_one_out(index, references)
    rows = held_out.rows.tolist()
    assert len(rows) == len(set(rows)) == MAX_ROWS
    assert rows == sorted(rows)
    assert min(rows) < 50
    assert max(rows) > n - 50
    again = leave_one_out(index, references)
    assert again.rows.tolist() == rows
    assert again.ids.tobytes() == held_out.ids.tobytes()
    assert again.similarities.tobytes() == held_out.similarities.tobytes()
    # Neighbours are sought among all, not among the sample, across the borders of batches.
    some = [0, 255, 256, 257, MAX_ROWS - 1]
    assert held_out.ids[some].tolist() == plain(vectors, references, [rows[i] for i in some], MAX_K)
    assert set(held_out.ids.ravel().tolist()) - set(rows)


def test_exactly_as_many_as_asked_are_all_taken():
    vectors = unit(np.random.default_rng(0), 12, 3)
    index, references = FlatIndex(vectors), references_of(12)
    assert leave_one_out(index, references, max_rows=12).rows.tolist() == list(range(12))
    assert len(leave_one_out(index, references, max_rows=11).rows) == 11


class TestPhotosOutsideTheIndex:
    def test_all_references_may_be_their_neighbors(self):
        # One of the photos looks exactly like a reference, and stands where it does: nothing is left out for that.
        vectors = unit(np.random.default_rng(3), 30, 6)
        queries, places = vectors[[4, 9]], np.array([(1.0, 2.0), (-3.0, 180.0)])
        held_out = held_out_photos(FlatIndex(vectors), queries, places)
        assert held_out.rows.tolist() == [-1, -1]
        assert held_out.places.tolist() == places.tolist()
        for query, ids, similarities in zip(queries, held_out.ids, held_out.similarities, strict=True):
            products = [float(np.dot(query.astype(np.float64), row.astype(np.float64))) for row in vectors]
            assert ids.tolist() == sorted(range(30), key=lambda i: (-np.float32(products[i]), i))
            assert similarities == pytest.approx([products[i] for i in ids], abs=1e-6)
        assert held_out.ids[:, 0].tolist() == [4, 9]

    def test_as_many_neighbors_as_calibration_looks_at(self):
        vectors = unit(np.random.default_rng(3), MAX_K + 20, 6)
        assert held_out_photos(FlatIndex(vectors), vectors[:3], np.zeros((3, 2))).ids.shape == (3, MAX_K)

    def test_of_many_photos_a_sample_is_drawn(self):
        vectors = unit(np.random.default_rng(3), 12, 6)
        queries = unit(np.random.default_rng(4), 50, 6)
        places = np.stack([np.arange(50.0), np.arange(50.0)], axis=1)
        held_out = held_out_photos(FlatIndex(vectors), queries, places, max_rows=20)
        drawn = held_out.places[:, 0].astype(int).tolist()
        assert drawn == sorted(set(drawn))
        assert len(drawn) == 20
        best = (queries.astype(np.float64) @ vectors.astype(np.float64).T).argmax(axis=1)
        assert held_out.ids[:, 0].tolist() == best[drawn].tolist()
        again = held_out_photos(FlatIndex(vectors), queries, places, max_rows=20)
        assert again.places.tolist() == held_out.places.tolist()

    def test_none(self):
        vectors = unit(np.random.default_rng(3), 12, 6)
        held_out = held_out_photos(FlatIndex(vectors), vectors[:0], np.empty((0, 2)))
        assert (held_out.ids.shape, held_out.places.shape) == ((0, 12), (0, 2))

    @pytest.mark.parametrize("places", [[(0, 0)], [(0, 0)] * 3, [(91, 0), (0, 0)], [(0, float("nan")), (0, 0)]])
    def test_places_that_make_no_sense(self, places):
        vectors = unit(np.random.default_rng(3), 12, 6)
        with pytest.raises(ValueError, match=r"places|coordinates"):
            held_out_photos(FlatIndex(vectors), vectors[:2], np.array(places, float))
