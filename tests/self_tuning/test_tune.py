"""Self-tuning of models that are played, whose speed is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from geoinfer.backends.cpu_settings import CpuSettings
from geoinfer.bundle import SHIPPED
from geoinfer.errors import ModelError
from geoinfer.self_tuning import tune as module
from geoinfer.self_tuning.precision import Verdict
from geoinfer.self_tuning.tune import tune
from tests.self_tuning.fakes import Sleeper, pictures

if TYPE_CHECKING:
    from pathlib import Path

CORES = 2


class Stage:
    """What `open_embedder` gives for which file and settings, and a clock that only their calls move.

    Attributes:
        plain: how the model's embedders work, see `Played`; `of` for those of some settings, `of_int8` the sibling's.
    """

    def __init__(self, folder: Path) -> None:
        self.model, self.int8 = folder / "model.onnx", folder / "model.int8.onnx"
        self.model.write_bytes(b"x" * 1000)
        self.int8.write_bytes(b"x" * 100)
        self.plain: dict[str, Any] = {"picture": 0.01}
        self.of: dict[CpuSettings, dict[str, Any]] = {}
        self.of_int8: dict[str, Any] = {"picture": 0.01}
        self.opened: list[tuple[str, CpuSettings]] = []
        self.embedders: list[Played] = []
        self.verdict = Verdict(0.99, 16, True, "close enough")
        self.rng = np.random.default_rng(0)
        self.now = 1000.0

    def open(self, path: Path, device: str, *, settings: CpuSettings, **_: Any) -> Played:
        assert device == "cpu"
        self.opened.append((path.name, settings))
        made = self.of_int8 if path == self.int8 else self.of.get(settings, self.plain)
        if "cannot" in made:
            raise ModelError(made["cannot"])
        self.embedders.append(Played(self, **made))
        self.now += 0.1
        return self.embedders[-1]

    def rate(self, embedder: Played, settings: CpuSettings, pixels: Any, *, cores: int, seconds: float) -> float:
        """In place of `images_per_second`: with noise of 1%."""
        embedder.embed(pixels[: settings.batch_size])
        call = embedder.call + embedder.picture * settings.batch_size
        self.now += seconds + call
        return settings.calls_on(cores) * settings.batch_size / call * float(np.exp(self.rng.normal(0, 0.01)))

    def tune(self, **named: Any) -> module.Tuned:
        return tune(self.model, pixels=pictures(), cores=CORES, **named)


class Played(Sleeper):
    """Takes `call` seconds a call and `picture` seconds a picture, by the stage's clock."""

    def __init__(self, stage: Stage, *, call: float = 0.0, picture: float = 0.0, odd: int = 0, **others: Any) -> None:
        super().__init__(**others)
        self.stage, self.call, self.picture, self.odd = stage, call, picture, odd

    def embed(self, pixels):
        self.stage.now += self.call + self.picture * len(pixels)
        found = super().embed(pixels)
        return found + 1e-6 if len(pixels) == self.odd else found


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    monkeypatch.setattr(module, "open_embedder", made.open)
    monkeypatch.setattr(module, "int8_verdict", lambda *_: made.verdict)
    monkeypatch.setattr(module, "images_per_second", made.rate)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


def trial_of(tuned: module.Tuned, settings: CpuSettings) -> module.Trial:
    return next(trial for trial in tuned.trials if trial.settings == settings)


def test_batches_win_where_a_call_costs_more_than_its_pictures(stage: Stage) -> None:
    stage.plain = {"call": 0.01, "picture": 0.0001}
    tuned = stage.tune(seconds=4)
    assert tuned.settings == CpuSettings(batch_size=8)
    assert tuned.gain == pytest.approx(8 * 10.1 / 10.8, rel=0.02)
    assert all(embedder.closed for embedder in stage.embedders)


