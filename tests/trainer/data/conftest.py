"""A little OpenStreetView-5M: real photos under its names, in its numbered folders or archives."""

from __future__ import annotations

import csv
import shutil
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COLUMNS = [
    "",
    "id",
    "country",
    "sequence",
    "unique_country",
    "longitude",
    "captured_at",
    "latitude",
    "quadtree_10_5000",
]


@dataclass
class Osv:
    """The tree, and id to (photo, latitude, longitude, country, sequence) for both of its tables."""

    root: Path
    train: dict[str, tuple[Path, float, float, str, str]]
    test: dict[str, tuple[Path, float, float, str, str]]


@pytest.fixture
def make_osv(tmp_path: Path, example_photos: Path) -> Callable[..., Osv]:
    photos = sorted(example_photos.rglob("*.jpg"))

    def make(*, zipped: bool = False, train: int = 60, test: int = 20) -> Osv:
        root = tmp_path / "osv5m"
        tables: dict[str, dict[str, tuple[Path, float, float, str, str]]] = {}
        for table, first, count in (("train", 0, train), ("test", 5000, test)):
            rows = {}
            for i in range(count):
                latitude, longitude = 45.0 + (first + 7 * i) % 50 / 10, 2.0 + (first + 3 * i) % 70 / 10
                name = f"{(first + i) * 7919:09d}"
                country = ("NA", "FR", "DE")[i % 3]
                rows[name] = (photos[i % len(photos)], latitude, longitude, country, f"{table}-drive-{i // 4}")
                folder = root / "images" / table / f"{i % 3:02d}"
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(photos[i % len(photos)], folder / f"{name}.jpg")
            if count:
                with (root / f"{table}.csv").open("w", newline="") as file:
                    writer = csv.writer(file)
                    writer.writerow(COLUMNS)
                    for i, (name, (_, lat, lon, country, drive)) in enumerate(rows.items()):
                        writer.writerow([i, name, country, drive, country, repr(lon), 1_600_000_000_000, repr(lat), 17])
            tables[table] = rows
        if zipped:
            for folder in sorted(root.glob("images/*/*")):
                with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
                    for photo in sorted(folder.iterdir()):
                        archive.write(photo, f"{folder.name}/{photo.name}")
                shutil.rmtree(folder)
        return Osv(root, tables["train"], tables["test"])

    return make
