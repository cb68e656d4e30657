"""The predict run in one process: identity, bytes, resuming, shards. Photos of one colour each, and the real model."""

from __future__ import annotations

import os
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.answer import Answer
from geoinfer.batch import predict
from geoinfer.batch.predict import ErrorLimit, PredictOptions, Shard, run_predict
from geoinfer.errors import InputError, InterruptedRunError, ModelError, OutputError, UsageError
from geoinfer.geolocator import Geolocator
from geoinfer.images import load_pixels
from geoinfer.index import open_index
from geoinfer.index.device import IndexDevice

FORMATS = ["csv", "jsonl", "parquet", "geojson"]


def options(sources: object, output: Path, **more) -> PredictOptions:
    values = {"errors": output.with_name("errors.csv"), "batch_size": 2, "workers": 2} | more
    return PredictOptions((os.fspath(sources),) if isinstance(sources, Path) else tuple(sources), output, **values)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(predict, "_COMMIT_ROWS", 8)
    monkeypatch.setattr(predict, "_COMMIT_SECONDS", 1e9)
    monkeypatch.setattr(predict, "_BLOCK", 4)


@pytest.fixture
def mixed(tmp_path, kit) -> Path:
    """46 inputs: colours at shuffled places, with broken, empty, raw, vanished and oddly named ones between them."""
    folder = os.fsencode(tmp_path / "mixed")
    os.mkdir(folder)
    numbers = list(range(46))
    random.Random(3).shuffle(numbers)
    for position, number in enumerate(numbers):
        stem = os.path.join(folder, b"%03d " % position)
        if position % 7 == 2:
            Path(os.fsdecode(stem + b"broken.jpg")).write_bytes(b"\xff\xd8\xff\xe0 nothing")
        elif position % 11 == 5:
            Path(os.fsdecode(stem + b"empty.png")).touch()
        elif position % 13 == 9:
            Path(os.fsdecode(stem + b"raw.NEF")).write_bytes(b"II*\0")
        elif position % 17 == 11:
            os.symlink("/nowhere", stem + b"gone.png")
        else:
            name = [b"plain.png", b'"q", \n\r.png', b"caf\xe9.png", "日本.png".encode()][position % 4]
            kit.colour_photo(stem + b"%d " % number + name, number)
    return tmp_path / "mixed"


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_one_row_for_each_input_with_its_own_answer(mixed, tmp_path, kit, colour_locator, batch_size):
    observer = kit.Quiet()
    summary = run_predict(colour_locator, options(mixed, tmp_path / "o.csv", batch_size=batch_size), observer)
    rows = kit.table((tmp_path / "o.csv").read_bytes())
    names = sorted(os.listdir(os.fsencode(mixed)))
    assert len(names) == 46
    from urllib.parse import unquote_to_bytes

    seen = {"ok": 0, "error": 0, "skipped": 0}
    for name, row in zip(names, rows, strict=True):
        path = unquote_to_bytes(row["path_bytes"]) if row["path_bytes"] else row["path"].encode()
        assert path == os.path.join(os.fsencode(mixed), name)
        status = "skipped" if b"raw" in name else "error" if name[4:9] in (b"broke", b"empty", b"gone.") else "ok"
        assert row["status"] == status, name
        seen[status] += 1
        if status == "ok":
            assert (float(row["latitude"]), float(row["longitude"])) == kit.place_of(int(name.split()[1]))
        else:
            assert row["latitude"] == row["radius_km"] == row["location_type"] == ""
            assert row["error"]
    assert min(seen.values()) > 1
    assert (summary.ok, summary.error, summary.skipped) == (seen["ok"], seen["error"], seen["skipped"])
    assert summary.inputs == 46
    report = kit.table((tmp_path / "errors.csv").read_bytes())
    assert [row["path"] for row in report] == [row["path"] for row in rows if row["status"] == "error"]
    assert (observer.done, observer.failed) == (46, seen["error"])
    assert observer.events == [("started", 0, 0), ("writing",)]
    assert not (tmp_path / "o.csv.run").exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_bytes_do_not_depend_on_threads_or_repetition(mixed, tmp_path, kit, colour_locator, suffix, monkeypatch):
    """Nor on how often parts are committed; timing is shaken by a model that dawdles."""
    results = []
    pause = threading.Event()
    for number, workers in enumerate([1, 2, 4, 4]):
        monkeypatch.setattr(predict, "_COMMIT_ROWS", [1, 10, 4096, 20][number])
        chance = random.Random(number)
        colour_locator.embedder.hook = lambda _, chance=chance: pause.wait(chance.random() * 0.004)
        output = tmp_path / str(number) / f"o.{suffix}"
        run_predict(colour_locator, options(mixed, output, workers=workers), kit.Quiet())
        results.append((output.read_bytes(), output.with_name("errors.csv").read_bytes()))
    assert len({*results}) == 1
    assert len(results[0][0]) > 1000