def test_where_nothing_is_faster_the_default_stays_and_little_time_is_spent(stage: Stage) -> None:
    tuned = stage.tune(seconds=60)
    assert (tuned.settings, tuned.gain) == (CpuSettings(), 1.0)
    assert tuned.seconds < 15
    assert tuned.trials[0].settings == CpuSettings()
    assert tuned.trials[0].same_bits


def test_other_bits_are_seen_before_time_is_spent_on_them(stage: Stage) -> None:
    quick = CpuSettings(arena=False)
    stage.plain = {"picture": 0.01}
    stage.of[quick] = {"picture": 0.001, "turned": 1e-6}
    tuned = stage.tune(seconds=2)
    assert tuned.settings == CpuSettings()
    assert (trial_of(tuned, quick).same_bits, trial_of(tuned, quick).rates) == (False, ())
    assert trial_of(tuned, quick).left_out == "other last digits"


def test_a_table_has_them_all_and_they_still_are_not_chosen(stage: Stage) -> None:
    quick = CpuSettings(graph="extended")
    stage.plain = {"picture": 0.004}
    stage.of[quick] = {"picture": 0.001, "turned": 1e-6}
    tuned = stage.tune(seconds=15, all_rounds=True)
    assert tuned.settings == CpuSettings()
    found = trial_of(tuned, quick)
    assert found.same_bits is False
    assert found.ratio.low > 3
    counts = {len(trial.rates) for trial in tuned.trials}
    assert len(counts) == 1
    assert counts.pop() >= module.LEAST_ROUNDS


def test_bits_of_fewer_photos_than_a_batch_are_looked_at(stage: Stage) -> None:
    """A last batch is short: what is the same for four photos and not for three may not be chosen."""

    stage.plain = {"call": 0.01, "picture": 0.0001, "odd": 3}
    tuned = stage.tune(seconds=3)
    assert tuned.settings == CpuSettings(batch_size=2)
    assert [trial_of(tuned, CpuSettings(batch_size=size)).same_bits for size in (2, 4, 8)] == [True, False, False]


def test_winners_are_tried_together(stage: Stage) -> None:
    stage.plain = {"call": 0.006, "picture": 0.004}
    stage.of[CpuSettings(arena=False)] = {"call": 0.006, "picture": 0.002}
    stage.of[CpuSettings(arena=False, batch_size=8)] = {"call": 0.006, "picture": 0.002}
    tuned = stage.tune(seconds=20, all_rounds=True)
    assert tuned.settings == CpuSettings(arena=False, batch_size=8)
    assert tuned.gain == pytest.approx(10 / 2.75, rel=0.02)
    assert tuned.seconds < 21


def test_a_candidate_that_fails_is_left_out(stage: Stage) -> None:
    stage.of[CpuSettings(arena=False)] = {"cannot": "no memory"}
    stage.of[CpuSettings(threads_per_call=2, calls_at_once=1)] = {"fault": ModelError("broke")}
    tuned = stage.tune(seconds=1)
    assert trial_of(tuned, CpuSettings(arena=False)).left_out == "no memory"
    assert trial_of(tuned, CpuSettings(threads_per_call=2, calls_at_once=1)).left_out == "broke"


def test_a_model_that_fails_is_an_error(stage: Stage) -> None:
    stage.plain = {"fault": ModelError("broken")}
    with pytest.raises(ModelError, match="broken"):
        stage.tune()
    assert all(embedder.closed for embedder in stage.embedders)
    stage.plain = {"cannot": "not a model"}
    with pytest.raises(ModelError, match="not a model"):
        stage.tune()


def test_a_slow_model_finds_no_time_and_says_so(stage: Stage) -> None:
    stage.plain = {"picture": 0.3}
    tuned = stage.tune(seconds=3)
    assert tuned.seconds < 12
    assert tuned.settings == CpuSettings()
    assert {trial.left_out for trial in tuned.trials[1:]} == {"no time was left for it"}


