"""Embeds many photos with a model in eval mode, shared among the ranks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainer.devices import gathered
from trainer.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_fabric import Fabric
    from numpy.typing import NDArray

    from trainer.data.loader import BadPhoto, BatchLoader


def embed_rows(
    fabric: Fabric, model: Any, loader: BatchLoader, rows: NDArray[np.int64], batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[BadPhoto]]:
    """Answers for some rows of the loader's examples; every rank gets all of them.

    Args:
        fabric: that the model was set up with.
        model: put in eval mode for it, and back.
        loader: of the examples.
        rows: (n,) int64.
        batch_size: photos at a time on each rank.

    Returns:
        outputs: (n, width) float32; rows of photos that could not be read are zero.
        valid: (n,) bool.
        bad: those photos, of this rank's share.

    Raises:
        TrainingError: an answer is no number.
    """
    ranks = fabric.world_size
    share = -(-len(rows) // ranks)
    padded = np.full(share * ranks, -1, dtype=np.int64)
    padded[: len(rows)] = rows
    own = padded[fabric.global_rank * share : (fabric.global_rank + 1) * share]
    answers, valid = [], []
    bad: list[BadPhoto] = []
    for outputs, good, unread in embed_batches(fabric, model, loader, own, batch_size):
        answers.append(outputs)
        valid.append(good)
        bad.extend(unread)
    width = model.dim + (3 if model.coordinate_head is not None else 0)
    everything = torch.cat(answers) if answers else torch.zeros(0, width, device=fabric.device)
    marks = torch.cat(valid) if valid else torch.zeros(0, dtype=torch.bool, device=fabric.device)
    everything, marks = torch.cat(gathered(fabric, everything)), torch.cat(gathered(fabric, marks))
    found = everything[: len(rows)].cpu().numpy()
    if not np.isfinite(found).all():
        raise TrainingError(
            "what the model answers holds values that are no numbers: its weights have grown beyond them",
            hint="begin a run with lower rates (--set optimiser.lr_head=…) or --set optimiser.clip_norm=1.0; the last "
            "checkpoint was written before",
        )
    return found, marks[: len(rows)].cpu().numpy(), bad


def embed_batches(
    fabric: Fabric, model: Any, loader: BatchLoader, rows: NDArray[np.int64], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, tuple[BadPhoto, ...]]]:
    """Yields (outputs (b, width) float32 on the device, valid (b,) bool, photos that could not be read), in order."""
    parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    with answering(model):
        for batch in loader.batches(parts):
            valid = batch.valid.to(fabric.device, non_blocking=True)
            # Only around this: gradients switched off in a generator stay off for who uses it.
            with torch.no_grad(), fabric.autocast():
                outputs = model(batch.pixels.to(fabric.device, non_blocking=True)).float()
                outputs.masked_fill_(~valid[:, None], 0.0)  # what a model makes of an empty picture is no answer
            yield outputs, valid, batch.bad


@contextmanager
def answering(model: Any) -> Iterator[None]:
    """The model in eval mode within the block; each module then gets back the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