def test_a_nan_embedding_is_an_error_of_its_own(tmp_path, kit, colour_locator):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        kit.colour_photo(folder / f"{number}.png", number)
    answer = colour_locator.embedder.embed

    def embed(pixels):
        result = answer(pixels)
        result[(pixels[:, 0, 0, :] == kit.colour_of(4)).all(axis=1)] = np.nan
        return result

    colour_locator.embedder.embed = embed
    summary = run_predict(colour_locator, options(folder, tmp_path / "o.csv", batch_size=4), kit.Quiet())
    rows = kit.table((tmp_path / "o.csv").read_bytes())
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["error"] + ["ok"] * 5
    for number, row in enumerate(rows):
        if number != 4:
            assert (float(row["latitude"]), float(row["longitude"])) == kit.place_of(number)
    (line,) = kit.table((tmp_path / "errors.csv").read_bytes())
    assert (line["path"], line["stage"], line["code"]) == (str(folder / "4.png"), "embed", "not_finite")
    assert summary.error == 1


def test_the_real_model_answers_as_one_photo_at_a_time(tmp_path, kit, example_photos):
    """Against a plain loop of decode, embed, locate: no pipeline, no batches, no blocks."""
    photos = sorted(example_photos.iterdir())
    with Geolocator.open(device="cpu", threads=1) as geolocator:
        run_predict(geolocator, options(example_photos, tmp_path / "o.csv", batch_size=3, workers=2), kit.Quiet())
        rows = kit.table((tmp_path / "o.csv").read_bytes())
        assert [row["path"] for row in rows] == [str(photo) for photo in photos]
        for photo, row in zip(photos, rows, strict=True):
            pixels = load_pixels(os.fsencode(photo), geolocator.embedder.identity.preprocessing)
            vector = geolocator.embedder.embed(pixels[None])
            similarity = float((geolocator.index.index.vectors @ vector[0]).max())
            located = geolocator.locate_embeddings(vector)
            assert float(row["latitude"]) == pytest.approx(located.coordinates[0, 0], abs=2e-4)
            assert float(row["longitude"]) == pytest.approx(located.coordinates[0, 1], abs=2e-4)
            assert float(row["top1_similarity"]) == pytest.approx(similarity, abs=1e-5)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_line_costs_no_byte(mixed, tmp_path, kit, colour_locator, small_parts, every, monkeypatch):
    """A Ctrl-C lands between any two lines of the run and its ledger; the same call then ends as if it had not."""
    reference = tmp_path / "reference" / "o.csv"
    run_predict(colour_locator, options(mixed, reference), kit.Quiet())
    expected = reference.read_bytes(), reference.with_name("errors.csv").read_bytes()
    files = {
        predict.__file__,
        sys.modules["geoinfer.batch.ledger"].__file__,
        sys.modules["geoinfer.integrity"].__file__,
    }

    lines = 0

    def tracer(stop_at):
        nonlocal lines
        lines = 0

        def local(frame, event, arg):
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == stop_at:
                    raise KeyboardInterrupt
            return local

        def calls(frame, event, arg):
            watched = frame.f_code.co_filename in files and frame.f_code.co_name not in ("holds", "_generate", "add")
            return local if watched else None

        return calls

    pipelines = []
    make = predict.Pipeline
    monkeypatch.setattr(predict, "Pipeline", lambda *a, **k: pipelines.append(make(*a, **k)) or pipelines[-1])

    def interrupted_at(line, output):
        previous = sys.gettrace()
        sys.settrace(tracer(line))
        try:
            run_predict(colour_locator, options(mixed, output), kit.Quiet())
        except (InterruptedRunError, KeyboardInterrupt):
            return True
        finally:
            sys.settrace(previous)
            # Python itself may be interrupted on its way into `__exit__`; the process then ends, but this one goes on.
            while pipelines:
                pipelines.pop().close()
        return False

    assert not interrupted_at(-1, tmp_path / "count" / "o.csv")
    total = lines
    assert total > 200
    chosen = range(1, total) if every else sorted(random.Random(0).sample(range(1, total), 80))
    stopped = 0
    for line in chosen:
        output = tmp_path / f"at {line}" / "o.csv"
        stopped += interrupted_at(line, output)
        summary = run_predict(colour_locator, options(mixed, output), kit.Quiet())
        assert (output.read_bytes(), output.with_name("errors.csv").read_bytes()) == expected, line
        assert (summary.inputs, summary.inputs) == (46, summary.ok + summary.error + summary.skipped), line
        assert sorted(os.listdir(output.parent)) == ["errors.csv", "o.csv", "o.csv.run.json"], line
    assert stopped == len(chosen)


