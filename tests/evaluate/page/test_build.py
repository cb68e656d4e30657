from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from geoinfer.evaluate.page import build
from geoinfer.evaluate.page.build import build_page

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(build.__file__).parent
NASTY = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>{{data}}&amp;\udce9\u2028.jpg"

# As the packages leaflet 1.9.4 and topojson-client 3.1.0 of the npm registry have them.
VENDOR = {
    "leaflet/LICENSE": "53e8dc25862014e4324741ca18fbe3611e11d42ef69f59f86ea8c5389647d4cb",
    "leaflet/leaflet.css": "a7837102824184820dfa198d1ebcd109ff6d0ff9a2672a074b9a1b4d147d04c6",
    "leaflet/leaflet.js": "db49d009c841f5ca34a888c96511ae936fd9f5533e90d8b2c4d57596f4e5641a",
    "topojson-client/LICENSE": "4c4d15b635e04e691825a76db7d33f7f2033b55669a7430011694f31e6c65999",
    "topojson-client/topojson-client.min.js": "25cd02ae486cc5063e0215a4e4cfb15de83700c87ac48bac4d57dc6aaf3ebb89",
}


class Elements(HTMLParser):
    """Every start tag with its attributes, and the texts of scripts and styles, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside in {"script", "style"}:
            self.texts.append((self._inside, data))
        self._inside = ""


@pytest.fixture
def elements(some_data: Callable[..., dict[str, Any]]) -> Elements:
    return Elements(build_page(some_data(20, thumbs=3)).decode())


def test_the_same_data_makes_the_same_page(some_data: Callable[..., dict[str, Any]]) -> None:
    data = some_data(20, thumbs=3)
    assert build_page(data) == build_page(copy.deepcopy(data))


def test_nothing_in_the_page_leads_out_of_it(elements: Elements) -> None:
    for tag, attributes in elements.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
        assert not [name for name in attributes if name.startswith("on")], tag
    for kind, text in elements.texts:
        if kind == "style":
            assert "url(" not in text
            assert "@import" not in text
        assert "sourceMappingURL" not in text


def test_the_policy_allows_only_what_is_in_the_page(elements: Elements) -> None:
    metas = [attributes for tag, attributes in elements.tags if tag == "meta"]
    policy = next(meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data:"
    assert directives["base-uri"] == directives["form-action"] == "'none'"
    assert "unsafe" not in policy
    assert "http" not in policy
    texts = [text for kind, text in elements.texts if kind == "script" and not text.startswith('{"')]
    assert len(texts) == 4
    wanted = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    assert directives["script-src"].split() == [f"'sha256-{digest}'" for digest in wanted]
    (style,) = [text for kind, text in elements.texts if kind == "style"]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert directives["style-src"] == f"'sha256-{digest}'"


def test_text_out_of_file_names_stays_text(some_data: Callable[..., dict[str, Any]]) -> None:
    data = some_data(3)
    plain = Elements(build_page(data).decode())
    data["title"] = data["notice"] = data["points"]["id"][1] = data["points"]["reason"][1] = NASTY
    page = build_page(data).decode()
    nasty = Elements(page)
    assert [tag for tag, _ in nasty.tags] == [tag for tag, _ in plain.tags]
    (packed,) = [text for kind, text in nasty.texts if kind == "script" and text.startswith('{"')]
    assert json.loads(packed) == data
    assert "<" not in packed


def test_the_licences_are_in_the_page(elements: Elements, some_data: Callable[..., dict[str, Any]]) -> None:
    page = build_page(some_data(1)).decode()
    assert "Copyright (c) 2010-2023, Volodymyr Agafonkin" in page
    assert "Copyright 2012-2019 Michael Bostock" in page
    assert page.count("THIS SOFTWARE") >= 2


def test_an_empty_page_and_one_without_ground(some_data: Callable[..., dict[str, Any]]) -> None:
    data = some_data(0)
    data["land"] = None
    assert b'"land":null' in build_page(data)


def test_data_that_no_page_can_show_is_refused(some_data: Callable[..., dict[str, Any]]) -> None:
    data = some_data(2)
    data["points"]["lat"][0] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        build_page(data)
    data = some_data(2)
    data["points"]["path"].pop()
    with pytest.raises(ValueError, match=r"differ in length.*'path': 1"):
        build_page(data)


@pytest.mark.parametrize("name", sorted(VENDOR))
def test_the_libraries_are_as_published(name: str) -> None:
    assert hashlib.sha256((HERE / "vendor" / name).read_bytes()).hexdigest() == VENDOR[name]


def test_nothing_else_is_vendored() -> None:
    found = {path.relative_to(HERE / "vendor").as_posix() for path in (HERE / "vendor").rglob("*") if path.is_file()}
    assert found == set(VENDOR)


@pytest.mark.parametrize("path", sorted((HERE / "js").glob("*.js")), ids=lambda path: path.name)
def test_the_pages_own_code_makes_no_markup_and_asks_for_nothing(path: Path) -> None:
    code = path.read_text(encoding="utf-8")
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
    asks = r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|EventSource|\bimport\(|\beval\(|new Function"
    assert not re.search(f"{forbidden}|{asks}", code)
    # Leaflet makes markup of strings in these; elements only.
    assert not re.search(r"bindPopup|bindTooltip|setContent", code)


def test_every_script_is_in_the_page() -> None:
    assert {path.stem for path in (HERE / "js").glob("*.js")} == {*build._CODE, "theme"}
