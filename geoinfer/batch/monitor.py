"""What a pipeline tells somebody who measures it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

Stage = Literal["prepare", "decode on device", "embed", "finish"]


class PipelineMonitor(Protocol):
    """Is told what each thread of a pipeline does. Both calls must be quick: work waits for them."""

    def task(self, stage: Stage, started: float, ended: float, photos: int) -> None:
        """A task has ended; called from the thread that did it.

        Args:
            stage: `prepare` reads, decodes and resizes one photo; the others work on a batch or a block.
            started: `time.perf_counter()` seconds.
            ended: likewise.
            photos: how many it was about.
        """

    def queues(self, sizes: Mapping[str, int]) -> None:
        """A task begins; what waits at this moment. Called with the pipeline's lock held.

        Args:
            sizes: `filling`: photos that no thread has begun; `to decode on device` and `to embed`: batches; `to
                finish`: blocks; `finished`: blocks that the consumer has not fetched; `idle threads`.
        """
