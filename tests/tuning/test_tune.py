from __future__ import annotations

import csv
import dataclasses
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from geoinfer.answer import DEFAULT_ANSWER, Answer
from geoinfer.calibration import calibrate
from geoinfer.errors import OutputError, UsageError
from geoinfer.index import LeaveOneOut
from geoinfer.tuning.objective import Objective
from geoinfer.tuning.report import FILES, best_by_k, check_tuning_folder, tuning_csv, write_tuning_report
from geoinfer.tuning.sweep import Grid
from geoinfer.tuning.tune import tune

GRID = Grid(ks=(1, 3, 12), temperatures=(0.05, 0.2), bandwidths_km=(200.0,))
MEDIAN = Objective.parse("median")


def tuned_on(world, objective=MEDIAN, current=DEFAULT_ANSWER, grid=GRID, **options):
    held_out, coordinates, _ = world(**options)
    groups = np.arange(len(held_out.rows)) // 3
    return tune(held_out, coordinates, groups, "sequence", current, grid=grid, objective=objective), coordinates


class TestTune:
    def test_the_choice_and_its_calibration_share_no_photo(self, world):
        tuned, coordinates = tuned_on(world)
        held_out, _, _ = world()
        groups = np.arange(120) // 3
        assert not set(groups[tuned.choosing].tolist()) & set(tuned.judging_groups.tolist())
        rows = np.flatnonzero(~tuned.choosing)
        assert np.array_equal(tuned.judging.ids, held_out.ids[rows])
        assert np.array_equal(tuned.judging.places, held_out.places[rows])
        assert tuned.calibrates
        assert calibrate(tuned.judging, coordinates, tuned.choice.winner.answer).usable

    def test_more_neighbors_win_where_many_stray(self, world):
        tuned, _ = tuned_on(world, photos=300)
        winner = tuned.choice.winner
        assert winner.answer.k == 12
        assert winner.answer.aggregate in ("median", "density", "geoscore", "cells")

    def test_labels_of_the_judging_part_change_nothing_but_the_judgement(self, world):
        held_out, coordinates, _ = world()
        groups = np.arange(120) // 3
        honest = tune(held_out, coordinates, groups, "sequence", DEFAULT_ANSWER, grid=GRID, objective=MEDIAN)
        # Planted: on the photos that judge, the truth is where the most similar neighbour is, so that top1 is perfect.
        places = held_out.places.copy()
        places[~honest.choosing] = coordinates[held_out.ids[~honest.choosing, 0]]
        planted = dataclasses.replace(held_out, places=places)
        found = tune(planted, coordinates, groups, "sequence", DEFAULT_ANSWER, grid=GRID, objective=MEDIAN)
        assert found.choice.winner.answer == honest.choice.winner.answer != Answer(1, "top1")
        assert found.choice.winner.value_chosen_on == honest.choice.winner.value_chosen_on
        assert found.choice.winner.value != honest.choice.winner.value

    def test_what_the_grid_leaves_out_cannot_win(self, world):
        grid = dataclasses.replace(GRID, methods=("mean",), ks=(3,))
        tuned, _ = tuned_on(world, grid=grid, current=Answer(12, "median"))
        assert tuned.choice.winner.answer.aggregate == "mean"
        assert tuned.choice.current.answer == Answer(12, "median")
        assert tuned.choice.default.answer == DEFAULT_ANSWER

    def test_photos_without_neighbors_are_not_used(self, world):
        held_out, coordinates, _ = world()
        ids = held_out.ids.copy()
        ids[:10] = -1
        without = dataclasses.replace(held_out, ids=ids)
        tuned = tune(without, coordinates, np.arange(120) // 3, "sequence", DEFAULT_ANSWER, grid=GRID, objective=MEDIAN)
        assert tuned.tried.errors_km.shape[1] == 110

    @pytest.mark.parametrize("photos", [0, 39])
    def test_too_few_photos_are_refused(self, world, photos):
        with pytest.raises(UsageError, match=f"{photos} photos are too few"):
            tuned_on(world, photos=photos)

    def test_an_index_of_one_reference(self):
        with pytest.raises(UsageError, match="no references to be located by"):
            tune(LeaveOneOut.empty(), np.zeros((1, 2)), np.empty(0, np.int64), "source", DEFAULT_ANSWER,
                 grid=GRID, objective=MEDIAN)  # fmt: skip


class TestReport:
    @pytest.mark.parametrize("text", ["median", "geoscore", "acc@200"])
    def test_every_file_is_there_and_sound(self, world, tmp_path, text):
        tuned, _ = tuned_on(world, objective=Objective.parse(text))
        folder = tmp_path / "new" / "report"
        check_tuning_folder(folder)
        write_tuning_report(tuned.tried, tuned.choosing, tuned.choice, folder, "How it was done.", "What came of it.")
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        with Image.open(folder / "best_k.png") as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").resize((200, 100)).getcolors(20_000)) > 20
        assert "svg" in ET.parse(folder / "best_k.svg").getroot().tag
        text = (folder / "tuning.md").read_text()
        assert "How it was done." in text
        assert "What came of it." in text
        assert f"`{tuned.choice.winner.answer.as_options()}`" in text
        check_tuning_folder(folder)  # its own files may be replaced

    def test_the_same_bytes_every_time(self, world, tmp_path):
        tuned, _ = tuned_on(world)
        for name in ("one", "two"):
            write_tuning_report(tuned.tried, tuned.choosing, tuned.choice, tmp_path / name, "How.", "What.")
        for name in FILES:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    def test_the_table_holds_every_way_on_both_parts(self, world):
        tuned, _ = tuned_on(world)
        rows = list(csv.DictReader(io.StringIO(tuning_csv(tuned.tried, tuned.choosing))))
        assert len(rows) == len(tuned.tried.ways)
        for row, way, errors in zip(rows, tuned.tried.ways, tuned.tried.errors_km, strict=True):
            assert (row["aggregate"], row["k"]) == (way.aggregate, str(way.k))
            for part, chosen in (("choosing", tuned.choosing), ("judging", ~tuned.choosing)):
                assert float(row[f"{part}_median_km"]) == pytest.approx(np.median(errors[chosen]), rel=1e-5)
                assert float(row[f"{part}_within_200_km_percent"]) == pytest.approx(
                    100 * np.mean(errors[chosen] < 200), rel=1e-5
                )

    def test_lines_begin_at_one_neighbor_and_take_the_best_of_each_k(self, world):
        tuned, _ = tuned_on(world)
        lines = best_by_k(tuned.tried, tuned.choosing, MEDIAN)
        assert list(lines) == ["top1", "mean", "median", "density", "cells", "geoscore"]
        for method, line in lines.items():
            assert line[1] == lines["top1"][1]
            assert sorted(line) == ([1] if method == "top1" else [1, 3, 12])
            for k in line:
                expected = min(
                    float(np.median(errors[tuned.choosing]))
                    for way, errors in zip(tuned.tried.ways, tuned.tried.errors_km, strict=True)
                    if way.k == k and (k == 1 or way.aggregate == method)
                )
                assert line[k] == pytest.approx(expected)

    def test_one_method_and_one_k(self, world, tmp_path):
        tuned, _ = tuned_on(world, grid=Grid(ks=(3,), methods=("mean",), temperatures=(0.1,)))
        write_tuning_report(tuned.tried, tuned.choosing, tuned.choice, tmp_path, "How.", "What.")
        assert (tmp_path / "best_k.png").stat().st_size > 5000

    def test_other_files_are_left_alone(self, tmp_path):
        (tmp_path / "tuning.md").write_text("my own notes")
        with pytest.raises(OutputError, match="no report of geoinfer's"):
            check_tuning_folder(tmp_path)
        with pytest.raises(OutputError, match="is a file"):
            check_tuning_folder(tmp_path / "tuning.md")
