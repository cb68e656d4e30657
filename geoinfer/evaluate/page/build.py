"""Puts the page together: one HTML file that holds its data, its style, its code and the libraries that it uses.

The template is `page.html`, the style `page.css`, the code `js/`, and what others wrote `vendor/`, byte for byte as it
was published and with its licence. The page's content security policy names the SHA-256 of each script and style, and
allows pictures out of the page itself alone: no browser that keeps to it makes any request, and nothing that stands in
a file's name can run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any, Final

_HERE: Final = Path(__file__).parent

# In this order, in one function, so that they share names with each other and with nothing else.
_CODE: Final = ("dom", "geodesy", "data", "filter", "land", "points", "popup", "map", "list", "tables", "main")

_LIBRARIES: Final = ("leaflet/leaflet.js", "topojson-client/topojson-client.min.js")

_LICENCES: Final = (
    ("Leaflet 1.9.4 (BSD 2-Clause), the map", "leaflet/LICENSE"),
    ("topojson-client 3.1.0 (ISC), the outlines of the land", "topojson-client/LICENSE"),
)


def build_page(data: dict[str, Any]) -> bytes:
    """Makes the page that shows `data`; the same data makes the same bytes.

    Args:
        data: what the page shows, ready for JSON; `geoinfer.evaluate.page.data` makes it. `title` and `points` must be
            there, and of `points` every column has the same length. Strings may hold lone surrogates, as names of
            files that are not UTF-8 do.

    Returns:
        An HTML file in UTF-8.

    Raises:
        ValueError: columns of different lengths, or a number that JSON cannot hold (NaN, infinity).
    """
    lengths = {name: len(column) for name, column in data["points"].items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of a page's points differ in length: {lengths}.")
    style = _without_pictures(_read("vendor/leaflet/leaflet.css")) + _read("page.css")
    theme = _read("js/theme.js")
    scripts = [_without_source_map(_read(f"vendor/{name}")) for name in _LIBRARIES]
    code = "\n".join(_read(f"js/{name}.js") for name in _CODE)
    scripts.append(f'"use strict";\n(() => {{\n{code}}})();\n')
    # As the HTML standard has it: in a script, only "<" can begin what ends it. In JSON it stands in strings alone.
    packed = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "title": html.escape(str(data["title"])),
        "policy": _policy([theme, *scripts], style),
        "style": style,
        "theme": theme,
        "licences": "\n".join(_licence(name, path) for name, path in _LICENCES),
        "data": packed,
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # One pass: what is filled in is never searched for places to fill.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("page.html"))
    return page.encode("utf-8", "replace")


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _without_source_map(script: str) -> str:
    """A browser's debugger would ask for the file that the last line names."""
    return re.sub(r"\n//# sourceMappingURL=.*\s*\Z", "\n", script)


def _without_pictures(style: str) -> str:
    """Leaflet's style names pictures of markers and of a button that this page has not."""
    return re.sub(r"url\([^)]*\)", "none", style)


def _policy(scripts: list[str], style: str) -> str:
    """The content security policy: everything is forbidden but the page's own scripts, style and embedded pictures."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(source, scripts))}",
            f"style-src {source(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _licence(name: str, path: str) -> str:
    text = html.escape(_read(f"vendor/{path}").strip())
    return f"<details><summary>{html.escape(name)}</summary><pre>{text}</pre></details>"
