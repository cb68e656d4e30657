from __future__ import annotations

import csv
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from geoinfer.batch.rows import ok_row
from geoinfer.batch.writers import write_rows
from geoinfer.errors import InputError, LabelsError
from geoinfer.evaluate.truth import read_truth

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_osv5m(tmp_path: Path) -> None:
    header = "id,latitude,longitude,country,sequence,region,sub-region,city,unique_country,quadtree_10_1000,creator_id"
    text = f"{header}\n0071,-22.5,17.1,NA,s1,Khomas,West,Windhoek,NA,5,77\n1e5,48.8,2.3,FR,s2,IDF,,Paris,FR,9,\n"
    truth = read_truth(write(tmp_path, text), columns=["quadtree_10_1000", "creator-id"])
    assert (truth.layout, truth.ids, len(truth)) == ("OSV-5M", ["0071", "1e5"], 2)
    assert truth.coordinates.tolist() == [[-22.5, 17.1], [48.8, 2.3]]
    assert truth.coordinates.dtype == np.float64
    assert truth.countries == ["NA", "FR"]
    assert (truth.regions, truth.sub_regions, truth.cities) == (["Khomas", "IDF"], ["West", ""], ["Windhoek", "Paris"])
    assert truth.sequences == ["s1", "s2"]
    assert truth.columns == {"quadtree_10_1000": ["5", "9"], "creator-id": ["77", ""]}
    assert truth.paths == [os.fsencode(tmp_path / "0071"), os.fsencode(tmp_path / "1e5")]
    assert (truth.unusable, truth.warnings) == ([], [])


@pytest.mark.parametrize(
    ("text", "layout", "ids"),
    [
        ("IMG_ID,AUTHOR,LAT,LON\n1_a.jpg,x,1,2\n", "Im2GPS", ["1_a.jpg"]),
        ("IMG_ID,AUTHOR,LAT,LON,S3_Label,Prob_indoor\n1_a.jpg,x,1,2,1,.5\n", "Im2GPS", ["1_a.jpg"]),
        ("IMG_FILE,LAT,LON\n1.jpg,1,2\n", "GeoCLIP", ["1.jpg"]),
        ("lng;lat;name\n2;1;a\n", "CSV", ["a"]),
        ("SourceFile\tGPSLatitude\tGPSLongitude\na/b.jpg\t1\t2\n", "CSV", ["a/b.jpg"]),
        ("id,pred_lat,pred_lon,true_lat,true_lon\na,5,6,1,2\n", "CSV", ["a"]),
    ],
)  # fmt: skip
def test_layouts(tmp_path: Path, text: str, layout: str, ids: list[str]) -> None:
    truth = read_truth(write(tmp_path, text))
    assert (truth.layout, truth.ids, truth.coordinates.tolist()) == (layout, ids, [[1.0, 2.0]])


def test_other_names_of_a_photo(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, "id,path,lat,lon\n17,a/b.jpg,1,2\n"))
    assert (truth.ids, truth.other_names) == (["a/b.jpg"], {"id": ["17"]})


def test_photos_are_looked_for_only_where_they_are_needed(tmp_path: Path) -> None:
    make(tmp_path / "images", "00/1.jpg", "01/2.jpg", "02/2.jpg", "4.jpg")
    labels = write(tmp_path, "id,lat,lon\n1,1,2\n2,3,4\n3,5,6\n")
    assert read_truth(labels).paths[0] == os.fsencode(tmp_path / "1")
    truth = read_truth(labels, tmp_path / "images")
    assert truth.paths[0] == os.fsencode(tmp_path / "images/00/1.jpg")
    assert truth.ids == ["1", "2", "3"]  # without need of the photos it does not matter which of the two it is
    truth = read_truth(labels, tmp_path / "images", need_photos=True)
    assert truth.ids == ["1", "3"]
    ((name, line, reason),) = truth.unusable
    assert (name, line) == ("2", 3)
    assert "more than one file below" in reason
    with pytest.raises(InputError, match=r"none of its 1 photos is below .*; the first was looked for as .*/9\.jpg"):
        read_truth(write(tmp_path, "id,lat,lon\n9.jpg,1,2\n"), tmp_path / "images", need_photos=True)


