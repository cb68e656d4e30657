from __future__ import annotations

import numpy as np
import pytest

from geoinfer.evaluate.leakage import leakage, leakage_warnings, relations
from geoinfer.evaluate.outcomes import NearestReferences, Outcomes
from geoinfer.index import References


def references(**changes: object) -> References:
    random = np.random.default_rng(3)
    values = {
        "ids": ["a", "b", "c", "d"],
        "coordinates": np.zeros((4, 2)),
        "sources": ["s"] * 4,
        "attributions": [""] * 4,
        "content_sha256": random.integers(1, 256, (4, 32), dtype=np.uint8),
        "perceptual_hashes": random.integers(0, 256, (4, 32), dtype=np.uint8),
        "sequences": ["drive", "", "", ""],
    }
    return References(**(values | changes))


def test_the_closest_relation_is_named() -> None:
    known = references()
    found = np.array([[0, 1], [0, 1], [0, 1], [2, 3], [2, 3], [3, 2]])
    digests = np.random.default_rng(4).integers(1, 256, (6, 32), dtype=np.uint8)
    hashes = np.random.default_rng(5).integers(0, 256, (6, 32), dtype=np.uint8)
    digests[0] = known.content_sha256[1]
    hashes[1] = known.perceptual_hashes[0]
    hashes[1, :5] ^= 255  # 40 of 256 bits
    hashes[5] = known.perceptual_hashes[2]
    hashes[5, :5] ^= 255
    hashes[5, 5] ^= 1  # one more
    told = relations(known, found, ["b", "p", "q", "c", "x", "y"], ["", "", "drive", "", "drive", ""], digests, hashes)
    assert told == ["same file", "near-duplicate", "same sequence", "same name", "", ""]


def test_references_without_a_file_are_no_copies() -> None:
    nothing = np.zeros((4, 32), np.uint8)
    known = references(content_sha256=nothing, perceptual_hashes=nothing, sequences=())
    told = relations(known, np.array([[0, 1]]), ["x"], ["drive"], nothing[:1], nothing[:1])
    assert told == [""]


def outcomes(nearest_km: list[float], similarities: list[float], sources: list[str], relations: list[str]) -> Outcomes:
    count = len(nearest_km)
    empty, nothing = [""] * count, np.full(count, np.nan)
    near = NearestReferences(
        ["r"] * count, ["here"] * count, np.array(similarities), nothing, ["r"] * count, ["there"] * count,
        np.array(nearest_km), relations,
    )  # fmt: skip
    return Outcomes(
        empty, [b""] * count, np.zeros((count, 2)), np.zeros((count, 2)), ["ok"] * count, empty, nothing, nothing,
        empty, empty, empty, empty, sources, empty, references=near,
    )  # fmt: skip


def test_shares_by_hand() -> None:
    found = leakage(
        outcomes(
            [0.2, 0.999, 1.0, 50, np.nan],
            [0.99991, 0.9, 0.8, 0.5, np.nan],
            ["here", "there", "", "elsewhere", "here"],
            ["same file", "", "", "same sequence", ""],
        )
    )
    assert found == {
        "photos": 4,
        "within_1_km": {"count": 2, "share": 0.5},
        "same_source": {"count": 2, "share": 0.5},
        "same_embedding": {"count": 1, "share": 0.25},
        "relations": {"same file": {"count": 1, "share": 0.25}, "same sequence": {"count": 1, "share": 0.25}},
    }


@pytest.mark.parametrize(
    ("near", "warned"), [(0, False), (4, False), (5, True), (100, True)], ids=["none", "few", "many", "all"]
)
def test_many_near_references_are_warned_of(near: int, warned: bool) -> None:
    found = leakage(outcomes([0.5] * near + [20.0] * (100 - near), [0.5] * 100, [""] * 100, [""] * 100))
    assert any("within 1 km" in text for text in leakage_warnings(found)) is warned


def test_one_copy_is_enough() -> None:
    found = leakage(outcomes([20.0] * 100, [0.99995] + [0.5] * 99, [""] * 100, [""] * 100))
    assert ["nearly the same embedding" in text for text in leakage_warnings(found)] == [True]
    found = leakage(outcomes([20.0] * 100, [0.99995] + [0.5] * 99, [""] * 100, ["near-duplicate"] + [""] * 99))
    assert ["near-duplicate among the references" in text for text in leakage_warnings(found)] == [True]


def test_shared_sources_are_warned_of() -> None:
    found = leakage(outcomes([20.0] * 100, [0.5] * 100, ["there"] * 10 + ["far"] * 90, [""] * 100))
    assert ["same source" in text for text in leakage_warnings(found)] == [True]


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert leakage_warnings(None) == []
    assert leakage(outcomes([np.nan], [np.nan], ["here"], [""])) is None
