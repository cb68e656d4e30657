from __future__ import annotations

import csv
import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import InputError, LabelsError, OutputError, UsageError
from geoinfer.geodesy import haversine_km
from trainer.data.examples import open_examples, read_manifest
from trainer.data.prepare import prepare
from trainer.data.report import describe_cells, measure_leak, nearest_km

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

coordinates = st.lists(
    st.tuples(
        st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 0.0])),
        st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, 180.0, 179.9999])),
    ),
    min_size=1,
    max_size=30,
)


def labels(folder: Path, text: str, *photos: str) -> Path:
    for name in photos:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "labels.csv").write_text(text)
    return folder / "labels.csv"


def dropped(out: Path) -> list[tuple[str, str, str]]:
    with (out / "dropped.csv").open(newline="", encoding="utf-8") as file:
        return [(row["line"], row["id"], row["code"]) for row in csv.DictReader(file)]


def test_the_shared_photos(shared_photos: Path, tmp_path: Path) -> None:
    report = prepare(shared_photos, tmp_path / "set", split="geocell", split_level=4, test=0.1)
    examples = open_examples(tmp_path / "set")
    assert (report.read, report.usable, report.dropped, len(examples)) == (345, 345, (), 345)
    assert np.array_equal(examples.splits, report.examples.splits)
    cells = [set(examples.of_split(name).cells(4).tolist()) for name in ("train", "validation", "test")]
    assert sum(map(len, cells)) == len(set.union(*cells))
    assert dropped(tmp_path / "set") == []
    manifest = read_manifest(tmp_path / "set")
    assert manifest["split"] == {"policy": "geocell", "level": 4, "validation": 0.2, "test": 0.1, "seed": 0}
    with (shared_photos / "photos.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert examples.coordinates.tolist() == [[float(row["latitude"]), float(row["longitude"])] for row in rows]
    assert list(examples.countries) == [row["country"] for row in rows]
    assert examples.read_bytes(7) == (shared_photos / rows[7]["path"]).read_bytes()
    text = "\n".join(report.lines())
    assert "345 of 345" in text
    assert "by geocell, S2 level 4" in text


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("split", ["random", "sequence", "geocell"])
def test_osv5m(make_osv: Callable[..., object], tmp_path: Path, zipped: bool, split: str) -> None:
    osv = make_osv(zipped=zipped)
    prepare(osv.root, tmp_path / "set", split=split, split_level=8)
    examples = open_examples(tmp_path / "set")
    assert list(examples.ids) == [*osv.train, *osv.test]
    assert list(examples.of_split("test").ids) == [*osv.test]
    assert 6 <= len(examples.of_split("validation")) <= 18
    for row, name in enumerate(examples.ids):
        assert examples.read_bytes(row) == {**osv.train, **osv.test}[name][0].read_bytes()
    if split == "sequence":
        drives = {name: set(examples.of_split(name).sequences.tolist()) for name in ("train", "validation")}
        assert drives["train"].isdisjoint(drives["validation"])
    # Where the photos lie makes no difference to what becomes of them.
    assert list(examples.subset(10, 5).ids) == list(open_examples(tmp_path / "set").subset(10, 5).ids)


def test_osv5m_subset_and_its_own_test(make_osv: Callable[..., object], tmp_path: Path) -> None:
    osv = make_osv()
    prepare(osv.root, tmp_path / "few", subset=10)
    prepare(osv.root, tmp_path / "more", subset=25)
    few, more = open_examples(tmp_path / "few"), open_examples(tmp_path / "more")
    assert (len(few), len(few.of_split("test"))) == (20, 10)
    assert (len(more), len(more.of_split("test"))) == (45, 20)
    assert set(few.ids) <= set(more.ids)
    with pytest.raises(UsageError, match="test photos of its own"):
        prepare(osv.root, tmp_path / "none", test=0.1)
    assert not (tmp_path / "none").exists()


def test_every_reason_is_counted_and_listed(tmp_path: Path) -> None:
    text = (
        "id,latitude,longitude,country\n"
        "a,1,2,NA\n"
        "gone,1,2,DE\n"
        "a,1,2,NA\n"
        "a,1.5,2,NA\n"
        "b,0,0,\n"
        "b,0.0,-0.0,\n"
        "c,151,-33,AU\n"
        "d,95,200,\n"
        "e,nan,3,\n"
        "f,,,\n"
        ",1,2,\n"
        "g,0,5,NA\n"
    )
    source = labels(tmp_path, text, *(f"p/{name}.jpg" for name in "abcdefg"))
    report = prepare(source, tmp_path / "set", images=tmp_path / "p", validation=0.5)
    assert dropped(tmp_path / "set") == [
        ("3", "gone", "missing"),
        ("6", "b", "zero_coordinates"),
        ("7", "b", "zero_coordinates"),
        ("8", "c", "bad_coordinates"),
        ("9", "d", "bad_coordinates"),
        ("10", "e", "bad_coordinates"),
        ("11", "f", "bad_coordinates"),
        ("12", "", "no_name"),
        ("4", "a", "duplicate_id"),
        ("5", "a", "duplicate_id"),
    ]
    assert {reason.code: reason.count for reason in report.dropped} == {
        "bad_coordinates": 4, "zero_coordinates": 2, "duplicate_id": 2, "missing": 1, "no_name": 1
    }  # fmt: skip
    messages = {row["line"]: row["message"] for row in csv.DictReader((tmp_path / "set" / "dropped.csv").open())}
    assert "same coordinates" in messages["4"]
    assert "other coordinates, 56 km away" in messages["5"]  # half a degree of latitude
    assert "line 2" in messages["5"]
    assert "other way round" in messages["8"]
    assert "other way round" not in messages["9"]
    examples = open_examples(tmp_path / "set")
    assert (list(examples.ids), list(examples.countries)) == (["a", "g"], ["NA", "NA"])
    text = "\n".join(report.lines())
    assert "2 of 12 can be used" in text
    assert "line 8, c" in text
    assert "dropped.csv" in text


def test_unchecked_files_are_taken_on_trust(tmp_path: Path) -> None:
    source = labels(tmp_path, "path,lat,lon\nx/a.jpg,1,2\nx/b.jpg,3,4\n")
    assert prepare(source, tmp_path / "set", check_files=False).usable == 2
    with pytest.raises(InputError, match="2 missing") as caught:
        prepare(source, tmp_path / "set")
    assert "--images" in caught.value.hint


def test_corrupt_photos_are_dropped_when_asked(tmp_path: Path, example_photos: Path) -> None:
    photo = sorted(example_photos.rglob("*.jpg"))[0].read_bytes()
    (tmp_path / "good.jpg").write_bytes(photo)
    (tmp_path / "half.jpg").write_bytes(photo[: len(photo) // 2])
    (tmp_path / "text.jpg").write_bytes(b"hello")
    source = labels(tmp_path, "id,lat,lon\nhalf,1,2\ngood,3,4\ntext,5,6\n")
    assert prepare(source, tmp_path / "set").usable == 3
    told = []
    report = prepare(source, tmp_path / "set", verify=True, progress=lambda *what: told.append(what))
    assert list(report.examples.ids) == ["good"]
    assert dropped(tmp_path / "set") == [("2", "half", "truncated"), ("4", "text", "not_an_image")]
    assert ("photos decoded", 3) in told


def test_photos_with_gps(shared_exif: Path, tmp_path: Path) -> None:
    report = prepare(shared_exif, tmp_path / "set")
    assert report.usable + sum(reason.count for reason in report.dropped) == report.read
    assert report.usable >= 10
    examples = open_examples(tmp_path / "set")
    assert examples.read_bytes(0) == (shared_exif / examples.ids[0]).read_bytes()


def places(rows: list[dict[str, str]], order: tuple[str, str], few: int | None = None) -> str:
    chosen = [(i, row) for i, row in enumerate(rows)][:few]
    return "id,lat,lon\n" + "".join(f"{i},{row[order[0]]},{row[order[1]]}\n" for i, row in chosen)


def test_swapped_columns_stop_everything(tmp_path: Path, shared_photos: Path) -> None:
    with (shared_photos / "photos.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (tmp_path / "p").mkdir()
    right, wrong = ("latitude", "longitude"), ("longitude", "latitude")
    europe = [row for row in rows if 40 < float(row["latitude"]) < 60 and -5 < float(row["longitude"]) < 30]
    america = [row for row in rows if float(row["longitude"]) < -60]
    assert len(europe) > 50
    for some in (rows, europe, america * 3):
        with pytest.raises(LabelsError, match="'lat' and 'lon' look swapped") as caught:
            prepare(labels(tmp_path, places(some, wrong)), tmp_path / "set")
        assert "exchange 'lat' and 'lon'" in caught.value.hint
        assert not (tmp_path / "set").exists()
        # As they are, and where the check is switched off, they only lack their files.
        for order, check in ((right, True), (wrong, False)):
            with pytest.raises(InputError, match="not one photo"):
                prepare(labels(tmp_path, places(some, order)), tmp_path / "set", check_swapped=check)
    # Too few rows, and a few swapped ones among many, say nothing of the columns.
    with pytest.raises(InputError, match="not one photo"):
        prepare(labels(tmp_path, places(rows, wrong, 49)), tmp_path / "set")
    mixed = places(rows, right) + places(rows, wrong, 30).split("\n", 1)[1]
    with pytest.raises(InputError, match="not one photo"):
        prepare(labels(tmp_path, mixed), tmp_path / "set")


def test_islands_and_ships_are_not_swapped(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for latitude, longitude in ((4.2, 73.5), (-17.6, -149.5), (0.5, 0.5), (-20.2, 57.5), (60.0, -30.0)):
        text = "".join(
            f"{i},{latitude + a},{longitude + b}\n" for i, (a, b) in enumerate(generator.normal(size=(80, 2)))
        )
        with pytest.raises(InputError, match="not one photo"):
            prepare(labels(tmp_path, "id,lat,lon\n" + text), tmp_path / "set")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "country"}, "random, sequence, geocell"),
        ({"validation": 1.0}, "validation"),
        ({"validation": 0.6, "test": 0.4}, "nothing to train on"),
        ({"split_level": 31}, "31"),
        ({"seed": -1}, "negative"),
        ({"subset": -5}, "negative"),
        ({"split": "sequence"}, "sequence"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, arguments: dict[str, object], words: str) -> None:
    source = labels(tmp_path, "id,lat,lon\na,1,2\n", "a.jpg")
    with pytest.raises(UsageError, match=words):
        prepare(source, tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_an_output_that_holds_something_else_is_refused_at_once(tmp_path: Path) -> None:
    source = labels(tmp_path, "id,lat,lon\na,1,2\n", "a.jpg")
    with pytest.raises(OutputError, match=r"holds a\.jpg"):
        prepare(source, tmp_path)


def test_one_photo(tmp_path: Path) -> None:
    report = prepare(labels(tmp_path, "id,lat,lon\na,1,2\n", "a.jpg"), tmp_path / "set")
    assert report.examples.splits.tolist() == [0]
    assert report.leaks == ()
    assert "nothing to validate on" in "\n".join(report.lines())


def test_a_sequence_split_has_no_near_neighbours_that_a_random_one_has(tmp_path: Path) -> None:
    text = "id,lat,lon,sequence\n"
    for drive in range(40):
        for frame in range(10):
            text += f"{drive}-{frame},{10 + drive},{20 + frame / 1000},d{drive}\n"
    source = labels(tmp_path, text, *(f"{drive}-{frame}.jpg" for drive in range(40) for frame in range(10)))
    (random,) = prepare(source, tmp_path / "a").leaks
    (apart,) = prepare(source, tmp_path / "b", split="sequence").leaks
    assert random.near == 1.0
    assert random.median_km < 0.5
    assert apart.near == 0.0
    assert apart.median_km == pytest.approx(111.2, abs=1)


@settings(deadline=None)
@given(queries=coordinates, references=coordinates)
def test_nearest_distance_is_that_of_a_plain_loop(
    queries: list[tuple[float, float]], references: list[tuple[float, float]]
) -> None:
    found = nearest_km(np.array(queries), np.array(references))
    for query, distance in zip(queries, found.tolist(), strict=True):
        # The haversine formula is good for ten centimetres near antipodes.
        assert distance == pytest.approx(min(float(haversine_km(query, other)) for other in references), abs=1e-4)


def test_metres_are_not_lost_in_rounding() -> None:
    generator = np.random.default_rng(0)
    references = np.array([48.0, 11.0]) + generator.normal(size=(3000, 2)) * 0.01
    queries = references[:200] + 2e-5
    expected = [float(haversine_km(query, references).min()) for query in queries]
    assert nearest_km(queries, references) == pytest.approx(expected, abs=1e-6)


def test_cells_are_counted_as_a_loop_counts_them(shared_photos: Path, tmp_path: Path) -> None:
    examples = prepare(shared_photos, tmp_path / "set").examples
    for counted in describe_cells(examples):
        counts = Counter(examples.cells(counted.level).tolist())
        assert counted.cells == len(counts)
        assert counted.median_photos == np.median(list(counts.values()))
        assert math.isclose(counted.accompanied, sum(c for c in counts.values() if c > 1) / len(examples))
    assert all(counted.cells == 0 for counted in describe_cells(examples.take([])))
    assert measure_leak(examples, "test") is None
