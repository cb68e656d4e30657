"""Pages made of invented photos, and a real browser to open them in."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import geoinfer.maps
from geoinfer.evaluate.page.build import build_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHROMIUM = "/usr/bin/chromium"
# Without these the browser itself asks its makers for updates and the like.
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
BANDS = [
    {"upto_km": 500, "colour_light": "#0b8563", "colour_dark": "#1fa884", "label": "≤ 500 km"},
    {"upto_km": 1500, "colour_light": "#f5d327", "colour_dark": "#ffee75", "label": "500–1500 km"},
    {"upto_km": 2500, "colour_light": "#ec7d18", "colour_dark": "#ff9a3d", "label": "1500–2500 km"},
    {"upto_km": None, "colour_light": "#9e0b2c", "colour_dark": "#e0304f", "label": "> 2500 km"},
]
CENTRES = [(48.0, 8.0), (40.0, -95.0), (-23.0, -47.0), (28.0, 78.0), (35.0, 137.0), (-33.0, 149.0), (6.0, 5.0)]


def some_points(count: int, *, kind: str = "evaluation", thumbs: int = 0) -> dict[str, list[Any]]:
    """Photos around seven places, three quarters of them answered nearby; every fiftieth has no answer."""
    rng = np.random.default_rng(5)
    truth = np.array(CENTRES)[rng.integers(0, len(CENTRES), count)] + rng.normal(0, 5, (count, 2))
    spread = rng.choice([0.05, 0.8, 6.0, 30.0], count)
    predicted = truth + rng.normal(0, 1, (count, 2)) * spread[:, None]
    predicted[:, 0] = np.clip(predicted[:, 0], -84, 84)
    predicted[:, 1] = (predicted[:, 1] + 180) % 360 - 180
    failed = np.arange(count) % 50 == 49
    lat1, lon1, lat2, lon2 = (np.radians(column) for column in (*truth.T, *predicted.T))
    h = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    error = 2 * 6371 * np.arcsin(np.sqrt(h))
    scores = np.clip(0.95 - error / 20000 + rng.normal(0, 0.08, count), 0, 1)

    def column(values: Any, digits: int) -> list[float | None]:
        return [
            None if gone else round(float(value), digits) for value, gone in zip(values, failed.tolist(), strict=True)
        ]

    evaluation = kind == "evaluation"
    return {
        "id": [f"photo-{i:05}.jpg" for i in range(count)],
        "path": [f"albums/{i % 7}/photo-{i:05}.jpg" for i in range(count)],
        "status": ["error" if gone else "ok" for gone in failed.tolist()],
        "lat": column(predicted[:, 0], 5),
        "lon": column(predicted[:, 1], 5),
        "true_lat": [round(v, 5) if evaluation else None for v in truth[:, 0].tolist()],
        "true_lon": [round(v, 5) if evaluation else None for v in truth[:, 1].tolist()],
        "error_km": column(error, 3) if evaluation else [None] * count,
        "score": column(scores, 4),
        "radius_km": column(error * 1.3 + 40, 1),
        "place": [f"Town {i % 97}, Country {i % 7}" for i in range(count)],
        "reason": ["cannot be decoded: not a picture" if gone else "" for gone in failed.tolist()],
        "sets": [[0, 1] if i % 3 == 0 else [0] for i in range(count)],
        "thumb": [i if i < thumbs else -1 for i in range(count)],
        "candidates": [
            [] if gone else [[f"like-{j}.jpg", round(lat + j, 3), round(lon - j, 3), 0.9 - 0.1 * j] for j in range(5)]
            for gone, (lat, lon) in zip(failed.tolist(), predicted.tolist(), strict=True)
        ],
    }  # fmt: skip


def some_data(count: int, *, kind: str = "evaluation", thumbs: int = 0) -> dict[str, Any]:
    """All that a page can show, with `count` photos."""
    evaluation = kind == "evaluation"
    row = ["ours", "5", "123.4", "1,234.5", "0.0", "12.5", "34.5", "56.7", "78.9"]
    table = {
        "title": "Global: error and accuracy",
        "columns": ["Model", "Best k", "Median (km)", "Mean (km)", *(f"Acc@{r}" for r in (1, 25, 200, 750, 2500))],
        "rows": [row, ["constant", "–", "4,567.8", "5,678.9", "0.0", "0.1", "1.2", "3.4", "5.6"]],
        "bold": [[False, *([True] * 8)], [False] * 9],
        "note": "Winners in bold. Baselines are never bold.",
    }
    land = Path(geoinfer.maps.__file__).with_name("countries-50m.json")
    return {
        "kind": kind,
        "title": "Errors of ours" if evaluation else "Where the photos may have been taken",
        "subtitle": f"{count:,} photos that nobody took.",
        "notice": "A demonstration: the photos are invented.",
        "version": "0.0.0",
        "warnings": ["Of 100 photos 7 have a reference within 1 km."],
        "summary": [
            {"label": "Photos", "value": f"{count:,}", "detail": "all of them"},
            {"label": "Median error", "value": "123 km", "detail": "95% interval 101 km to 145 km"},
        ],
        "tables": [table] if evaluation else [],
        "sets": ["Global", "Europe"] if evaluation else [],
        "bands": BANDS,
        "points": some_points(count, kind=kind, thumbs=thumbs),
        "thumbs": [picture((i * 37 % 256, i * 91 % 256, 120)) for i in range(thumbs)],
        "shown": count,
        "of": count,
        "figures": [{"title": "A figure", "png": picture((240, 240, 255), (640, 400), "png")}] if evaluation else [],
        "land": json.loads(land.read_bytes()),
    }


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (160, 120), kind: str = "jpeg") -> str:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


@pytest.fixture(name="some_data")
def some_data_fixture() -> Callable[..., dict[str, Any]]:
    return some_data


@dataclass
class Opened:
    """A page in the browser, and what went wrong or out of it since it was opened."""

    page: Any
    path: Path
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def map_view(self) -> dict[str, Any]:
        """Centre, zoom and size of the map."""
        return self.page.evaluate(
            "() => ({lat: testMap.getCenter().lat, lon: testMap.getCenter().lng, zoom: testMap.getZoom(),"
            " west: testMap.getBounds().getWest(), east: testMap.getBounds().getEast(),"
            " south: testMap.getBounds().getSouth(), north: testMap.getBounds().getNorth()})"
        )

    def look_at(self, lat: float, lon: float, zoom: float) -> None:
        self.page.evaluate(
            "([lat, lon, zoom]) => testMap.setView([lat, lon], zoom, {animate: false})", [lat, lon, zoom]
        )

    def where(self, lat: float, lon: float) -> tuple[float, float]:
        """The place on the screen of a place on the map, which is scrolled into view."""
        self.page.locator("#map").scroll_into_view_if_needed()
        x, y = self.page.evaluate(
            "([lat, lon]) => { const p = testMap.latLngToContainerPoint([lat, lon]);"
            " const b = testMap.getContainer().getBoundingClientRect(); return [b.left + p.x, b.top + p.y]; }",
            [lat, lon],
        )
        return x, y


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    driver = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; it is in the extra browser"
    )
    path = CHROMIUM if os.path.exists(CHROMIUM) else shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on this machine")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Opens a page of given data. Afterwards nothing may have been complained of, and nothing asked for."""
    opened: list[Opened] = []
    contexts: list[Any] = []

    def open_page(data: dict[str, Any] | bytes, *, width: int = 1280, height: int = 860, **options: Any) -> Opened:
        path = tmp_path / f"report-{len(opened)}.html"
        path.write_bytes(data if isinstance(data, bytes) else build_page(data))
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        one = Opened(page, path)
        opened.append(one)
        page.on("console", lambda message: one.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: one.complaints.append(f"uncaught: {error}"))
        # What is in the page itself ("data:") is not asked of anybody.
        page.on("request", lambda asked: None if asked.url.startswith("data:") else one.requests.append(asked.url))
        # The page keeps its map to itself; Leaflet tells of each that is made.
        page.add_init_script(
            "let own; Object.defineProperty(window, 'L', { configurable: true, get: () => own,"
            " set(library) { own = library; library.Map.addInitHook(function () { window.testMap = this; }); } });"
        )
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=true]", timeout=60_000)
        return one

    yield open_page
    for context in contexts:
        context.close()
    for one in opened:
        assert one.complaints == []
        assert one.requests == [one.path.as_uri()]