@pytest.mark.parametrize("step", ["appended", "committed"])
def test_an_interrupt_just_after_a_commit_writes_no_row_twice(
    mixed, tmp_path, kit, colour_locator, small_parts, monkeypatch, step
):
    ledger_class = predict.RunLedger
    method = "_append" if step == "appended" else "commit"
    original = getattr(ledger_class, method)
    calls = 0

    def interrupting(self, *arguments):
        nonlocal calls
        original(self, *arguments)
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger_class, method, interrupting)
        with pytest.raises(InterruptedRunError):
            run_predict(colour_locator, options(mixed, tmp_path / "o.csv"), kit.Quiet())
    run_predict(colour_locator, options(mixed, tmp_path / "o.csv"), kit.Quiet())
    paths = [row["path"] for row in kit.table((tmp_path / "o.csv").read_bytes())]
    assert len(paths) == 46
    assert [Path(path).name[:3] for path in paths] == [f"{n:03d}" for n in range(46)]


def interrupt(locator, kit, run, after: int) -> InterruptedRunError:
    """Ctrl-C once so many photos have been embedded."""
    count = 0

    class Stop(kit.Quiet):
        def progressed(self, inputs, failed):
            nonlocal count
            count += inputs
            if count >= after:
                raise KeyboardInterrupt  # it travels to the thread that iterates

    with pytest.raises(InterruptedRunError) as caught:
        run_predict(locator, run, Stop())
    return caught.value


def test_an_interrupted_run_says_what_is_safe_and_goes_on_there(mixed, tmp_path, kit, colour_locator, small_parts):
    run = options(mixed, tmp_path / "o.csv", workers=1)
    error = interrupt(colour_locator, kit, run, 30)
    assert error.exit_code == 130
    assert "same command" in error.hint
    safe = sum(len(path.read_bytes().splitlines()) for path in (tmp_path / "o.csv.run").glob("part-*.jsonl"))
    assert f"interrupted; {safe} inputs are done and safe" in str(error)
    assert 16 <= safe <= 30
    observer = kit.Quiet()
    colour_locator.embedder.batches.clear()
    summary = run_predict(colour_locator, run, observer)
    assert (summary.resumed, summary.inputs) == (safe, 46)
    assert observer.events[0][:2] == ("started", safe)
    assert observer.done == 46 - safe
    assert sum(colour_locator.embedder.batches) <= 46 - safe


@pytest.mark.parametrize("change", ["removed", "added before", "renamed", "reordered", "fewer"])
def test_other_inputs_are_refused_and_the_run_kept(mixed, tmp_path, kit, colour_locator, small_parts, change):
    names = sorted(mixed.iterdir())
    listing = [str(name) for name in names if name.name.isascii() and name.name.isprintable()]
    assert len(listing) == 24
    run = options(listing, tmp_path / "o.csv", workers=1)
    interrupt(colour_locator, kit, run, 18)
    other = {
        "removed": listing[1:],
        "added before": [listing[-1], *listing],
        "renamed": [f"{mixed}/./{Path(listing[0]).name}", *listing[1:]],
        "reordered": [listing[1], listing[0], *listing[2:]],
        "fewer": listing[:3],
    }[change]
    with pytest.raises(UsageError, match="unfinished run is there, made with other inputs") as caught:
        run_predict(colour_locator, options(other, tmp_path / "o.csv"), kit.Quiet())
    assert caught.value.exit_code == 2
    assert run_predict(colour_locator, run, kit.Quiet()).resumed > 0