def test_rows_that_are_no_truth_are_listed(tmp_path: Path) -> None:
    rows = "".join(f"{number}.jpg,{number % 80},{number}\n" for number in range(1, 180))
    text = f"path,lat,lon,location_type\n{rows}x.jpg,,\ny.jpg,95,4\n,1,2\nz.jpg,1,2,estimated\nw.jpg,inf,2\n"
    truth = read_truth(write(tmp_path, text))
    assert len(truth) == 179
    assert [(name, line) for name, line, _ in truth.unusable] == [
        ("x.jpg", 181), ("y.jpg", 182), ("", 183), ("z.jpg", 184), ("w.jpg", 185)
    ]  # fmt: skip
    assert "'95', '4'" in truth.unusable[1][2]
    assert "names no photo" in truth.unusable[2][2]
    assert "estimate" in truth.unusable[3][2]
    beyond, left_out = truth.warnings
    assert "latitude beyond 90 in 1 row" in beyond
    assert "5 of 184 rows are no truth and are left out of everything, the first 'x.jpg' in line 181" in left_out


def test_swapped_columns(tmp_path: Path) -> None:
    rows = "".join(f"{at},{-170 + at / 10},{at / 100}\n" for at in range(3400))
    with pytest.raises(LabelsError) as caught:
        read_truth(write(tmp_path, f"id,lat,lon\n{rows}"))
    beyond = sum(abs(-170 + at / 10) > 90 for at in range(3400))
    assert str(caught.value).endswith(f"latitude beyond 90 in {beyond} rows; are the columns swapped?")


def test_columns_swapped_within_europe_are_warned_of(tmp_path: Path, shared_photos: Path) -> None:
    with (shared_photos / "photos.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if abs(float(row["longitude"])) < 80]
    text = "path,longitude,latitude\n" + "".join(
        f"{row['path']},{row['latitude']},{row['longitude']}\n" for row in rows
    )
    (words,) = read_truth(write(tmp_path, text)).warnings
    assert "'latitude' and 'longitude' may be swapped" in words


def test_labels_that_may_be_radians(tmp_path: Path) -> None:
    rows = "".join(f"{n},{0.3 + n / 10},{n / 2 - 1}\n" for n in range(5))
    assert any("these may be radians" in text for text in read_truth(write(tmp_path, "id,lat,lon\n" + rows)).warnings)


def test_longitudes_from_0_to_360(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, "id,lat,lon\na,1,2\nb,3,350\nc,4,180\n"))
    assert truth.coordinates.tolist() == [[1, 2], [3, -10], [4, 180]]
    assert "run from 0 to 360" in truth.warnings[0]


def test_duplicates(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, "path,lat,lon\na.jpg,1,2\nb.jpg,3,4\n./a.jpg,1.0,2.0\nb.jpg,3,4\n"))
    assert (truth.ids, truth.duplicates) == (["a.jpg", "b.jpg"], 2)
    assert "2 rows repeat an earlier one" in truth.warnings[0]
    with pytest.raises(LabelsError, match=r"1 photo has two different places: 'a\.jpg' in lines 2 and 4"):
        read_truth(write(tmp_path, "path,lat,lon\na.jpg,1,2\nb.jpg,3,4\na.jpg,1,2.1\n"))


