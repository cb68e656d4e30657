"""The time until a command begins its work, in which nothing becomes garbage.

Modules and models are made to stay. To look through all of them for garbage, again and again as they become more, is an
eighth of the time that it takes to locate one photo.
"""

from __future__ import annotations

import gc


def starting() -> None:
    """From here on nobody looks for garbage."""
    gc.disable()


def started() -> None:
    """From here on it is looked for as usual, but not among what is there by now."""
    gc.freeze()
    gc.enable()