def test_a_finished_run_has_nothing_to_do_and_counts_as_before(mixed, tmp_path, kit, colour_locator):
    run = options(mixed, tmp_path / "o.csv")
    first = run_predict(colour_locator, run, kit.Quiet())
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*.*")}
    colour_locator.embedder.batches.clear()
    again = run_predict(colour_locator, run, kit.Quiet())
    assert again.already_finished
    assert not first.already_finished
    assert (again.inputs, again.ok, again.error, again.skipped) == (first.inputs, first.ok, first.error, first.skipped)
    assert ErrorLimit().exceeded(again.error, again.inputs)
    assert colour_locator.embedder.batches == []
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*.*")} == before
    (mixed / "zzz.png").touch()
    with pytest.raises(UsageError, match=r"of other inputs \(46 then, 47 now\)"):
        run_predict(colour_locator, run, kit.Quiet())
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*.*")} == before


def test_restart_does_it_all_again(mixed, tmp_path, kit, colour_locator):
    run = options(mixed, tmp_path / "o.csv")
    run_predict(colour_locator, run, kit.Quiet())
    expected = (tmp_path / "o.csv").read_bytes()
    (tmp_path / "o.csv").write_text("edited")
    with pytest.raises(OutputError, match="exists already"):
        run_predict(colour_locator, run, kit.Quiet())
    summary = run_predict(colour_locator, options(mixed, tmp_path / "o.csv", restart=True), kit.Quiet())
    assert (summary.resumed, (tmp_path / "o.csv").read_bytes()) == (0, expected)


@pytest.mark.parametrize(
    ("field", "again"),
    [
        ("--k", {"answer": Answer(2, "top1")}), ("--aggregate", {"answer": Answer(1, "mean")}),
        ("--temperature", {"answer": Answer(1, "density", temperature=0.1)}),
        ("--bandwidth-km", {"answer": Answer(1, "density", bandwidth_km=30.0)}), ("--min-score", {"min_score": 0.25}),
        ("--places", {"places": "cities"}), ("--index-device", {"index_device": IndexDevice("cuda", "for a test")}),
        ("engine", {"engine": "b"}), ("index", {"index": "b"}),
    ],
)  # fmt: skip
def test_another_way_of_answering_is_refused_by_name(mixed, tmp_path, kit, colour_index, field, again, small_parts):
    from geoinfer.index import open_index, write_index

    first = "density" if field in ("--temperature", "--bandwidth-km") else "top1"

    def locator(engine="a", index="a", places=None, **more):
        embedder = kit.ColourEmbedder(size=4)
        embedder.fingerprint = engine * 64
        folder = colour_index
        if index == "b":
            stored, folder = open_index(colour_index), tmp_path / "other index"
            if not folder.exists():
                write_index(folder, stored.index.vectors[::-1], stored.references, embedder.identity)
        names = None if places is None else kit.Cities()
        return Geolocator(embedder, open_index(folder), **{"answer": Answer(1, first), "places": names} | more)

    run = options(mixed, tmp_path / "o.csv", workers=1)
    interrupt(locator(), kit, run, 20)
    with pytest.raises(UsageError, match=f": an unfinished run is there, made with another {field}"):
        run_predict(locator(**again), run, kit.Quiet())
    run_predict(locator(), run, kit.Quiet())
    with pytest.raises(UsageError, match=f": a finished run is there, made with another {field}"):
        run_predict(locator(**again), run, kit.Quiet())


@pytest.mark.parametrize("field", ["--top", "--shard"])
def test_other_options_are_refused_by_name(mixed, tmp_path, kit, colour_locator, field, small_parts):
    before, after = ({"top": 5}, {"top": 6}) if field == "--top" else ({}, {"shard": Shard(1, 2)})
    interrupt(colour_locator, kit, options(mixed, tmp_path / "o.jsonl", workers=1, **before), 20)
    with pytest.raises(UsageError, match=f"another {field} "):
        run_predict(colour_locator, options(mixed, tmp_path / "o.jsonl", **after), kit.Quiet())


