from __future__ import annotations

import csv
import io
import math
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import ImageError, InputError, LabelsError
from geoinfer.labels import Label, LabelsFile, count_rows, open_labels, other_columns, read_labels

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(folder: Path, text: str | bytes) -> list[Label]:
    return list(read_labels(open_labels(write(folder, text))))


def opened(folder: Path, header: str) -> LabelsFile:
    return open_labels(write(folder, header + "\n"))


def simple(labels: list[Label]) -> list[tuple[str, float, float]]:
    assert all(label.problem is None for label in labels)
    return [(label.id, label.latitude, label.longitude) for label in labels]


@pytest.mark.parametrize(
    ("header", "layout", "name"),
    [
        ("id,latitude,longitude,thumb_original_url,country,sequence,unique_country,quadtree_10_5000", "OSV-5M", "id"),
        ("IMG_ID,AUTHOR,LAT,LON,S3_Label,S16_Label,Prob_indoor", "Im2GPS", "IMG_ID"),
        ("IMG_ID,LAT,LON", "Im2GPS", "IMG_ID"),
        ("IMG_FILE,LAT,LON", "GeoCLIP", "IMG_FILE"),
        ("path,latitude,longitude,country,source,licence", "CSV", "path"),
        ("lon,lat,filename", "CSV", "filename"),
        (" Path , Latitude , LNG ", "CSV", " Path "),
        ("key,lat,long", "CSV", "key"),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_layouts(tmp_path: Path, header: str, layout: str, name: str, delimiter: str) -> None:
    labels = opened(tmp_path, header.replace(",", delimiter))
    assert (labels.layout, header.split(",")[labels.positions["name"]], labels.delimiter) == (layout, name, delimiter)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_delimiters_line_ends_and_bom(tmp_path: Path, delimiter: str, end: str, bom: bytes) -> None:
    rows = [["lat", "lon", "path"], ["1.5", "-2.5", "a.jpg"], ["-90", "180", "b.jpg"]]
    text = "".join(delimiter.join(row) + end for row in rows)
    assert simple(read(tmp_path, bom + text.encode())) == [("a.jpg", 1.5, -2.5), ("b.jpg", -90.0, 180.0)]


awkward = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name == name.strip()
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(awkward, st.floats(-90, 90), st.floats(-180, 180)), max_size=6),
    order=st.permutations(["path", "latitude", "longitude", "note"]),
)
def test_any_names_in_any_order_of_columns_survive(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float, float]], order: list[str]
) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(order)
    for name, latitude, longitude in rows:
        cells = {"path": name, "latitude": repr(latitude), "longitude": repr(longitude), "note": 'a,"b"\nc'}
        writer.writerow([cells[column] for column in order])
    folder = tmp_path_factory.mktemp("labels")
    assert simple(read(folder, buffer.getvalue())) == rows


def test_quotes_commas_and_newlines_in_names(tmp_path: Path) -> None:
    names = ['a,b.jpg', 'say "x".jpg', "two\nlines.jpg", "00\\7.jpg", "日本.jpg"]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    quoted = "".join('"' + name.replace('"', '""') + '",1,2\n' for name in names)
    labels = read(tmp_path, "path,lat,lon\n" + quoted)
    assert [label.id for label in labels] == names
    assert [label.path for label in labels] == [os.fsencode(tmp_path / name) for name in names]


def test_namibia_is_not_a_missing_value_and_ids_are_text(tmp_path: Path) -> None:
    text = "id,latitude,longitude,country,source\n007,-22.56,17.08,NA,NA\n1e5,1,2,NA,null\nNA,3,4,NA,nan\n"
    labels = read(tmp_path, text)
    assert [label.id for label in labels] == ["007", "1e5", "NA"]
    assert [label.source for label in labels] == ["NA", "null", "nan"]
    assert all(label.problem is None for label in labels)


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [
        ("", ""),
        ("abc", "2"),
        ("nan", "2"),
        ("1", "NaN"),
        ("inf", "2"),
        ("1", "-inf"),
        ("90.0001", "2"),
        ("-91", "2"),
        ("1", "180.5"),
        ("1", "-181"),
        ("151.2", "-33.8"),
        ("1e400", "2"),
        ('"48,85"', "2"),
        ("48°51'", "2"),
        ("NA", "NA"),
    ],
)
def test_bad_coordinates_cost_their_row_alone(tmp_path: Path, latitude: str, longitude: str) -> None:
    good, bad, after = read(tmp_path, f"path,lat,lon\na.jpg,1,2\nb.jpg,{latitude},{longitude}\nc.jpg,3,4\n")
    assert bad.problem is not None
    assert (bad.id, bad.problem.stage, bad.problem.code) == ("b.jpg", "labels", "bad_coordinates")
    assert math.isnan(bad.latitude)
    assert math.isnan(bad.longitude)
    assert latitude.strip('"') in str(bad.problem)
    assert simple([good, after]) == [("a.jpg", 1.0, 2.0), ("c.jpg", 3.0, 4.0)]


