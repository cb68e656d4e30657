"""S2 geocells on tensors, which hold the unsigned identifiers as int64 of the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from geoinfer.geocells import MAX_LEVEL

if TYPE_CHECKING:
    from torch import Tensor


def parent_cells(leaf_cells: Tensor, level: int) -> Tensor:
    """The cells of `level` that hold the given cells, int64 of the same shape.

    The same bits as `geoinfer.geocells.parent_cells`, which see: bits below the level's lowest one are cleared and that
    one is set. In two's complement the mask of the bits from a power of two upwards is its negative.

    Args:
        leaf_cells: int64 of any shape, the bit patterns of uint64 identifiers (`array.view(np.int64)`).
        level: 0 to 30.

    Raises:
        ValueError: the level is outside 0 to 30, or the cells are not int64.
    """
    if not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"S2 level {level} is outside 0 to {MAX_LEVEL}")
    if leaf_cells.dtype != torch.int64:
        raise ValueError(f"leaf_cells of shape {tuple(leaf_cells.shape)} are {leaf_cells.dtype}; expected int64")
    lowest_bit = 1 << (2 * (MAX_LEVEL - level))
    return (leaf_cells & -lowest_bit) | lowest_bit