@pytest.mark.parametrize("suffix", FORMATS)
def test_answers_withheld_and_places_come_out_the_same_after_an_interrupt(
    mixed, tmp_path, kit, colour_index, suffix, small_parts
):
    def locator(min_score=None):
        embedder = kit.ColourEmbedder(size=4)
        answer = Answer(10, "density")
        return Geolocator(embedder, open_index(colour_index), answer=answer, min_score=min_score, places=kit.Cities())

    run_predict(locator(), options(mixed, tmp_path / "all.csv"), kit.Quiet())
    given = kit.table((tmp_path / "all.csv").read_bytes())
    limit = sorted(float(row["score"]) for row in given if row["status"] == "ok")[10]
    whole, again = (tmp_path / name / f"o.{suffix}" for name in ("whole", "again"))
    summary = run_predict(locator(limit), options(mixed, whole), kit.Quiet())
    interrupt(locator(limit), kit, options(mixed, again, workers=1), 20)
    resumed = run_predict(locator(limit), options(mixed, again), kit.Quiet())
    assert resumed.resumed > 0
    assert whole.read_bytes() == again.read_bytes()
    assert run_predict(locator(limit), options(mixed, again), kit.Quiet()).abstained == 10
    low = [row["path"] for row in given if row["status"] == "ok" and float(row["score"]) < limit]
    assert summary.abstained == resumed.abstained == len(low) == 10
    assert summary.skipped == 10 + sum(row["status"] == "skipped" for row in given)
    assert "low_score" not in summary.failures
    report = kit.table(whole.with_name("errors.csv").read_bytes())
    assert [row["path"] for row in report if row["code"] == "low_score"] == low
    if suffix == "csv":
        for before, row in zip(given, kit.table(whole.read_bytes()), strict=True):
            if row["path"] not in low:
                assert row == before
                assert (row["city"] != "") == (row["status"] == "ok")
                assert row["unlike_references"] in (("true", "false") if row["status"] == "ok" else ("",))
                continue
            assert (row["status"], row["score"]) == ("skipped", before["score"])
            assert (row["top1_similarity"], row["unlike_references"]) == (
                before["top1_similarity"], before["unlike_references"]
            )  # fmt: skip
            assert row["error"] == f"the score {float(row['score']):.6g} is below {limit:g}"
            empty = ("latitude", "longitude", "radius_km", "country", "region", "city", "city_km", "location_type")
            assert {row[name] for name in empty} == {""}


def test_threads_and_places_of_reports_may_change_on_the_way(mixed, tmp_path, kit, colour_locator, small_parts):
    interrupt(colour_locator, kit, options(mixed, tmp_path / "o.csv", workers=1), 20)
    more = {"workers": 4, "errors": tmp_path / "elsewhere" / "e.csv"}
    assert run_predict(colour_locator, options(mixed, tmp_path / "o.csv", **more), kit.Quiet()).resumed > 0
    assert kit.table((tmp_path / "elsewhere" / "e.csv").read_bytes())


def test_top_is_no_matter_where_candidates_are_not_written(mixed, tmp_path, kit, colour_locator):
    run_predict(colour_locator, options(mixed, tmp_path / "o.csv", top=5), kit.Quiet())
    assert run_predict(colour_locator, options(mixed, tmp_path / "o.csv", top=6), kit.Quiet()).already_finished


def test_a_model_that_fails_ends_the_run_and_what_was_safe_stays(mixed, tmp_path, kit, colour_locator, small_parts):
    calls = 0

    def failing(_):
        nonlocal calls
        calls += 1
        if calls == 15:
            raise ModelError("the model is tired")

    run = options(mixed, tmp_path / "o.csv", workers=1)
    colour_locator.embedder.hook = failing
    with pytest.raises(ModelError, match="tired"):
        run_predict(colour_locator, run, kit.Quiet())
    assert not (tmp_path / "o.csv").exists()
    colour_locator.embedder.hook = lambda _: None
    assert run_predict(colour_locator, run, kit.Quiet()).resumed >= 8
    reference = tmp_path / "r" / "o.csv"
    run_predict(colour_locator, options(mixed, reference), kit.Quiet())
    assert (tmp_path / "o.csv").read_bytes() == reference.read_bytes()


def test_nothing_to_locate_is_an_error_and_leaves_nothing(tmp_path, kit, colour_locator):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no photos found"):
        run_predict(colour_locator, options(tmp_path / "empty", tmp_path / "o.csv"), kit.Quiet())
    assert os.listdir(tmp_path) == ["empty"]


def test_an_argument_that_turns_out_to_name_nothing_half_way_leaves_nothing(mixed, tmp_path, kit, colour_locator):
    sources = (str(mixed), str(tmp_path / "*.none"))
    with pytest.raises(InputError, match="no file matches"):
        run_predict(colour_locator, options(sources, tmp_path / "o.csv"), kit.Quiet())
    assert os.listdir(tmp_path) == ["mixed"]


