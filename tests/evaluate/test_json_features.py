from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.evaluate import json_features
from geoinfer.evaluate.json_features import MalformedJsonError, read_members

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    members=st.lists(values, max_size=5),
    others=st.dictionaries(st.text(max_size=4).filter(lambda key: key != "features"), values, max_size=3),
    before=st.integers(0, 3),
    indent=st.sampled_from([None, 0, 2]),
    chunk=st.integers(1, 7),
)
def test_as_json_reads_it_however_it_is_cut(
    members: list[Any], others: dict[str, Any], before: int, indent: int | None, chunk: int
) -> None:
    items = [*others.items()]
    items.insert(min(before, len(items)), ("features", members))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_features, "_CHUNK", chunk)
        assert list(read_members(io.StringIO(json.dumps(dict(items), indent=indent)))) == members
        assert list(read_members(io.StringIO(json.dumps(members, indent=indent)))) == members


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("7", "begins neither"),
        ("[1, 2", "ends early, in line 1"),
        ("[1,\n{", "in line 2"),
        ('{"features": [1]', "ends early"),
        ('{"type": "FeatureCollection"}', "no `features`"),
        ('{"features": 7}', "is no array, in line 1"),
        ("[1]\n\n[2]", "more behind the end, in line 3"),
        ("[1 2]", "no JSON, or cut short, in line 1, at '2]'"),
        ("[1,\n2,\nx]", "in line 3, at 'x]'"),
        ("[" * 100_000, "brackets|no JSON|ends early"),
    ],
)
def test_what_is_malformed(text: str, message: str) -> None:
    with pytest.raises(MalformedJsonError, match=message):
        list(read_members(io.StringIO(text)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cut_short_anywhere_it_is_malformed(data: st.DataObject) -> None:
    text = json.dumps({"type": "x", "features": [{"a": [1, {"b": "]"}]}, {"c": None}], "n": 12})
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    with pytest.raises(MalformedJsonError):
        list(read_members(io.StringIO(cut)))


def test_lines_are_counted_over_pieces() -> None:
    text = "[\n" + "1,\n" * 1_000_000 + "x]"
    with pytest.raises(MalformedJsonError, match="in line 1000002, at 'x]'"):
        for _ in read_members(io.StringIO(text)):
            pass
