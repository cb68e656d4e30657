"""A model of mean colours and its index, opened as a benchmark opens them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from geoinfer.benchmark.setup import Setup
from tests.cli.conftest import tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from geoinfer.benchmark.setup import Opened
    from tests.cli.conftest import Tiny

__all__ = ["opened", "setup", "tiny"]


@pytest.fixture
def setup(tiny: Tiny) -> Setup:
    return Setup(engine=str(tiny.model), index=str(tiny.index), device="cpu", workers=2)


@pytest.fixture
def opened(setup: Setup) -> Iterator[Opened]:
    with setup.open() as found:
        yield found


@pytest.fixture
def photos(tiny: Tiny) -> list[bytes]:
    """Paths of four photos that can be located."""
    return sorted(bytes(path) for path in tiny.photos.iterdir())


@pytest.fixture
def broken(tmp_path: Path) -> bytes:
    """A file that cannot be decoded."""
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 and nothing else")
    return bytes(path)
