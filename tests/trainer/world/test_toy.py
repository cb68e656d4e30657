"""The toy world: the same photos every time, places that can be told apart, and a layout the runtime reads."""

from __future__ import annotations

import csv
import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoinfer.errors import OutputError, UsageError
from geoinfer.geodesy import destination
from geoinfer.labels import open_labels, read_labels
from trainer.world import is_land
from trainer.world.fields import drives_left, look_at, waves
from trainer.world.render import render
from trainer.world.toy import make_toy_world, sample_drives

PARIS, LONDON = (48.86, 2.35), (51.5, -0.13)


def plain_km(a, b):
    """Great-circle distance by the spherical law of cosines."""
    (lat0, lon0), (lat1, lon1) = (map(math.radians, pair) for pair in (a, b))
    cosine = math.sin(lat0) * math.sin(lat1) + math.cos(lat0) * math.cos(lat1) * math.cos(lon1 - lon0)
    return 6371.0 * math.acos(max(-1.0, min(1.0, cosine)))


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def places():
    return sample_drives(80, seed=3, photos_per_scene=1)[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "world"
    calls = []
    make_toy_world(folder, count=600, size=32, seed=4, workers=1, progress=lambda *call: calls.append(call))
    return folder, calls


def test_a_photo_alone_is_the_photo_in_the_batch(places):
    seeds, scenes = np.arange(80) * 7, np.arange(80) // 4
    together = render(places, seeds, scene_seeds=scenes, size=48)
    assert together.shape == (80, 48, 48, 3)
    assert together.dtype == np.uint8
    for i in (0, 1, 31, 32, 63, 79):
        alone = render(places[i : i + 1], seeds[i : i + 1], scene_seeds=scenes[i : i + 1], size=48)
        assert (alone[0] == together[i]).all()
    backwards = render(places[::-1], seeds[::-1], scene_seeds=scenes[::-1], size=48)
    assert (backwards[::-1] == together).all()


def test_another_world_looks_different_with_the_same_seeds(places):
    here, there = (render(places, np.arange(80), world_seed=seed).astype(int) for seed in (0, 1))
    assert np.abs(here - there).mean() > 8.0


def test_look_follows_from_the_place_and_smoothly(places):
    seeds = np.arange(80)
    here = render(places, seeds).astype(int)

    def change(km):
        there = render(destination(places, np.full(80, 30.0), np.full(80, km)), seeds)
        return np.abs(here - there).mean()

    # Mean difference in levels of 256; measured 0.06, 0.6, 11 and 20.
    assert change(1.0) < 0.2
    assert change(10.0) < 1.5
    assert change(500.0) > 6.0
    assert change(2000.0) > 12.0


def test_weather_and_camera_outweigh_the_place(places):
    seeds = np.arange(80)
    here = render(places, seeds).astype(int)
    far = render(destination(places, np.full(80, 30.0), np.full(80, 2000.0)), seeds)
    elsewhen = render(places, seeds + 1000)
    next_frame = render(places, seeds + 1000, scene_seeds=seeds)
    assert np.abs(here - elsewhen).mean() > 1.5 * np.abs(here - far).mean()
    # Frames of a drive are alike, and not the same.
    assert 5.0 < np.abs(here - next_frame).mean() < 0.6 * np.abs(here - elsewhen).mean()


def test_side_of_the_road():
    assert drives_left(np.array([LONDON, PARIS])).tolist() == [True, False]
    cities = {
        (53.35, -6.26): True,  # Dublin
        (35.68, 139.69): True,  # Tokyo
        (-33.87, 151.2): True,  # Sydney
        (-1.29, 36.82): True,  # Nairobi
        (28.6, 77.2): True,  # Delhi
        (13.75, 100.5): True,  # Bangkok
        (50.85, 4.35): False,  # Brussels
        (37.57, 126.98): False,  # Seoul
        (39.9, 116.4): False,  # Beijing
        (40.7, -74.0): False,  # New York
        (21.03, 105.85): False,  # Hanoi
        (9.0, 38.75): False,  # Addis Ababa
    }
    assert drives_left(np.array(list(cities))).tolist() == list(cities.values())

    # Colour of the verge shows in the lower corner beside the camera's own lane; the other one is grey asphalt.
    def colourful(city):
        pictures = render(np.tile(city, (200, 1)), np.arange(200)).astype(float)
        corner = pictures[:, 46:56, :, :].mean(axis=(0, 1))
        chroma = corner.max(axis=-1) - corner.min(axis=-1)
        return chroma[:12].mean() - chroma[-12:].mean()

    assert colourful(LONDON) > 3.0
    assert colourful(PARIS) < -3.0


@pytest.mark.parametrize("size", [16, 64, 97])
def test_any_place_and_size_renders(size):
    places = [[90, 0], [-90, 77], [0, 180], [0, -180], [66, -180], [90, 180], [-90, -180], [12, 0]]
    pictures = render(places, np.arange(8), size=size)
    assert pictures.shape == (8, size, size, 3)
    assert (pictures.std(axis=(1, 2, 3)) > 2.0).all()
    assert render(np.empty((0, 2)), np.empty(0, int), size=size).shape == (0, size, size, 3)


def test_the_antimeridian_is_no_border():
    latitude = np.linspace(-80, 80, 9)
    east, west = (render(np.column_stack([latitude, np.full(9, lon)]), np.arange(9)) for lon in (179.999, -179.999))
    assert np.abs(east.astype(int) - west).mean() < 0.2


def test_bad_coordinates_and_seeds():
    with pytest.raises(ValueError, match="coordinates row 0"):
        render([[95.0, 0.0]], [1])
    with pytest.raises(ValueError, match="1 coordinates, but seeds"):
        render([[5.0, 0.0]], [1, 2])
    with pytest.raises(ValueError, match="1 coordinates, but seeds"):
        render([[5.0, 0.0]], [1], scene_seeds=[1, 2])


def test_waves_have_the_variance_and_the_reach_that_they_promise():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4000, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    values = np.array([waves(vectors, f"field {i}", 0, (500.0, 1500.0)) for i in range(20)])
    assert values.mean() == pytest.approx(0.0, abs=0.05)
    assert values.var() == pytest.approx(1.0, abs=0.1)
    correlation = np.corrcoef(values)[np.triu_indices(20, 1)]
    assert np.abs(correlation).max() < 0.15


@settings(deadline=None, max_examples=60)
@given(st.floats(-90, 90), st.floats(-180, 180))
def test_looks_stay_within_their_ranges(latitude, longitude):
    look = look_at(np.array([[latitude, longitude]]), 0)
    for name in look.__dataclass_fields__:
        values = getattr(look, name)
        assert np.isfinite(values).all(), name
    for name in ("soil", "grass", "leaves", "roofs", "sea", "cover", "trees", "conifer", "palm", "snow", "coast"):
        values = getattr(look, name)
        assert values.min() >= 0.0, name
        assert values.max() <= 1.0, name
    assert look.conifer[0] + look.palm[0] <= 1.0 + 1e-9


def test_drives_are_short_on_land_and_everywhere():
    coordinates, ids = sample_drives(5000, seed=1)
    assert (sample_drives(700, seed=1)[0] == coordinates[:700]).all()
    assert coordinates.shape == (5000, 2)
    assert len(set(ids.tolist())) == 5000
    assert is_land(coordinates).all()
    assert coordinates[:, 0].min() > -60.0
    drives = {}
    for number, pair in zip(ids.tolist(), coordinates.tolist(), strict=True):
        drives.setdefault(number // 100, []).append(pair)
    assert 3.0 < 5000 / len(drives) < 4.5
    for frames in drives.values():
        for before, after in itertools.pairwise(frames):
            assert 0.4 < plain_km(before, after) < 4.1
        assert plain_km(frames[0], frames[-1]) < 30.0
    # Even by area: as much of the land outside Antarctica lies north of 30 N as the mask says.
    lattice = np.stack(np.meshgrid(np.arange(-59.75, 90, 0.5), np.arange(-179.75, 180, 0.5)), axis=-1).reshape(-1, 2)
    weight = np.cos(np.radians(lattice[:, 0])) * is_land(lattice)
    starts = np.array([frames[0] for frames in drives.values()])
    expected = weight[lattice[:, 0] > 30].sum() / weight.sum()
    assert (starts[:, 0] > 30).mean() == pytest.approx(expected, abs=0.05)


def test_layout_is_that_of_osv_5m(world):
    folder, calls = world
    labels = open_labels(folder / "train.csv", folder / "images")
    assert labels.layout == "OSV-5M"
    rows = list(read_labels(labels))
    assert len(rows) == 600
    assert all(row.problem is None for row in rows)
    assert len({row.sequence for row in rows}) > 100
    for row in rows[:50]:
        with Image.open(row.path) as image:
            assert image.format == "JPEG"
            assert image.size == (32, 32)
            assert image.mode == "RGB"
    assert {path.name for path in (folder / "images" / "train").iterdir()} == {"00"}
    assert [done for done, _ in calls] == [256, 512, 600]
    assert {total for _, total in calls} == {600}


def test_photos_are_those_of_their_rows(world):
    folder, _ = world
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    base = 4 << 32
    for row in rows[::100]:
        number = int(row["id"])
        place = [[float(row["latitude"]), float(row["longitude"])]]
        picture = render(place, [base + number], scene_seeds=[base + number // 100], size=32, world_seed=4)[0]
        with Image.open(folder / "images" / "train" / "00" / f"{number}.jpg") as image:
            difference = np.asarray(image, int) - picture
        assert row["sequence"] == f"toy-4-{number // 100}"
        assert 2011 < 1970 + int(row["captured_at"]) / 3.15576e10 < 2025
        # JPEG takes away noise and fine colour, but not the place of anything.
        assert np.abs(difference.mean(axis=(0, 1))).max() < 3.0
        assert np.abs(difference).mean() < 25.0


def test_namibia_is_na(tmp_path):
    coordinates, _ = sample_drives(3000, seed=2)
    inside = (np.abs(coordinates[:, 0] + 23) < 5) & (coordinates[:, 1] > 13) & (coordinates[:, 1] < 20)
    assert inside.any()
    make_toy_world(tmp_path / "toy", count=int(np.flatnonzero(inside)[0]) + 1, size=16, seed=2, workers=1)
    with (tmp_path / "toy" / "train.csv").open(encoding="utf-8", newline="") as file:
        *_, last = csv.DictReader(file)
    assert last["country"] == "NA"


def test_same_seed_same_files_whatever_the_workers(tmp_path):
    for name, seed, workers in (("one", 0, 1), ("two", 0, 2), ("other", 1, 1)):
        make_toy_world(tmp_path / name, count=300, size=16, seed=seed, workers=workers)
    one, two, other = (digests(tmp_path / name) for name in ("one", "two", "other"))
    assert len(one) == 301
    assert one == two
    assert not set(one.values()) & set(other.values())


def test_a_used_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty") as caught:
        make_toy_world(tmp_path, count=1)
    assert "new folder" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(OutputError, match="cannot be written"):
        make_toy_world(tmp_path / "mine.txt" / "below", count=1)


@pytest.mark.parametrize(
    "bad", [{"count": 0}, {"size": 8}, {"seed": -1}, {"photos_per_scene": 0}, {"photos_per_scene": 80}, {"workers": 0}]
)
def test_numbers_that_make_no_sense(tmp_path, bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        make_toy_world(tmp_path / "toy", **bad)
    assert not (tmp_path / "toy").exists()


def test_one_photo(tmp_path):
    make_toy_world(tmp_path / "toy", count=1, size=16)
    assert len(digests(tmp_path / "toy")) == 2
