"""An embedder whose calls take a known time, as seen by a clock of its own."""

from __future__ import annotations

import os
import threading
import time

import numpy as np

from geoinfer.backends import EmbedderIdentity
from geoinfer.images import Preprocessing

SIZE = 4


class Sleeper:
    """Embeds by sleeping: `seconds` a call and `per_picture` a picture more. Counts calls and who made them."""

    def __init__(
        self, seconds: float = 0.0, per_picture: float = 0.0, *, turned: float = 0.0, fault: Exception | None = None
    ):
        self.identity = EmbedderIdentity("sleeper", 2, Preprocessing(size=SIZE))
        self.device, self.device_reason, self.fingerprint = "cpu", "fake", "0" * 64
        self.fell_back, self.best_batch, self.calls_at_once, self.pins_threads = False, None, 1, False
        self.seconds, self.per_picture, self.turned, self.fault = seconds, per_picture, turned, fault
        self.lock = threading.Lock()
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.cores: set[frozenset[int]] = set()
        self.at_once = self.most_at_once = 0
        self.closed = False

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        with self.lock:
            self.batches.append(len(pixels))
            self.threads.add(threading.current_thread().name)
            self.cores.add(frozenset(os.sched_getaffinity(0)))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.seconds + self.per_picture * len(pixels))
        with self.lock:
            self.at_once -= 1
        if self.fault is not None:
            raise self.fault
        angle = pixels[:, 0, 0, 0].astype(np.float32) + np.float32(self.turned)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Sleeper:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def pictures(count: int = 16) -> np.ndarray:
    return np.arange(count * SIZE * SIZE * 3, dtype=np.uint8).reshape(count, SIZE, SIZE, 3)