def test_short_long_and_empty_rows(tmp_path: Path) -> None:
    labels = read(
        tmp_path, "path,lat,lon,source\na.jpg\nb.jpg,1\n\nc.jpg,1,2\nd.jpg,1,2,s,extra,more\n,1,2\n   ,1,2,s\n"
    )
    codes = [label.problem and label.problem.code for label in labels]
    assert [label.id for label in labels] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "", ""]
    assert codes == ["bad_coordinates", "bad_coordinates", None, None, "no_name", "no_name"]


@pytest.mark.parametrize(
    ("header", "lacking", "sought"),
    [
        ("lat,lon", "photo", "img_id"),
        ("path,lon", "latitude", "lat"),
        ("path,lat", "longitude", "lng"),
        ("a.jpg,1.0,2.0", "photo", "path"),
        ("", "photo", "path"),
    ],
)
def test_missing_column_says_what_was_looked_for_and_what_is_there(
    tmp_path: Path, header: str, lacking: str, sought: str
) -> None:
    with pytest.raises(LabelsError) as caught:
        opened(tmp_path, header)
    message = str(caught.value)
    assert f"no column for the {lacking}" in message
    assert sought in message.split("looked for")[1]
    assert all(column in message for column in header.split(","))
    assert caught.value.exit_code == 2


def test_empty_file_and_header_only(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="no header"):
        open_labels(write(tmp_path, b""))
    assert read(tmp_path, "path,lat,lon\n") == []
    assert read(tmp_path, "path,lat,lon") == []


def test_what_is_not_utf8_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="UTF-8"):
        open_labels(write(tmp_path, "path,lat,lon,wo\xe9\n".encode("latin-1")))
    with pytest.raises(LabelsError, match="UTF-8"):
        open_labels(write(tmp_path, "path,lat,lon\n".encode("utf-16")))
    labels = open_labels(write(tmp_path, b"path,lat,lon\n" + b"a.jpg,1,2\n" * 2000 + b"caf\xe9.jpg,1,2\n"))
    with pytest.raises(LabelsError, match="UTF-8"):
        list(read_labels(labels))


def test_what_is_no_csv_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="not a CSV"):
        open_labels(write(tmp_path, b"x" * 400_000))
    labels = open_labels(write(tmp_path, 'path,lat,lon\n"a.jpg,1,2\n' + "b.jpg,1,2\n" * 30_000))
    with pytest.raises(LabelsError, match="not a CSV"):
        list(read_labels(labels))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        open_labels(tmp_path / "no.csv")
    with pytest.raises(InputError, match="cannot be read"):
        open_labels(tmp_path)
    path = write(tmp_path, "path,lat,lon\n")
    with pytest.raises(InputError, match="no such folder"):
        open_labels(path, tmp_path / "nowhere")
    with pytest.raises(InputError, match="no such folder"):
        open_labels(path, path)


def test_header_over_two_lines(tmp_path: Path) -> None:
    assert simple(read(tmp_path, '"the\nnote",path,lat,lon\nx,a.jpg,1,2\n')) == [("a.jpg", 1.0, 2.0)]


def test_column_without_a_name_is_not_the_source(tmp_path: Path) -> None:
    # As pandas writes a table: the row's number stands first, under no name.
    (label,) = read(tmp_path, ",path,lat,lon\n17,a.jpg,1,2\n")
    assert (label.source, label.attribution) == ("", "")


def test_first_of_two_columns_of_one_name_counts(tmp_path: Path) -> None:
    assert simple(read(tmp_path, "path,lat,lon,lat,LON\na.jpg,1,2,3,4\n")) == [("a.jpg", 1.0, 2.0)]


def test_full_word_counts_before_its_abbreviation(tmp_path: Path) -> None:
    assert simple(read(tmp_path, "lat,lon,latitude,longitude,id,path\n1,2,3,4,x,a.jpg\n")) == [("a.jpg", 3.0, 4.0)]


def test_source_and_attribution(tmp_path: Path) -> None:
    text = 'path,lat,lon,source,licence\na.jpg,1,2,here,"MIT, (c) X"\nb.jpg,1,2\n'
    assert [(label.source, label.attribution) for label in read(tmp_path, text)] == [("here", "MIT, (c) X"), ("", "")]


