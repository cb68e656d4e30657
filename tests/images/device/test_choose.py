from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geoinfer.errors import DeviceError
from geoinfer.images.device.check import as_jpeg, drawn
from geoinfer.images.device.choose import IMAGE_CLASSES, LEAST_GAIN, Rates, choose, measure
from geoinfer.images.device.frame import frame_of
from geoinfer.images.preprocessing import Preprocessing
from tests.images.device.fake_gpu import PillowCodec, install, open_decoder

RATE = st.floats(0.01, 1e6)


@pytest.mark.parametrize(
    ("cpu", "gpu", "wins"),
    [
        ((100, 100, 100), (300, 310, 290), True),
        ((300, 310, 290), (100, 100, 100), False),
        ((100, 100, 100), (105, 104, 106), False),  # not by enough
        ((100, 100, 100), (200, 200, 99), False),  # not in every round
        ((100, 200, 400), (120, 240, 480), True),  # a machine that speeds up: rounds are compared in pairs
    ],
)
def test_who_wins(cpu, gpu, wins):
    assert Rates(cpu, gpu).gpu_wins == wins


def test_each_class_by_itself():
    better, worse = Rates((1.0,), (2.0,)), Rates((2.0,), (1.0,))
    assert choose({"original": better, "web": worse, "progressive": worse}) == {"original"}
    assert choose({"original": better, "web": better, "progressive": better}) == set(IMAGE_CLASSES)
    assert choose({}) == set()


@given(st.lists(st.tuples(RATE, RATE), min_size=1, max_size=7))
def test_what_is_kept_is_what_was_measured(rounds):
    rates = Rates(*(tuple(side) for side in zip(*rounds, strict=True)))
    assert Rates.from_dict(rates.as_dict()) == rates
    if rates.gpu_wins:
        assert rates.gain >= LEAST_GAIN


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"cpu": [], "gpu": []},
        {"cpu": [1], "gpu": [1, 2]},
        {"cpu": [0], "gpu": [1]},
        {"cpu": ["x"], "gpu": [1]},
        {"cpu": [float("nan")], "gpu": [1]},
        {"cpu": 1, "gpu": 1},
    ],
    ids=str,
)
def test_damaged_rates(values):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Rates.from_dict(values)


def test_measuring(monkeypatch):
    """With a clock that ticks a second a look: one batch a side and round, and as many photos a second."""
    install(monkeypatch)
    codec = PillowCodec()
    ticks = itertools.count()
    photos = {"web": [as_jpeg(drawn(64, 48, seed)) for seed in range(3)]}
    with open_decoder(Preprocessing(size=16), codec) as decoder:
        found = measure(decoder, workers=2, batch=5, seconds=1.0, photos=photos, clock=lambda: float(next(ticks)))
    assert found == {"web": Rates((2.0,) * 3, (5.0,) * 3)}
    assert codec.batches == [5] * 4


def test_a_gpu_that_does_not_decode_is_not_measured(monkeypatch):
    install(monkeypatch)
    photos = {"web": [as_jpeg(drawn(64, 48, 1))]}
    with (
        open_decoder(Preprocessing(size=16), PillowCodec(refused=set(photos["web"]))) as decoder,
        pytest.raises(DeviceError, match="does not decode an ordinary JPEG"),
    ):
        measure(decoder, workers=1, batch=2, photos=photos)


def test_samples_are_of_their_classes():
    from geoinfer.images.device.choose import _sample

    for name in IMAGE_CLASSES:
        frame = frame_of(_sample(name), "jpeg")
        assert frame is not None
        assert frame.image_class == name


def test_drawn_pictures_are_photo_like_and_always_the_same():
    data = as_jpeg(drawn(1024, 768, 1), 6)
    assert 50_000 < len(data) < 1_000_000
    assert data == as_jpeg(drawn(1024, 768, 1), 6)
    assert data != as_jpeg(drawn(1024, 768, 2), 6)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
