"""Fixtures that every test folder uses."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).parents[1]
SHARED = CHECKOUT.parent / "shared" / "data"


_FIELD_LIMIT = csv.field_size_limit()


@pytest.fixture(autouse=True)
def same_csv_limit() -> None:
    """`reverse_geocode` lets CSV fields be of any length, for the whole process, when it is imported."""
    csv.field_size_limit(_FIELD_LIMIT)


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """The command takes over Ctrl-C and SIGTERM; where it runs in this process, they are given back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the caches of all tests."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def own_cache(caches: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """What is kept from run to run lies in a folder of the test's own, never the user's; made when it is needed."""
    folder = caches / hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    before = os.environ.get("GEOINFER_CACHE")
    os.environ["GEOINFER_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["GEOINFER_CACHE"]
    else:
        os.environ["GEOINFER_CACHE"] = before


def shared_data(name: str) -> Path:
    """A folder of the shared data; without it a test is skipped, and fails where CI promises that it is there."""
    folder = SHARED / name
    if not folder.is_dir():
        reason = f"../shared/data/{name} is not there"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture
def shared_photos() -> Path:
    """345 real photos with `photos.csv`."""
    return shared_data("photos")


@pytest.fixture
def shared_exif() -> Path:
    """Originals straight from cameras, with GPS in their EXIF."""
    return shared_data("exif")


@pytest.fixture
def shared_formats() -> Path:
    """HEIC, AVIF, TIFF, PNG, JPEG 2000, all eight orientations, broken files."""
    return shared_data("formats")


@pytest.fixture
def example_photos() -> Path:
    """Ten real photos that ship with the checkout."""
    return CHECKOUT / "examples" / "photos"