def test_a_photo_named_twice_is_two_rows(tmp_path: Path) -> None:
    labels = read(tmp_path, "path,lat,lon\na.jpg,1,2\na.jpg,3,4\n")
    assert simple(labels) == [("a.jpg", 1.0, 2.0), ("a.jpg", 3.0, 4.0)]
    assert labels[0].path == labels[1].path


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def locations(folder: Path, *names: str) -> list[tuple[str, str | None]]:
    """Each name's path relative to the folder, and its problem's code."""
    text = "path,lat,lon\n" + "".join(f"{name},1,2\n" for name in names)
    labels = list(read_labels(open_labels(write(folder, text), folder / "images")))
    return [
        (os.path.relpath(os.fsdecode(label.path), folder / "images"), label.problem and label.problem.code)
        for label in labels
    ]


def test_photos_in_numbered_folders_are_found_by_id(tmp_path: Path) -> None:
    make(tmp_path / "images", "00/0123.jpg", "01/456.JPEG", "03/readme.txt", "here.png")
    found = locations(tmp_path, "0123", "456", "0123.jpg", "here.png", "here", "123", "readme", "0123.png")
    paths = ["00/0123.jpg", "01/456.JPEG", "00/0123.jpg", "here.png", "here.png", "123", "readme", "00/0123.jpg"]
    assert found == [(path, None) for path in paths]


def test_an_id_with_a_dot_is_not_cut(tmp_path: Path) -> None:
    make(tmp_path / "images", "00/12.jpg", "01/12.5.jpg")
    assert locations(tmp_path, "12.5", "12.7") == [("01/12.5.jpg", None), ("12.7", None)]


def test_photo_of_another_folder_is_never_taken_for_it(tmp_path: Path) -> None:
    make(tmp_path / "images", "paris/1.jpg")
    assert locations(tmp_path, "paris/1.jpg", "rome/1.jpg") == [("paris/1.jpg", None), ("rome/1.jpg", None)]


def test_bare_name_of_several_photos_is_a_problem(tmp_path: Path) -> None:
    make(tmp_path / "images", "paris/1.jpg", "rome/1.jpg", "rome/2.jpg", "2.jpg", "3.jpg", "3.png")
    assert locations(tmp_path, "1.jpg", "2.jpg", "3", "3.png") == [
        ("1.jpg", "ambiguous_name"),
        ("2.jpg", None),  # it is what the name itself says
        ("3", "ambiguous_name"),
        ("3.png", None),
    ]


def test_absolute_paths_and_paths_that_leave_the_folder(tmp_path: Path) -> None:
    make(tmp_path, "images/x.jpg", "out.jpg")
    absolute = os.fspath(tmp_path / "out.jpg")
    found = locations(tmp_path, absolute, "../out.jpg", "../../../../etc/passwd", "/etc/passwd")
    assert found[:2] == [("../out.jpg", None), ("../out.jpg", None)]
    # They are only names of files to be read; what is no photo becomes an error row.
    assert [problem for _, problem in found[2:]] == [None, None]


def test_nul_in_a_name_is_harmless(tmp_path: Path) -> None:
    (label,) = read(tmp_path, b"path,lat,lon\na\0b.jpg,1,2\n")
    assert label.path.endswith(b"a\0b.jpg")


