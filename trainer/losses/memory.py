"""Cross-batch memory: embeddings of earlier batches as further candidates for the losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trainer.losses.pairs import check_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class CrossBatchMemory:
    """The last `capacity` embeddings seen, with the leaf cell and the coordinates of each.

    Embeddings drift slowly once training has settled, so those of recent batches serve as candidates at no cost but
    their space (X. Wang et al., "Cross-Batch Memory for Embedding Learning", 2020, arXiv 1912.06798). A batch belongs
    in the memory after its loss was computed: before that, every image would find itself there. For the same reason the
    capacity should be well below the number of images in an epoch.

    Rows are kept oldest first, in a buffer of twice the capacity: they form one contiguous window that slides along it
    and is copied back to the front when it has reached the end.

    Args:
        capacity: rows to keep, at least 1.
        dim: width of the embeddings.
        device: where the memory lives; what is added is moved there.

    Raises:
        ValueError: capacity or dim is below 1.
    """

    def __init__(self, capacity: int, dim: int, *, device: torch.device | str = "cpu") -> None:
        if capacity < 1 or dim < 1:
            raise ValueError(f"capacity is {capacity} and dim {dim}; expected at least 1 each")
        self.capacity = capacity
        self.dim = dim
        self._embeddings = torch.zeros(2 * capacity, dim, dtype=torch.float32, device=device)
        self._leaf_cells = torch.zeros(2 * capacity, dtype=torch.int64, device=device)
        self._coordinates = torch.zeros(2 * capacity, 2, dtype=torch.float64, device=device)
        self._end = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def embeddings(self) -> Tensor:
        """(m, dim) float32, oldest first, without gradient; a view, good until the memory next changes."""
        return self._embeddings[self._end - self._count : self._end]

    @property
    def leaf_cells(self) -> Tensor:
        """(m,) int64 bit patterns of level-30 S2 cells, in the order of `embeddings`; a view likewise."""
        return self._leaf_cells[self._end - self._count : self._end]

    @property
    def coordinates(self) -> Tensor:
        """(m, 2) float64 degrees, in the order of `embeddings`; a view likewise."""
        return self._coordinates[self._end - self._count : self._end]

    @torch.no_grad()
    def add(self, embeddings: Tensor, leaf_cells: Tensor, coordinates: Tensor) -> None:
        """Appends a batch; the oldest rows make room, and of a batch beyond the capacity the last rows stay.

        Args:
            embeddings: (n, dim) floats; detached and kept as float32.
            leaf_cells: (n,) int64.
            coordinates: (n, 2) degrees, float64.

        Raises:
            ValueError: shapes or types do not fit together.
        """
        check_shape("embeddings", embeddings, (None, self.dim), "rows as wide as the memory's")
        rows = len(embeddings)
        check_shape("leaf_cells", leaf_cells, (rows,), "one cell for each embedding")
        check_shape("coordinates", coordinates, (rows, 2), "latitude and longitude for each embedding")
        if leaf_cells.dtype != torch.int64:
            raise ValueError(f"leaf_cells of shape {tuple(leaf_cells.shape)} are {leaf_cells.dtype}; expected int64")
        added = min(rows, self.capacity)
        buffers = (self._embeddings, self._leaf_cells, self._coordinates)
        if self._end + added > 2 * self.capacity:
            # Source and target do not overlap: at most capacity - added rows move, from beyond the buffer's middle.
            kept = min(self._count, self.capacity - added)
            for buffer in buffers:
                buffer[:kept] = buffer[self._end - kept : self._end]
            self._end = self._count = kept
        for buffer, batch in zip(buffers, (embeddings, leaf_cells, coordinates), strict=True):
            buffer[self._end : self._end + added] = batch[rows - added :]
        self._end += added
        self._count = min(self._count + added, self.capacity)

    def clear(self) -> None:
        """Forgets everything."""
        self._end = self._count = 0

    def to(self, device: torch.device | str) -> CrossBatchMemory:
        """Moves the memory, in place, and returns it."""
        self._embeddings = self._embeddings.to(device)
        self._leaf_cells = self._leaf_cells.to(device)
        self._coordinates = self._coordinates.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of what is kept: `embeddings`, `leaf_cells` and `coordinates`, contiguous, oldest first."""
        return {
            "embeddings": self.embeddings.clone(),
            "leaf_cells": self.leaf_cells.clone(),
            "coordinates": self.coordinates.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces what is kept; the memory then goes on as the saved one would have.

        Args:
            state: of `state_dict`; of more rows than the capacity the newest stay.

        Raises:
            ValueError: a tensor is missing, or shapes or types do not fit; what was kept before is then still there.
        """
        missing = [name for name in ("embeddings", "leaf_cells", "coordinates") if name not in state]
        if missing:
            raise ValueError(f"the saved cross-batch memory lacks {', '.join(missing)}")
        restored = CrossBatchMemory(self.capacity, self.dim, device=self._embeddings.device)
        restored.add(state["embeddings"], state["leaf_cells"], state["coordinates"])
        self.__dict__.update(restored.__dict__)
