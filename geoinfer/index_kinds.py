"""The kinds of reference index, as words: `geoinfer --help` names them without importing NumPy."""

from __future__ import annotations

from typing import Final, Literal, get_args

Kind = Literal["flat", "flat-fp16", "sq8", "hnsw", "ivf", "ivf-pq"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
AUTO: Final = "auto"

DESCRIPTIONS: Final[dict[Kind, str]] = {
    "flat": "exact: a query is compared with every reference",
    "flat-fp16": "likewise, of embeddings in half precision: half of the disk and memory",
    "sq8": "likewise, by codes of a byte a dimension: a quarter of the memory, hardly a neighbour lost",
    "hnsw": "a graph of neighbours: quick for one query at a time, slow to build, the most memory",
    "ivf": "lists of neighbours, of which the nearest are looked at: the fastest, for a million references and more",
    "ivf-pq": "likewise, mapped, and embeddings in half precision: for more references than memory",
}