def test_shared_photos_are_all_there(shared_photos: Path) -> None:
    labels = list(read_labels(open_labels(shared_photos / "photos.csv")))
    with (shared_photos / "photos.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:3] == ["path", "latitude", "longitude"]
    assert simple(labels) == [(row[0], float(row[1]), float(row[2])) for row in rows[1:]]
    assert all(os.path.isfile(label.path) for label in labels)
    assert len(labels) == 345


@pytest.mark.parametrize(
    "header", ["SourceFile,GPSLatitude,GPSLongitude", "File Name,Latitude,Longitude", "file_path,lat,lon"]
)
def test_names_that_other_programs_write(tmp_path: Path, header: str) -> None:
    (tmp_path / "labels.csv").write_text(f"{header}\na.jpg,1.5,-2.5\n")
    (label,) = read_labels(open_labels(tmp_path / "labels.csv"))
    assert (label.id, label.latitude, label.longitude, label.problem) == ("a.jpg", 1.5, -2.5, None)


def test_decimal_commas_where_a_comma_does_not_separate(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path;lat;lon\na.jpg;48,8566;-2,3522\n")
    (label,) = read_labels(open_labels(tmp_path / "labels.csv"))
    assert (label.latitude, label.longitude) == (48.8566, -2.3522)
    (tmp_path / "labels.csv").write_text('path,lat,lon\na.jpg,"48,8566","2,3522"\n')
    (label,) = read_labels(open_labels(tmp_path / "labels.csv"))
    assert label.problem is not None
    assert label.problem.code == "bad_coordinates"


def test_estimates_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "path,latitude,longitude,location_type\na.jpg,1,2,estimated\nb.jpg,1,2,\nc.jpg,1,2,measured\n"
    )
    labels = list(read_labels(open_labels(tmp_path / "labels.csv")))
    assert [label.problem and label.problem.code for label in labels] == ["estimated", None, None]


def test_a_row_without_a_name_can_be_found(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,latitude,longitude\na.jpg,1,2\n\n,3,4\n")
    _, label = read_labels(open_labels(tmp_path / "labels.csv"))
    assert label.problem is not None
    assert label.problem.code == "no_name"
    assert "line 4" in str(label.problem)


def test_rows_are_counted_as_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text('path,latitude,longitude\na.jpg,1,2\n\n"b\nc.jpg",3,4\nd.jpg,5,6')
    labels = open_labels(tmp_path / "labels.csv")
    assert count_rows(labels) == len(list(read_labels(labels))) == 3


@pytest.mark.parametrize("header", ["country", "Country", "country_code", "unique_country"])
def test_country_is_text_and_namibia_stays(tmp_path: Path, header: str) -> None:
    labels = read(tmp_path, f"id,latitude,longitude,{header}\na,1,2,NA\nb,1,2,\nc,1,2,Côte d'Ivoire\nd,1,2\n")
    assert [label.country for label in labels] == ["NA", "", "Côte d'Ivoire", ""]


def test_countries_of_the_shared_photos(shared_photos: Path) -> None:
    labels = list(read_labels(open_labels(shared_photos / "photos.csv")))
    with (shared_photos / "photos.csv").open(encoding="utf-8", newline="") as file:
        assert [label.country for label in labels] == [row["country"] for row in csv.DictReader(file)]
    assert labels[0].country == "GH"


def test_what_the_columns_say_and_where(tmp_path: Path) -> None:
    text = 'path,lat,lon\na.jpg,1,2\n\n"b\n.jpg",151.2,-33.8\nc.jpg,x,190\nd.jpg,inf,3\n'
    labels = read(tmp_path, text)
    assert [label.line for label in labels] == [2, 5, 6, 7]
    assert [label.written for label in labels[:2]] == [(1.0, 2.0), (151.2, -33.8)]
    assert math.isnan(labels[2].written[0])
    assert labels[2].written[1] == 190.0
    assert labels[3].written == (math.inf, 3.0)
    assert [label.problem and label.problem.code for label in labels] == [None, *["bad_coordinates"] * 3]


def test_photos_are_found_by_whoever_is_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    def locate(name: str) -> tuple[bytes, ImageError | None]:
        asked.append(name)
        return b"archive.zip/" + name.encode(), ImageError("labels", "odd", "odd") if name == "b" else None

    labels = list(read_labels(open_labels(write(tmp_path, "id,lat,lon\n a ,1,2\nb,3,4\nc,95,4\n")), locate))
    assert asked == ["a", "b", "c"]
    assert [label.path for label in labels] == [b"archive.zip/a", b"archive.zip/b", b"archive.zip/c"]
    assert [label.problem and label.problem.code for label in labels] == [None, "odd", "bad_coordinates"]


def test_places_of_osv5m(tmp_path: Path) -> None:
    header = "id,latitude,longitude,country,region,sub-region,city,unique_country,unique_region,unique_city"
    (label,) = read(tmp_path, f"{header}\n1,2,3,NA,Khomas,Windhoek Rural,Windhoek,NA,Khomas_NA,Windhoek_NA\n")
    assert (label.country, label.region, label.sub_region, label.city) == ("NA", "Khomas", "Windhoek Rural", "Windhoek")
    (label,) = read(tmp_path, "id,latitude,longitude,unique_sub-region,unique_city\n1,2,3,S,C\n")
    assert (label.country, label.region, label.sub_region, label.city) == ("", "", "S", "C")


def test_further_columns(tmp_path: Path) -> None:
    labels = open_labels(write(tmp_path, "path,lat,lon,Season,land-cover\na.jpg,1,2,winter,4\nb.jpg,1,2\n"))
    others = other_columns(labels, ["land_cover", "Season", "lat"])
    assert [label.extra for label in read_labels(labels, others=others)] == [("4", "winter", "1"), ("", "", "1")]
    with pytest.raises(LabelsError, match=r"no column 'weather'; the file has path, lat, lon, Season, land-cover"):
        other_columns(labels, ["weather"])


def test_what_is_said_to_be_true_counts_before_what_is_plain(tmp_path: Path) -> None:
    # A report's own errors.csv, and predictions that somebody wrote the truth beside.
    text = "id,true_latitude,true_longitude,latitude,longitude,location_type\na,1,2,3,4,estimated\n"
    assert simple(read(tmp_path, text)) == [("a", 1.0, 2.0)]
    assert simple(read(tmp_path, "id,pred_lat,pred_lon,lat,lon\na,1,2,3,4\n")) == [("a", 3.0, 4.0)]
    assert simple(read(tmp_path, "id,gt_lng,gt_lat\na,1,2\n")) == [("a", 2.0, 1.0)]