def test_arguments_are_looked_at_before_anything_is_written(mixed, tmp_path, kit, colour_locator):
    output = tmp_path / "o.csv"
    foreign = tmp_path / "labels.csv"
    foreign.write_text("precious")
    for run, error in [
        (options(mixed, tmp_path / "o.txt"), UsageError),
        (options([str(mixed), str(tmp_path / "nowhere")], output), InputError),
        (options(mixed, output, errors=output), UsageError),
        (options(mixed, output, errors=tmp_path / "mixed" / ".." / "o.csv"), UsageError),
        (options(mixed, output, errors=foreign), OutputError),
        (options(mixed, output, errors=mixed), OutputError),
        (options(mixed, output, errors=foreign / "below.csv"), OutputError),
        (options(mixed, tmp_path / "mixed"), UsageError),
        (options(mixed, foreign), OutputError),
    ]:
        with pytest.raises(error) as caught:
            run_predict(colour_locator, run, kit.Quiet())
        assert caught.value.exit_code == 2
        assert sorted(os.listdir(tmp_path)) == ["labels.csv", "mixed"]
    assert foreign.read_text() == "precious"


class TestShards:
    @given(st.lists(st.binary(), unique=True, max_size=200), st.integers(1, 9))
    def test_they_share_out_every_path_once(self, paths, of):
        shards = [Shard(number, of) for number in range(1, of + 1)]
        assert [sum(shard.holds(path) for shard in shards) for path in paths] == [1] * len(paths)

    def test_they_are_about_equal_and_the_same_for_ever(self):
        paths = [b"photos/%05d.jpg" % n for n in range(4000)]
        sizes = [sum(Shard(n, 4).holds(path) for path in paths) for n in (1, 2, 3, 4)]
        assert all(850 < size < 1150 for size in sizes)
        # BLAKE2b of 8 bytes, big-endian, as coreutils has it: printf a.jpg | b2sum -l 64  ->  see docs.
        import hashlib

        value = int(hashlib.blake2b(b"a.jpg", digest_size=8).hexdigest(), 16)
        assert [n for n in range(1, 8) if Shard(n, 7).holds(b"a.jpg")] == [value % 7 + 1]

    def test_together_they_are_the_whole_run(self, mixed, tmp_path, kit, colour_locator):
        run_predict(colour_locator, options(mixed, tmp_path / "all.csv"), kit.Quiet())
        whole = (tmp_path / "all.csv").read_bytes()
        together = []
        for number in (1, 2, 3):
            output = tmp_path / f"s{number}.csv"
            more = {"shard": Shard(number, 3), "errors": tmp_path / f"e{number}.csv"}
            summary = run_predict(colour_locator, options(mixed, output, **more), kit.Quiet())
            rows = kit.table(output.read_bytes())
            assert 0 < summary.inputs == len(rows) < 46
            together += rows
        assert sorted(together, key=lambda row: row["path"]) == sorted(kit.table(whole), key=lambda row: row["path"])

    def test_a_share_that_is_empty_is_a_finished_run_of_nothing(self, tmp_path, kit, colour_locator):
        kit.colour_photo(tmp_path / "only.png", 1)
        number = next(n for n in (1, 2) if not Shard(n, 2).holds(os.fsencode(tmp_path / "only.png")))
        run = options(tmp_path / "only.png", tmp_path / "o.csv", shard=Shard(number, 2))
        assert run_predict(colour_locator, run, kit.Quiet()).inputs == 0
        assert kit.table((tmp_path / "o.csv").read_bytes()) == []
        assert run_predict(colour_locator, run, kit.Quiet()).already_finished

    @pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "1.0/2", ""])
    def test_nonsense_is_refused(self, text):
        with pytest.raises(UsageError):
            Shard.parse(text)

    def test_parse(self):
        assert Shard.parse(" 2/8 ") == Shard(2, 8)


@pytest.mark.parametrize(
    ("text", "errors", "inputs", "exceeded"),
    [
        ("0", 0, 10, False), ("0", 1, 10, True), ("2", 2, 10, False), ("2", 3, 10, True), ("5%", 5, 100, False),
        ("5%", 6, 100, True), ("0.5%", 1, 200, False), ("0.5%", 1, 199, True), ("100%", 7, 7, False),
        ("0%", 0, 0, False),
    ],
)  # fmt: skip
def test_error_limits(text, errors, inputs, exceeded):
    assert ErrorLimit.parse(text).exceeded(errors, inputs) is exceeded


@pytest.mark.parametrize("text", ["-1", "1.5", "101%", "%", "", "5 %", "nan%", "1e3"])
def test_error_limits_that_make_no_sense(text):
    with pytest.raises(UsageError):
        ErrorLimit.parse(text)
