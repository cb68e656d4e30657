from __future__ import annotations

import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoinfer.errors import UsageError
from geoinfer.images import Preprocessing

FULL = {
    "size": 260,
    "resize": "squash",
    "interpolation": "bilinear",
    "mean": [0.5, 0.25, 0.125],
    "std": [1.0, 0.5, 0.25],
    "colour": "rgb",
}

triples = st.tuples(*[st.floats(-10, 10, allow_nan=False)] * 3)
positive_triples = st.tuples(*[st.floats(1e-3, 10)] * 3)
valid = st.builds(
    Preprocessing,
    size=st.integers(1, 4096),
    resize=st.sampled_from(["crop", "crop_floor", "crop_torchvision", "squash"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    mean=triples,
    std=positive_triples,
)


def test_parse_reads_every_part() -> None:
    text = "size=260, resize=squash,interpolation=bilinear,mean=0.5/0.25/0.125,std=1/0.5/0.25"
    assert Preprocessing.parse(text).as_dict() == FULL


def test_parse_imagenet_is_the_published_mean_and_std() -> None:
    parsed = Preprocessing.parse("size=224,mean=ImageNet,std=imagenet")
    assert parsed.mean == (0.485, 0.456, 0.406)
    assert parsed.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "key=value"),
        ("size", "key=value"),
        ("size=", "key=value"),
        ("=224", "key=value"),
        ("resize=crop", "no size"),
        ("size=big", "whole number"),
        ("size=0", "1 to 4096"),
        ("size=4097", "1 to 4096"),
        ("size=-1", "1 to 4096"),
        ("size=224.5", "whole number"),
        ("size=224,resize=stretch", "crop, crop_floor, crop_torchvision, squash"),
        ("size=224,interpolation=area", "lanczos"),
        ("size=224,colour=bgr", "rgb"),
        ("size=224,mean=0.5", "three numbers"),
        ("size=224,mean=a/b/c", "0.5/0.5/0.5"),
        ("size=224,mean=nan/0/0", "three numbers"),
        ("size=224,mean=inf/0/0", "three numbers"),
        ("size=224,std=0/1/1", "positive"),
        ("size=224,std=-1/1/1", "positive"),
        ("size=224,std=nan/1/1", "three numbers"),
        ("size=224,sise=3", "sise"),
    ],
)
def test_parse_refuses_with_a_sentence(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Preprocessing.parse(text)


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        "size=224",
        {},
        {"size": True},
        {"size": 224.0},
        {"size": "224"},
        {"size": 224, "mean": "0.5"},
        {"size": 224, "mean": 0.5},
        {"size": 224, "mean": [1, 2]},
        {"size": 224, "std": [1, 1, None]},
        {"size": 224, "std": [[1], [1], [1]]},
        {"size": 224, "resize": None},
        {"size": 224, "resize": ["crop"]},
        {"size": 224, 1: 2, "a": 3},
    ],
)
def test_from_dict_refuses_what_makes_no_sense(values: object) -> None:
    with pytest.raises(UsageError, match="preprocessing"):
        Preprocessing.from_dict(values)


@given(valid)
def test_as_dict_and_from_dict_are_inverse(preprocessing: Preprocessing) -> None:
    values = preprocessing.as_dict()
    assert values["size"] == preprocessing.size
    assert values["mean"] == list(preprocessing.mean)
    again = Preprocessing.from_dict(values)
    assert again == preprocessing
    assert again.digest == preprocessing.digest


@given(valid, valid)
def test_digest_differs_exactly_where_a_value_does(one: Preprocessing, other: Preprocessing) -> None:
    assert (one.digest == other.digest) == (one.as_dict() == other.as_dict())


def test_digest_is_of_canonical_json_and_of_floats() -> None:
    # Written out by hand: sorted keys, no spaces. An index written by an earlier release must go on fitting.
    text = (
        '{"colour":"rgb","interpolation":"bicubic","mean":[0.0,0.0,0.0],"resize":"crop","size":7,"std":[1.0,1.0,1.0]}'
    )
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert Preprocessing(size=7, mean=(0, 0, 0), std=(1, 1, 1)).digest == expected
    assert Preprocessing(size=7, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).digest == expected


@pytest.mark.parametrize(
    ("resize", "digest"),
    [("crop", "08ca0bd1e2316c40"), ("crop_floor", "c4797404ed39fcac"), ("squash", "c6938195a5746980")],
)
def test_digests_of_earlier_releases_are_kept(resize: str, digest: str) -> None:
    """By sha256sum, of a text as above."""
    assert Preprocessing(size=224, resize=resize).digest == digest  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["size", "resize", "interpolation", "mean", "std"])
def test_every_field_is_in_the_digest(field: str) -> None:
    other = {"size": 225, "resize": "squash", "interpolation": "nearest", "mean": (0, 0, 0), "std": (1, 1, 1)}
    base = Preprocessing()
    assert dataclasses.replace(base, **{field: other[field]}).digest != base.digest


def test_is_frozen_and_says_what_it_is() -> None:
    preprocessing = Preprocessing.from_dict(FULL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        preprocessing.size = 3  # type: ignore[misc]
    assert str(preprocessing) == "260 px squash, bilinear, mean 0.5/0.25/0.125, std 1/0.5/0.25"
