"""How a new index takes the place of an old one, and what a kill in the middle of that leaves to be mended.

The new one is written to `.NAME.new`. When it is whole and on the disk, the old one moves to `.NAME.replaced`, the new
one to `NAME`, and the old one is removed. A kill between the two renames is the only moment without an index under
`NAME`; both are whole then, and `recover_index` completes the exchange.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Final

from geoinfer.bundle import is_bundle
from geoinfer.errors import OutputError
from geoinfer.integrity import sync_folder
from geoinfer.lock import OutputLock

if TYPE_CHECKING:
    from pathlib import Path

INDEX_FORMAT: Final = "geoinfer-index"


def new_folder(folder: Path) -> Path:
    """Where an index is written before it takes its place."""
    return folder.with_name(f".{folder.name}.new")


def replaced_folder(folder: Path) -> Path:
    """Where an old index is while a new one takes its place."""
    return folder.with_name(f".{folder.name}.replaced")


def index_lock(folder: Path) -> OutputLock:
    """The lock that whoever writes or changes an index holds."""
    return OutputLock(folder.with_name(f".{folder.name}.lock"), folder)


def check_no_bundle(folder: Path) -> None:
    """Raises OutputError for an index inside a bundle, whose manifest would no longer fit."""
    if is_bundle(folder.parent):
        raise OutputError(
            f"{folder}: belongs to the bundle {folder.parent}, which says what its files are, so it is not changed",
            hint="copy the index and change the copy; `python -m export bundle` makes a bundle of it",
        )


def put_in_place(folder: Path) -> None:
    """Moves what was written to `new_folder` to `folder`, in place of an index that may be there.

    Raises:
        OSError: it cannot be moved; the old index is where it was.
    """
    new, old = new_folder(folder), replaced_folder(folder)
    if os.path.lexists(folder):
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(folder):
            os.replace(old, folder)
        raise
    sync_folder(folder.parent)
    _remove(old)


def is_index(folder: Path) -> bool:
    """Whether a folder is an index, of any version, damaged perhaps: a bundle, say, has a manifest too."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == INDEX_FORMAT


def recover_index(folder: Path) -> None:
    """Mends what a kill during an exchange left; without such a thing it does nothing.

    Only for one process at a time, which holds `index_lock`.

    Args:
        folder: the index.

    Raises:
        OSError: it cannot be mended, for want of permission, say.
    """
    new, old = new_folder(folder), replaced_folder(folder)
    if not is_index(old):
        return
    if not os.path.lexists(folder):
        # The old one was moved away when the new one was whole: its manifest is written last.
        os.replace(new if is_index(new) else old, folder)
        sync_folder(folder.parent)
    _remove(old)


def recover_unattended(folder: Path) -> bool:
    """`recover_index`, for one who only reads; returns whether the folder is there now.

    Nothing is touched while another process writes the index, or where nothing may be changed.
    """
    with contextlib.suppress(OSError, ValueError):  # the second of a name with a NUL byte, or none at all
        if is_index(replaced_folder(folder)):
            with index_lock(folder):
                recover_index(folder)
    return os.path.isdir(folder)


def _remove(folder: Path) -> None:
    """Removes an index, its manifest last, so that what a kill leaves is still known for one."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name != "manifest.json":
                path = folder / name
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else os.unlink(path)
    shutil.rmtree(folder, ignore_errors=True)
