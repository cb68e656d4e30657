"""Timing embedders against each other: rounds in which each has its turn, with all cores at work."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.backends import Embedder
    from geoinfer.backends.cpu_settings import CpuSettings


def images_per_second(
    embedder: Embedder, settings: CpuSettings, pixels: NDArray[np.uint8], *, cores: int, seconds: float
) -> float:
    """The rate at which an embedder works when it is called as the settings say, from as many threads.

    Each thread counts the calls that it ends in its own time, at least one and `seconds` or a call more. Who is done
    goes on calling, uncounted, until all are: no call has a machine to itself at the end.

    Args:
        embedder: opened with these settings, as far as ONNX Runtime is told of them.
        settings: how it is called.
        pixels: at least a batch of pictures.
        cores: that the process may use.
        seconds: for how long.

    Raises:
        Exception: what the embedder raises.
    """
    calls = settings.calls_on(cores)
    batch = pixels[: settings.batch_size]
    at_work = calls
    rates: list[float] = []
    faults: list[BaseException] = []
    changed = threading.Condition()
    together = threading.Barrier(calls)
    where = sorted(os.sched_getaffinity(0)) if settings.pinned and hasattr(os, "sched_setaffinity") else []

    def work(number: int) -> None:
        nonlocal at_work
        try:
            if where:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, {where[number % len(where)]})
            together.wait()
            began, images, spent = time.perf_counter(), 0, 0.0
            while spent < seconds and not faults:
                embedder.embed(batch)
                images += len(batch)
                spent = time.perf_counter() - began
            with changed:
                if spent > 0:
                    rates.append(images / spent)
                at_work -= 1
                changed.notify_all()
            while at_work > 0 and not faults:
                embedder.embed(batch)
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
            with changed:
                faults.append(error)
                changed.notify_all()
            together.abort()

    threads = [
        threading.Thread(target=work, args=(number,), daemon=True, name=f"geoinfer-timing-{number}")
        for number in range(calls)
    ]
    try:
        for thread in threads:
            thread.start()
    finally:
        for thread in threads:
            thread.join()
    # What broke the barrier for the others is the fault itself.
    for fault in sorted(faults, key=lambda fault: isinstance(fault, threading.BrokenBarrierError)):
        raise fault
    return sum(rates)
