"""Errors of training alone; all others are the runtime's."""

from __future__ import annotations

from typing import ClassVar

from geoinfer.errors import GeoInferError


class TrainingError(GeoInferError, RuntimeError):
    """A run cannot go on: its loss is no number, or nothing of a batch could be read."""

    exit_code: ClassVar[int] = 5
