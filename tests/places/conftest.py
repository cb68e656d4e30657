"""`reverse_geocode` lets CSV fields be of any length, for the whole process, when it is imported; other tests care."""

from __future__ import annotations

import contextlib
import csv

LIMIT = csv.field_size_limit()
with contextlib.suppress(ImportError):
    import reverse_geocode  # noqa: F401
csv.field_size_limit(LIMIT)
