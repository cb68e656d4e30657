"""How fast a GPU and the CPU were found to decode photos, kept from one run to the next.

A run that is resumed must decode as it began, so what `--decode auto` measured is not measured again.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from geoinfer.integrity import canonical_json, write_json
from geoinfer.self_tuning.cache import CacheKey, cache_folder

if TYPE_CHECKING:
    from pathlib import Path


def load_rates(key: dict[str, Any]) -> dict[str, Any] | None:
    """What `store_rates` kept for the same key on this machine; None if nothing is there that can be read.

    Args:
        key: all that the rates depend on besides the machine.
    """
    whole = _whole(key)
    try:
        values = json.loads(_path(whole).read_bytes())
        return dict(values["rates"]) if values["key"] == whole else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        return None


def store_rates(key: dict[str, Any], rates: dict[str, Any]) -> str:
    """Keeps rates; what a user should be told if they cannot be kept, else nothing."""
    whole = _whole(key)
    try:
        path = _path(whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": whole, "rates": rates})
    except (OSError, RuntimeError) as error:
        return f"how fast photos are decoded cannot be kept ({error}); the next run measures again"
    return ""


def _whole(key: dict[str, Any]) -> dict[str, Any]:
    return {"machine": CacheKey.here("").as_dict(), "decoding": key}


def _path(whole: dict[str, Any]) -> Path:
    digest = hashlib.sha256(canonical_json(whole).encode()).hexdigest()[:16]
    return cache_folder() / "decoding" / f"{digest}.json"