def test_predictions_are_no_labels(tmp_path: Path) -> None:
    ok = ok_row(b"a.jpg", latitude=1, longitude=2, radius_km=3, score=0.4, top1_similarity=0.5)
    write_rows(tmp_path / "out.csv", [ok])
    with pytest.raises(LabelsError, match="themselves predictions, not labels") as caught:
        read_truth(tmp_path / "out.csv")
    assert "--predictions" in caught.value.hint
    for text in ("id,pred_lat,pred_lon\na,1,2\n", "id,lat,lon,location_type\na,1,2,estimated\n"):
        with pytest.raises(LabelsError, match=r"no column for the latitude|themselves predictions"):
            read_truth(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no header"),
        ("path,lat,lon\n", "names no photos"),
        ("a.jpg,1,2\n", "no column for the photo"),
        ("path,lat\na.jpg,1\n", "no column for the longitude"),
        (
            "path,lat,lon\na.jpg,x,2\nb.jpg,,\n",
            r"not one of its 2 rows is a true place; the first, 'a\.jpg' \(line 2\)",
        ),
        ("path,lat,lon\na.jpg,nan,2\n", "not one of its 1 rows"),
        (b"path,lat,lon\nb\xe9,1,2\n", "UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)), "UTF-8|no column|not a CSV"),
        ('path,lat,lon\n"a.jpg,1,2\n' + "b.jpg,1,2\n" * 30_000, "not a CSV"),
    ],
)
def test_bad_labels(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(LabelsError, match=message) as caught:
        read_truth(write(tmp_path, text))
    assert "labels.csv" in str(caught.value)


def test_missing_things(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        read_truth(tmp_path / "no.csv")
    labels = write(tmp_path, "path,lat,lon\na.jpg,1,2\n")
    with pytest.raises(InputError, match="no such folder"):
        read_truth(labels, tmp_path / "nowhere")
    with pytest.raises(LabelsError, match="no column 'season'"):
        read_truth(labels, columns=["season"])


def test_folder_of_photos_with_gps(tmp_path: Path, shared_exif: Path, shared_formats: Path) -> None:
    for name in ("DSCN0010.jpg", "berlin-01.jpg"):
        (tmp_path / "photos/sub").mkdir(parents=True, exist_ok=True)
        shutil.copy(shared_exif / name, tmp_path / "photos/sub" / name)
    shutil.copy(shared_formats / "noexif.jpg", tmp_path / "photos/noexif.jpg")
    (tmp_path / "photos/broken.jpg").write_bytes(b"\xff\xd8")
    truth = read_truth(tmp_path / "photos", need_photos=True)
    assert (truth.layout, truth.ids) == ("EXIF", ["sub/DSCN0010.jpg", "sub/berlin-01.jpg"])
    assert truth.paths == [os.fsencode(tmp_path / "photos" / name) for name in truth.ids]
    # As the camera wrote it: 43° 28' 2.814" N, 11° 53' 6.4559" E.
    assert np.allclose(truth.coordinates[0], (43 + 28 / 60 + 2.814 / 3600, 11 + 53 / 60 + 6.4559 / 3600), atol=1e-6)
    assert [name for name, _, _ in truth.unusable] == ["broken.jpg", "noexif.jpg"]
    assert "2 of 4 rows are no truth" in truth.warnings[0]


def test_folder_without_gps(tmp_path: Path, shared_formats: Path) -> None:
    with pytest.raises(LabelsError, match="names no photos"):
        read_truth(tmp_path)
    shutil.copy(shared_formats / "noexif.jpg", tmp_path / "noexif.jpg")
    with pytest.raises(
        LabelsError, match=r"not one of its 1 rows is a true place; the first, 'noexif\.jpg': .* no position"
    ):
        read_truth(tmp_path)
    write(tmp_path, "path,lat,lon\nnoexif.jpg,1,2\n")
    with pytest.raises(LabelsError, match="not one of its 1 rows") as caught:
        read_truth(tmp_path)
    assert "labels.csv: name that" in caught.value.hint
    with pytest.raises(InputError, match="--images is for a CSV"):
        read_truth(tmp_path, tmp_path)
    with pytest.raises(LabelsError, match="EXIF has no column"):
        read_truth(tmp_path, columns=["season"])


def test_shared_photos(shared_photos: Path) -> None:
    truth = read_truth(shared_photos / "photos.csv", need_photos=True)
    assert (len(truth), truth.warnings, truth.unusable) == (345, [], [])
    assert truth.countries[0] == "GH"
    assert all(os.path.isfile(path) for path in truth.paths)


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.parquet", "LABELS.GEOJSON"])
def test_labels_are_a_csv(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"{}")
    with pytest.raises(LabelsError, match="read from a CSV") as caught:
        read_truth(path)
    assert name in str(caught.value)
    assert "CSV" in caught.value.hint
