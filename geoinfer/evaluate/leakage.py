"""Signs that the references know the photos that they are tested on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoinfer.images.near_duplicates import NEAR_DUPLICATE_BITS, hash_distances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geoinfer.evaluate.outcomes import Outcomes
    from geoinfer.index import References

NEAR_KM: Final = 1.0
"""OSV-5M keeps its test photos at least this far from all others (arXiv 2404.18873, section 3)."""

MANY_NEAR: Final = 0.05
MANY_OF_ONE_SOURCE: Final = 0.1
"""Shares of the photos from which a warning is worth its line; of copies one is enough."""

SAME_EMBEDDING: Final = 0.9999

SAME_FILE, NEAR_DUPLICATE, SAME_SEQUENCE, SAME_NAME = "same file", "near-duplicate", "same sequence", "same name"
_SAYS: Final = {
    SAME_FILE: "are references themselves: a reference is the same file",
    NEAR_DUPLICATE: "have a near-duplicate among the references",
    SAME_SEQUENCE: "have a reference of the same sequence",
    SAME_NAME: "have a reference of the same name",
}


def relations(
    references: References,
    found: NDArray[np.int64],
    ids: Sequence[str],
    sequences: Sequence[str],
    content_sha256: NDArray[np.uint8],
    perceptual_hashes: NDArray[np.uint8],
) -> list[str]:
    """The closest relation of each photo to one of the references that were found for it; empty where there is none.

    Args:
        references: all of them.
        found: (q, c) int64, rows of those that are looked at.
        ids: q names of the photos.
        sequences: q, empty where unknown.
        content_sha256: (q, 32) uint8 of the photos' files.
        perceptual_hashes: (q, 32) uint8 of their pictures.
    """
    if found.size == 0:
        return [""] * len(ids)
    digests = references.content_sha256[found]
    in_file = digests.any(axis=-1)  # zeros stand for a reference without a file
    same = in_file & (digests == content_sha256[:, None]).all(axis=-1)
    alike = hash_distances(references.perceptual_hashes[found], perceptual_hashes[:, None]) <= NEAR_DUPLICATE_BITS
    alike &= in_file
    told = []
    for row, (name, sequence) in enumerate(zip(ids, sequences, strict=True)):
        rows = found[row].tolist()
        if same[row].any():
            told.append(SAME_FILE)
        elif alike[row].any():
            told.append(NEAR_DUPLICATE)
        elif sequence and len(references.sequences) and any(references.sequences[one] == sequence for one in rows):
            told.append(SAME_SEQUENCE)
        elif any(references.ids[one] == name for one in rows):
            told.append(SAME_NAME)
        else:
            told.append("")
    return told


def leakage(outcomes: Outcomes) -> dict[str, Any] | None:
    """How much the references know of the photos, ready for JSON; None where no reference is known.

    Returns:
        `photos`: how many could be compared; and as `{"count", "share"}`: `within_1_km` (a reference is as near to the
        true place), `same_source` (as the most similar reference, or as the nearest), `same_embedding` (a cosine of at
        least 0.9999 with a reference) and under `relations` each of those of the function above that occurs.
    """
    known = outcomes.references
    if known is None:
        return None
    compared = np.isfinite(known.nearest_km)
    photos = int(compared.sum())
    if photos == 0:
        return None

    def part(count: int) -> dict[str, Any]:
        return {"count": count, "share": count / photos}

    alike = [
        there and bool(own) and own in (similar, near)
        for there, own, similar, near in zip(
            compared.tolist(), outcomes.sources, known.similar_sources, known.nearest_sources, strict=True
        )
    ]
    return {
        "photos": photos,
        "within_1_km": part(int((known.nearest_km < NEAR_KM).sum())),
        "same_source": part(sum(alike)),
        "same_embedding": part(int((known.similarities >= SAME_EMBEDDING).sum())),
        "relations": {name: part(known.relations.count(name)) for name in _SAYS if name in known.relations},
    }


def leakage_warnings(found: dict[str, Any] | None) -> list[str]:
    """What of `leakage` whoever reads the figures must know, one sentence each."""
    if found is None:
        return []
    photos = found["photos"]

    def share(name: str) -> str:
        return f"{found[name]['count']:,} of {photos:,} photos ({found[name]['share']:.0%})"

    warnings = []
    for name, count in found["relations"].items():
        warnings.append(f"{count['count']:,} of {photos:,} photos {_SAYS[name]}; new photos will be answered worse.")
    if found["same_embedding"]["count"] and not found["relations"].keys() & {SAME_FILE, NEAR_DUPLICATE}:
        warnings.append(
            f"{share('same_embedding')} have a reference of nearly the same embedding (cosine {SAME_EMBEDDING} or "
            "more): copies of them are probably in the index."
        )
    if found["within_1_km"]["share"] >= MANY_NEAR:
        warnings.append(
            f"{share('within_1_km')} have a reference within 1 km of their true place: the figures tell of places that "
            "the index knows, not of new ones."
        )
    if found["same_source"]["share"] >= MANY_OF_ONE_SOURCE:
        warnings.append(
            f"{share('same_source')} come from the same source as the reference most similar or nearest to them; "
            "--hold-out source leaves such references out."
        )
    return warnings
