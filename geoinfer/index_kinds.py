"""The kinds of reference index, as words: `geoinfer --help` names them without importing NumPy."""

from __future__ import annotations

from typing import Final, Literal, get_args

Kind = Literal["flat", "flat-fp16", "sq8", "hnsw", "ivf", "ivf-pq"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
AUTO: Final = "auto"
