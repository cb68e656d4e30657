"""What self-tuning found out, kept from one run to the next: a small JSON file a model and machine.

The files lie in `tuning/` of the user's cache folder (`~/.cache/geoinfer` on Linux; GEOINFER_CACHE names another).
What a choice depends on is in the file and, as a hash, in its name: another model, processor, number of cores, ONNX
Runtime or geoinfer finds no file, and measures anew. A file that cannot be read or written costs a line and a
measurement, never a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import geoinfer
from geoinfer.backends.cpu_settings import CpuSettings
from geoinfer.backends.onnx_runtime import import_onnxruntime
from geoinfer.integrity import canonical_json, write_json
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT: Final = "GEOINFER_CACHE"
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Int8Kept:
    """What is known of a model's int8 sibling.

    Attributes:
        fingerprint: SHA-256 of its file: another file is another matter.
        ratio: how many times as fast as the model, both by the default settings; 0 if it was not measured.
        why_not: why it does not take the model's place; empty if it does.
    """

    fingerprint: str
    ratio: float
    why_not: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A choice.

    Attributes:
        settings: of the model.
        gain: how many times as fast as the default they were, 1 for the default.
        int8: its sibling; None if there was none, or it was not looked at.
    """

    settings: CpuSettings
    gain: float
    int8: Int8Kept | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        eight = self.int8
        return {
            "settings": self.settings.as_dict(),
            "gain": self.gain,
            "int8": None
            if eight is None
            else {"fingerprint": eight.fingerprint, "ratio": eight.ratio, "why_not": eight.why_not},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Kept:
        """The inverse of `as_dict`; raises KeyError, TypeError or ValueError on anything else."""
        eight = values["int8"]
        return cls(
            CpuSettings.from_dict(values["settings"]),
            float(values["gain"]),
            None
            if eight is None
            else Int8Kept(str(eight["fingerprint"]), float(eight["ratio"]), str(eight["why_not"])),
        )


@dataclass(frozen=True, slots=True)
class CacheKey:
    """All that a choice depends on.

    Attributes:
        model: SHA-256 of the model's file.
        processor: its name, family, model and stepping.
        flags: SHA-256 of its instruction sets, sorted.
        cores: that this process may use.
        runtime: version of ONNX Runtime.
        geoinfer: version of geoinfer.
        format: of the file.
    """

    model: str
    processor: str
    flags: str
    cores: int
    runtime: str
    geoinfer: str
    format: int = _FORMAT

    @classmethod
    def here(cls, model: str) -> CacheKey:
        """The key of a model on this machine; raises MissingPackageError without ONNX Runtime."""
        processor, flags = _processor()
        digest = hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:16]
        runtime = str(import_onnxruntime().__version__)
        return cls(model, processor, digest, available_cores(), runtime, geoinfer.__version__)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def path(self) -> Path:
        """Where its choice is kept; raises RuntimeError where the system knows no such place."""
        digest = hashlib.sha256(canonical_json(self.as_dict()).encode()).hexdigest()[:16]
        return cache_folder() / "tuning" / f"{self.model[:16]}-{digest}.json"


def cache_folder() -> Path:
    """Where geoinfer keeps what it can do without."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("geoinfer", appauthor=False)


def load(key: CacheKey) -> tuple[Kept | None, str]:
    """The choice for a key.

    Returns:
        The choice, or None; and what a user should be told: that there is a file, and why it is of no use.
    """
    try:
        path = key.path
        values = json.loads(path.read_bytes())
        if values["key"] != key.as_dict():
            return None, f"{path}: is of another machine or model; it is not used"
        return Kept.from_dict(values["choice"]), ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, f"{path}: damaged; it is not used"
    except (FileNotFoundError, NotADirectoryError, RuntimeError):
        return None, ""
    except OSError as error:
        return None, f"{path}: cannot be read: {(error.strerror or str(error)).lower()}"


def store(key: CacheKey, kept: Kept) -> str:
    """Keeps a choice; what a user should be told if it cannot be kept, else nothing."""
    try:
        path = key.path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key.as_dict(), "choice": kept.as_dict()})
    except OSError as error:
        return f"{path}: cannot be written: {(error.strerror or str(error)).lower()}; the next run measures again"
    except RuntimeError as error:
        return f"there is no folder to keep the choice in: {error}; the next run measures again"
    return ""


def forget(key: CacheKey) -> bool:
    """Removes a choice; whether there was one.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        key.path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextlib.contextmanager
def one_at_a_time(key: CacheKey, *, at_most_seconds: float) -> Iterator[None]:
    """Lets one process measure at a time, as two would measure each other's load; who waits too long goes on anyway.

    Several processes that begin together, the shares of one run say, then find what the first of them kept.
    """
    try:
        import fcntl

        path = key.path.with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except (ImportError, OSError, RuntimeError):  # not a POSIX system, or nothing can be kept anyway
        yield
        return
    with file:
        until = time.monotonic() + at_most_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    break
                time.sleep(0.05)
        try:
            yield
        finally:
            # While it is still held: whoever waits for it has it open, and a file that is gone does no harm.
            with contextlib.suppress(OSError):
                path.unlink()


def _processor() -> tuple[str, list[str]]:
    """Name and instruction sets of the processor, as far as the system tells them."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if not line.strip():
                    break
                found[name.strip()] = value.strip()
    except OSError:
        pass
    names = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")
    words = [found[name] for name in names if name in found] or [platform.processor()]
    return ", ".join([platform.machine(), *words]), (found.get("flags") or found.get("Features") or "").split()
