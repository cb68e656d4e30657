"""What is half written, and how it is removed when a signal ends the process without an exception.

An exception would do where nobody swallows it. Libraries do: pyarrow, for one, while it imports pandas.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_undos: list[Callable[[], None]] = []


@contextlib.contextmanager
def undone_at_the_end(undo: Callable[[], None]) -> Iterator[None]:
    """Within the block, whoever ends the process at once calls `undo` first; after it, nobody does.

    Nothing is done on an exception: the block's own `finally` is for that.
    """
    _undos.append(undo)
    try:
        yield
    finally:
        _undos.remove(undo)


def undo_unfinished() -> None:
    """Calls them all, the last one first; one that fails keeps no other from being called."""
    for undo in reversed(_undos):
        with contextlib.suppress(Exception):
            undo()