def test_a_large_model_is_not_loaded_again_and_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory_bytes", lambda: 8000)
    tuned = stage.tune(seconds=1)
    assert stage.opened == [("model.onnx", CpuSettings())]
    assert trial_of(tuned, CpuSettings(arena=False)).left_out == "the model is too large to be loaded once more"
    assert trial_of(tuned, CpuSettings(batch_size=2)).rates


def test_weights_beside_the_model_count(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x" * 10)
    (tmp_path / "m.onnx.data").write_bytes(b"x" * 90)
    assert module._file_bytes(tmp_path / "m.onnx") == 100


def test_int8_is_preferred_where_it_is_faster_and_close(stage: Stage) -> None:
    stage.of_int8 = {"picture": 0.004, "turned": 0.1}
    tuned = stage.tune(seconds=4, int8=stage.int8)
    assert tuned.prefers_int8
    assert tuned.int8 is not None
    assert tuned.int8.ratio.value == pytest.approx(2.5, rel=0.02)
    assert tuned.int8_verdict == stage.verdict


def test_int8_that_is_not_close_is_not_used(stage: Stage) -> None:
    stage.of_int8 = {"picture": 0.004}
    stage.verdict = Verdict(0.5, 16, False, "smallest cosine 0.5")
    tuned = stage.tune(seconds=3, int8=stage.int8)
    assert (tuned.prefers_int8, tuned.int8_why_not) == (False, "smallest cosine 0.5")


def test_int8_that_is_not_faster_is_not_used(stage: Stage) -> None:
    stage.plain = {"picture": 0.01}
    stage.of_int8 = {"picture": 0.012}
    tuned = stage.tune(seconds=3, int8=stage.int8)
    assert not tuned.prefers_int8
    assert tuned.int8_why_not


def test_int8_must_beat_the_model_at_its_best(stage: Stage) -> None:
    stage.plain = {"call": 0.01, "picture": 0.0001}
    stage.of_int8 = {"call": 0.005}
    tuned = stage.tune(seconds=5, int8=stage.int8)
    assert tuned.settings == CpuSettings(batch_size=8)
    assert not tuned.prefers_int8


def test_int8_that_cannot_be_opened_costs_nothing_else(stage: Stage) -> None:
    stage.of_int8 = {"cannot": "damaged"}
    tuned = stage.tune(seconds=1, int8=stage.int8)
    assert (tuned.prefers_int8, tuned.int8_why_not) == (False, "damaged")
    assert stage.tune(seconds=1).int8_why_not == "there is no int8 sibling"


def test_time_is_for_quick_models_short_and_for_slow_ones_bounded(stage: Stage) -> None:
    for seconds, most in ((0.001, 4.0), (0.1, 8.0), (0.5, 12.0)):
        stage.plain = {"call": seconds}
        stage.now = 50.0
        with module._Contest(stage.model, None, pictures(), CORES, all_rounds=False) as contest:
            contest.limit(100.0, None)
            assert contest._ends == pytest.approx(100 + most, rel=0.05)


def test_the_shipped_model_for_real() -> None:
    """Whatever is chosen on whatever machine: the embeddings are the default's, to the last bit."""
    from geoinfer.backends import open_embedder

    model = SHIPPED / "model.onnx"
    tuned = tune(model, int8=SHIPPED / "model.int8.onnx", seconds=2)
    assert tuned.trials[0].rates
    with open_embedder(model, "cpu", settings=CpuSettings()) as embedder:
        size = embedder.identity.preprocessing.size
        pixels = np.random.default_rng(0).integers(0, 256, (9, size, size, 3), np.uint8)
        expected = np.concatenate([embedder.embed(picture[None]) for picture in pixels])
    batch = tuned.settings.batch_size
    with open_embedder(model, "cpu", settings=tuned.settings) as embedder:
        found = np.concatenate([embedder.embed(pixels[at : at + batch]) for at in range(0, 9, batch)])
    assert found.tobytes() == expected.tobytes()
