"""The page in a real browser. After each test nothing may stand in the console, and nothing may have been asked for."""

from __future__ import annotations

import itertools
import math
import re
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from geoinfer.evaluate.page import build
from geoinfer.geodesy import haversine_km

pytest.importorskip("playwright", reason="playwright is not installed; it is in the extra browser")

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

NASTY = (
    "<img src=x onerror=\"document.title='run'\">.jpg",
    "</script><script>document.title='run'</script>.jpg",
    "{{data}} javascript:document.title='run' &lt;b&gt;",
    "\u202egpj.exe",
)


def number(text: str) -> float:
    return float(re.search(r"-?[\d,.]+", text)[0].replace(",", ""))


def live(page: Any) -> dict[str, str]:
    """The figures of the photos shown, by their labels."""
    return dict(
        page.locator("#live-figures > div").evaluate_all(
            "divs => divs.map(d => [d.querySelector('dt').textContent, d.querySelector('dd').textContent])"
        )
    )


def shown(page: Any) -> int:
    return int(number(page.locator("#live-title").text_content()))


def points(*places: tuple[float, float, float | None, float | None], **more: list[Any]) -> dict[str, list[Any]]:
    """Photos of (true latitude, true longitude, latitude, longitude)."""
    columns: dict[str, list[Any]] = {
        "id": [f"photo {i}" for i in range(len(places))],
        "path": [""] * len(places),
        "status": ["ok" if place[2] is not None else "missing" for place in places],
        "true_lat": [place[0] for place in places],
        "true_lon": [place[1] for place in places],
        "lat": [place[2] for place in places],
        "lon": [place[3] for place in places],
        "error_km": [
            None if place[2] is None else float(haversine_km([place[:2]], [place[2:]])[0]) for place in places
        ],
    }
    for name in ("score", "radius_km"):
        columns[name] = [None] * len(places)
    for name, empty in (("place", ""), ("reason", ""), ("thumb", -1)):
        columns[name] = [empty] * len(places)
    columns["sets"] = [[0] for _ in places]
    columns["candidates"] = [[] for _ in places]
    return columns | more


def test_figures_of_what_is_shown_follow_every_filter(open_page: Any, some_data: Any) -> None:
    data = some_data(1000)
    data["points"]["id"][7] = "a-needle.jpg"
    page = open_page(data).page
    columns = data["points"]

    def check(rows: list[int]) -> None:
        errors = [columns["error_km"][i] for i in rows if columns["error_km"][i] is not None]
        assert shown(page) == len(rows)
        figures = live(page)
        assert int(number(figures["answered"])) == len(errors)
        assert number(figures["median error"]) == pytest.approx(statistics.median(errors), rel=0.01)
        assert number(figures["mean error"]) == pytest.approx(statistics.fmean(errors), rel=0.01)
        for radius in (1, 25, 200, 750, 2500):
            wanted = 100 * sum(error < radius for error in errors) / len(errors)
            assert number(figures[f"< {radius:,} km"]) == pytest.approx(wanted, abs=0.051)

    every = list(range(1000))
    check(every)
    page.select_option("#set", label="Europe (334)")
    europe = [i for i in every if 1 in columns["sets"][i]]
    check(europe)
    page.locator(".band", has_text="> 2500 km").click()
    check([i for i in europe if not (columns["error_km"][i] or 0) > 2500])
    page.locator("#reset").click()
    check(every)
    page.select_option("#status", "ok")
    check([i for i in every if columns["status"][i] == "ok"])
    page.locator("#reset").click()
    page.locator("#score-low").focus()
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(100)
    known = [score for score in columns["score"] if score is not None]
    lowest = min(known) + 0.6 * (max(known) - min(known))
    check([i for i in every if columns["score"][i] is not None and columns["score"][i] >= lowest])
    page.locator("#reset").click()
    page.locator("#search").fill("NEEDLE")
    page.wait_for_timeout(300)
    check([7])
    assert page.locator("#list-body tr").count() == 1
    page.locator("#search").fill("no such photo")
    page.wait_for_timeout(300)
    assert shown(page) == 0
    assert page.locator("#list-empty").is_visible()
    page.locator("#list-reset").click()
    check(every)


def test_an_error_of_exactly_a_radius_is_within_it_only_where_the_convention_says_so(
    open_page: Any, some_data: Any
) -> None:
    data = some_data(0)
    data["points"] = points((0, 0, 0, 1), (0, 0, 0, 1), error_km=[25, 24.9])
    assert live(open_page(data).page)["< 25 km"] == "50.0%"
    data["convention"] = {"name": "geoclip", "inclusive": True}
    assert live(open_page(data).page)["≤ 25 km"] == "100.0%"


def test_bands_count_what_they_would_show(open_page: Any, some_data: Any) -> None:
    data = some_data(1000)
    page = open_page(data).page
    errors = data["points"]["error_km"]
    edges = [(-1, 500), (500, 1500), (1500, 2500), (2500, math.inf)]
    wanted = [sum(error is not None and low < error <= high for error in errors) for low, high in edges] + [20]
    counts = page.locator(".band-count")
    assert [int(number(text)) for text in counts.all_text_contents()] == wanted
    first = page.locator(".band").first
    first.focus()
    page.keyboard.press("Space")
    assert first.get_attribute("aria-pressed") == "false"
    assert [int(number(text)) for text in counts.all_text_contents()] == wanted
    assert shown(page) == 1000 - wanted[0]


def test_hover_shows_a_photo_and_a_click_keeps_it(open_page: Any, some_data: Any) -> None:
    data = some_data(200, thumbs=200)
    opened = open_page(data)
    page, columns = opened.page, data["points"]
    lat, lon = columns["true_lat"][3], columns["true_lon"][3]
    opened.look_at(lat, lon, 9)
    x, y = opened.where(lat, lon)
    card = page.locator(".card")
    page.mouse.move(x, y)
    card.wait_for(state="visible")
    assert card.locator(".card-name").text_content() == columns["id"][3]
    assert card.locator("img").get_attribute("src") == data["thumbs"][3]
    text = card.inner_text()
    for words in ("Error", "Truth", "Prediction", "Score", "Radius", "Path", columns["place"][3], "Most similar"):
        assert words in text
    assert f"{abs(lat):.4f}°" in text
    assert f"{abs(columns['lat'][3]):.4f}°" in text
    assert card.locator(".candidates li").count() == 5
    assert page.locator("path.way").count() == 1
    assert page.locator(".answer-mark").count() == 1
    page.mouse.move(x + 200, y + 120)
    card.wait_for(state="hidden")
    assert page.locator("path.way").count() == 0
    page.mouse.click(x, y)
    card.wait_for(state="visible")
    page.mouse.move(x - 200, y + 120)
    page.wait_for_timeout(100)
    assert card.is_visible()
    page.get_by_role("button", name="Close").click()
    assert card.is_hidden()
    assert page.evaluate("document.activeElement.id") == "map"


def test_of_many_tables_those_of_one_set_are_shown(open_page: Any, some_data: Any) -> None:
    data = some_data(40)
    (table,) = data["tables"]
    data["tables"] = [table | {"title": f"{name} {n}", "set": name} for n in range(2) for name in ("Global", "Europe")]
    data["tables"].append(table | {"title": "of none"})
    data["table_notes"] = [NASTY[0], "said once"]
    page = open_page(data).page
    chosen = page.locator("#tables-set")

    def titles() -> list[str]:
        return page.locator("#tables-list figcaption:visible").all_text_contents()

    assert titles() == ["Global 0", "Global 1", "of none"]
    page.select_option("#set", label="Europe (14)")
    assert chosen.input_value() == "Europe"
    assert titles() == ["Europe 0", "Europe 1", "of none"]
    chosen.select_option("all sets")
    assert len(titles()) == 5
    page.locator("#reset").click()
    assert titles() == ["Global 0", "Global 1", "of none"]
    assert page.locator("#tables-notes li").all_text_contents() == data["table_notes"]
    page = open_page(some_data(40)).page
    assert page.locator("#tables-set-field").is_hidden()


def test_photos_at_one_place_are_gone_through(open_page: Any, some_data: Any) -> None:
    data = some_data(0)
    data["points"] = points((10, 20, 11, 21), (10, 20, 12, 22), (10, 20, 13, 23))
    opened = open_page(data)
    opened.look_at(10, 20, 5)
    x, y = opened.where(10, 20)
    opened.page.mouse.click(x, y)
    stack = opened.page.locator(".card-stack")
    names = []
    for _ in range(3):
        names.append(opened.page.locator(".card-name").text_content())
        opened.page.get_by_role("button", name="Next photo here").click()
    assert sorted(names) == ["photo 0", "photo 1", "photo 2"]
    assert "1 of 3 here" in stack.text_content()


def test_the_keyboard_alone_reaches_and_works_everything(open_page: Any, some_data: Any) -> None:
    opened = open_page(some_data(200, thumbs=5))
    page = opened.page
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            "() => { const e = document.activeElement; const s = getComputedStyle(e);"
            " return [e.id || e.className || e.tagName, s.outlineStyle !== 'none' || e.type === 'range']; }"
        )
        reached.append(focus[0])
        if focus[0] == "BODY":
            break
        assert focus[1], f"{focus[0]} does not show that it has the focus"
    order = ["skip", "theme", "set", "status", "score-low", "score-high", "search", "reset", "band"]
    order += [reached[reached.index("map")], "sort", "row-open", "page-next", "enlarge", "table-scroll"]
    assert [name for name in dict.fromkeys(reached) if name in order] == order
    page.locator("#map").focus()
    before = opened.map_view()
    page.keyboard.press("+")
    page.wait_for_timeout(600)
    assert opened.map_view()["zoom"] > before["zoom"]
    before = opened.map_view()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(600)
    assert opened.map_view()["lon"] > before["lon"]
    page.keyboard.press("Enter")
    card = page.locator(".card")
    assert card.is_visible()
    assert page.locator("#map-status").text_content() != ""
    name = card.locator(".card-name").text_content()
    page.keyboard.press("n")
    assert card.locator(".card-name").text_content() != name
    page.keyboard.press("Escape")
    assert card.is_hidden()


def test_the_list_is_sorted_and_walked_by_keys(open_page: Any, some_data: Any) -> None:
    data = some_data(130)
    opened = open_page(data)
    page = opened.page
    columns = data["points"]
    error = page.locator("th[data-key=error]")
    assert error.get_attribute("aria-sort") == "descending"

    def first_names() -> list[str]:
        return page.locator("#list-body .name").all_text_contents()

    answered = sorted(
        (i for i in range(130) if columns["error_km"][i] is not None), key=lambda i: columns["error_km"][i]
    )
    assert first_names() == [columns["id"][i] for i in answered[::-1][:50]]
    error.locator("button").focus()
    page.keyboard.press("Enter")
    assert error.get_attribute("aria-sort") == "ascending"
    assert first_names() == [columns["id"][i] for i in answered[:50]]
    page.locator("#page-last").click()
    assert page.locator("#page-text").text_content() == "101–130 of 130"
    assert sorted(first_names()[-2:]) == ["photo-00049.jpg", "photo-00099.jpg"]
    page.locator("th[data-key=id] button").click()
    assert error.get_attribute("aria-sort") is None
    assert first_names()[0] == "photo-00000.jpg"
    page.locator(".row-open").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent").startswith("photo-00001.jpg")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent").startswith("photo-00129.jpg")
    assert page.locator("#page-text").text_content() == "101–130 of 130"
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.locator(".card-name").text_content() == "photo-00000.jpg"
    page.wait_for_timeout(1500)
    view = opened.map_view()
    assert view["south"] < columns["true_lat"][0] < view["north"]
    assert view["west"] < columns["true_lon"][0] < view["east"]
    assert page.evaluate("document.activeElement.className") == "row-open"
    assert page.locator("tr[aria-current=true]").count() == 1


def test_a_click_on_a_row_flies_to_truth_and_answer(open_page: Any, some_data: Any) -> None:
    data = some_data(0)
    data["points"] = points((48.1, 11.6, 35.7, 139.7), (-33.9, 151.2, -34.0, 151.0))
    opened = open_page(data)
    opened.page.locator("#list-body tr", has_text="photo 1").locator("td").first.click()
    opened.page.wait_for_timeout(1500)
    view = opened.map_view()
    assert view["zoom"] == pytest.approx(7)
    assert view["south"] < -34 < view["north"]
    assert view["west"] < 151 < view["east"]
    opened.page.locator("#list-body tr", has_text="photo 0").locator("td").first.click()
    opened.page.wait_for_timeout(1500)
    view = opened.map_view()
    assert view["west"] < 11.6 < 139.7 < view["east"]


def test_the_theme_follows_the_system_and_the_readers_choice(open_page: Any, some_data: Any) -> None:
    page = open_page(some_data(50), color_scheme="dark").page
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    button = page.locator("#theme")
    assert button.text_content() == "Light theme"
    button.click()
    light = page.evaluate(ground)
    assert light != dark
    assert button.text_content() == "Dark theme"
    assert page.evaluate("localStorage.getItem('geoinfer-theme')") == "light"
    other = open_page(some_data(50)).page
    assert other.evaluate(ground) == light
    other.emulate_media(color_scheme="dark")
    other.wait_for_timeout(300)
    assert other.evaluate(ground) == dark


def test_text_out_of_file_names_never_becomes_markup(open_page: Any, some_data: Any) -> None:
    data = some_data(len(NASTY), thumbs=1)
    data["sets"] = ["Global", NASTY[0]]
    columns = data["points"]
    for name in ("id", "path", "place", "reason", "status"):
        columns[name] = list(NASTY)
    columns["candidates"] = [[[name, 1.0, 2.0, 0.5]] for name in NASTY]
    for name in ("title", "subtitle", "notice", "version"):
        data[name] = NASTY[0]
    data["warnings"] = list(NASTY)
    data["summary"] = [{"label": text, "value": text, "detail": text} for text in NASTY]
    data["tables"][0] |= {
        "title": NASTY[0],
        "columns": [NASTY[1]],
        "rows": [[NASTY[0]]],
        "bold": [[True]],
        "note": NASTY[1],
    }
    data["figures"][0]["title"] = NASTY[0]
    page = open_page(data).page
    for row in range(len(NASTY)):
        page.locator("#list-body tr").nth(row).click()
        assert page.locator(".card-name").text_content() in NASTY
    page.locator(".enlarge").click()
    page.wait_for_timeout(300)
    assert page.title() == NASTY[0]
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script").count() == 5
    assert page.locator("[onerror]").count() == 0
    assert set(page.locator("#list-body .name").all_text_contents()) == set(NASTY)
    assert page.locator("#warnings-list li").all_text_contents() == list(NASTY)


def test_the_policy_stops_what_would_run_or_ask(open_page: Any, some_data: Any) -> None:
    opened = open_page(some_data(3))
    stopped = opened.page.evaluate(
        """async () => {
            const stopped = [];
            document.addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
            document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.ran = 1'>");
            document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 2" }));
            await fetch("https://example.org/").catch(() => 0);
            await new Promise((done) => setTimeout(done, 300));
            return [stopped.sort(), window.ran ?? 0];
        }"""
    )
    assert stopped == [["connect-src", "img-src", "script-src-attr", "script-src-elem"], 0]
    # The browser names in the console all that it stopped, and reports the picture as asked for.
    opened.complaints.clear()
    del opened.requests[1:]


def test_predictions_without_truth(open_page: Any, some_data: Any) -> None:
    data = some_data(300, kind="predictions", thumbs=300)
    opened = open_page(data)
    page, columns = opened.page, data["points"]
    assert page.locator("th[data-key=error]").count() == 0
    assert page.locator("th[data-key=radius]").get_attribute("aria-sort") == "descending"
    assert page.locator("#tables").is_hidden()
    assert page.locator("#figures").is_hidden()
    assert page.locator("#set-field").is_hidden()
    known = [radius for radius in columns["radius_km"] if radius is not None]
    figures = live(page)
    assert int(number(figures["with a radius"])) == len(known)
    assert number(figures["median radius"]) == pytest.approx(statistics.median(known), rel=0.01)
    opened.look_at(columns["lat"][3], columns["lon"][3], 9)
    page.mouse.move(*opened.where(columns["lat"][3], columns["lon"][3]))
    page.locator(".card").wait_for(state="visible")
    text = page.locator(".card").inner_text()
    assert "Radius" in text
    assert "Truth" not in text
    assert "Error" not in text
    assert page.locator("path.radius").count() == 1
    assert page.locator("path.way").count() == 0


def test_across_the_antimeridian_the_short_way_is_drawn(open_page: Any, some_data: Any) -> None:
    data = some_data(0)
    data["points"] = points((-17.0, 179.0, -18.0, -178.0), (-17.5, -179.5, -16.0, 178.0))
    opened = open_page(data)
    view = opened.map_view()
    assert view["east"] - view["west"] < 90  # both are in view, though one is at the other end of the numbers
    for lat, lon, name in ((-17.0, 179.0, "photo 0"), (-17.5, -179.5, "photo 1"), (-17.5, 180.5, "photo 1")):
        opened.look_at(-17, 180 if lon > 0 else -180, 6)
        opened.page.mouse.move(*opened.where(lat, lon))
        opened.page.locator(".card").wait_for(state="visible")
        assert opened.page.locator(".card-name").text_content() == name
        box = opened.page.locator("path.way").bounding_box()
        assert box["width"] < 3.5 * 256 * 2**6 / 360
        opened.page.mouse.move(5, 5)
        opened.page.locator(".card").wait_for(state="hidden")


def test_poles_are_drawn_at_the_edge_and_the_page_says_so(open_page: Any, some_data: Any) -> None:
    data = some_data(0)
    data["points"] = points((90, 0, -90, 10), (88, 30, 87, 40), (0, 0, None, None), radius_km=[9000, 800, None])
    opened = open_page(data)
    assert "2 photos are beyond 85°" in opened.page.locator("#map-note").text_content()
    for row in range(3):
        opened.page.locator("#list-body tr").nth(row).click()
        opened.page.wait_for_timeout(1200)
    opened.page.locator("#list-body tr", has_text="photo 1").click()
    assert "at the map's edge" in opened.page.locator(".card").inner_text()
    assert "88.0000° N" in opened.page.locator(".card").inner_text()


@pytest.mark.parametrize("kind", ["evaluation", "predictions"])
@pytest.mark.parametrize("count", [0, 1])
def test_no_photo_and_one(open_page: Any, some_data: Any, kind: str, count: int) -> None:
    data = some_data(count, kind=kind)
    data["sets"] = ["Global"]
    page = open_page(data).page
    assert shown(page) == count
    assert page.locator("#set-field").is_hidden()
    assert page.locator("#score-field").is_hidden()
    page.locator("#map").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("n")
    assert page.locator(".card").is_visible() == bool(count)


def test_nothing_is_known_but_places(open_page: Any, some_data: Any) -> None:
    """No scores, radii, pictures, candidates, ground, bands; some without a prediction, one without truth."""
    data = {"kind": "evaluation", "title": "bare", "points": points((1, 2, 3, 4), (5, 6, None, None), (7, 8, 9, 10))}
    data["points"]["true_lat"][2] = data["points"]["true_lon"][2] = data["points"]["error_km"][2] = None
    page = open_page(data).page
    assert "1 photo is in the list only" in page.locator("#map-note").text_content()
    for row in range(3):
        page.locator("#list-body tr").nth(row).click()
        assert page.locator(".card").is_visible()


def test_on_paper_it_is_light_and_without_controls(open_page: Any, some_data: Any, tmp_path: Path) -> None:
    page = open_page(some_data(100), color_scheme="dark").page
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    for control in ("#theme", "#search", "#pager", "#contents"):
        assert page.locator(control).is_hidden()
    for content in ("#summary-cards", "#map", "#list", "#tables-list table"):
        assert page.locator(content).is_visible()
    assert page.pdf().startswith(b"%PDF")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_on_a_telephone_nothing_is_wider_than_the_screen(open_page: Any, some_data: Any) -> None:
    page = open_page(some_data(200, thumbs=20), width=360, height=740, has_touch=True).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#list-body tr").nth(2).tap()
    card = page.locator(".card").bounding_box()
    frame = page.locator("#map").bounding_box()
    assert frame["x"] <= card["x"]
    assert card["x"] + card["width"] <= frame["x"] + frame["width"]


@pytest.mark.parametrize(
    "way",
    [(-33.9, 151.2, 51.5, -0.1), (51.5, -0.1, -33.9, 151.2), (-54.8, -68.3, 71.3, 25.8), (71.3, 25.8, -54.8, -68.3),
     (0.0, 0.0, 0.0, 179.0), (-41.3, 174.8, 40.4, -3.7)],
)  # fmt: skip
def test_on_a_telephone_the_truth_is_above_the_card(open_page: Any, some_data: Any, way: tuple[float, ...]) -> None:
    """Both ends of these ways do not fit there."""
    data = some_data(0)
    data["points"] = points(way, (-34.6, -58.4, -34.9, -57.9))
    opened = open_page(data, width=390, height=844, has_touch=True)
    page = opened.page
    for name, (lat, lon) in (("photo 0", way[:2]), ("photo 1", (-34.6, -58.4)), ("photo 0", way[:2])):
        page.locator("#list-body tr", has_text=name).locator("td").first.tap()
        page.wait_for_timeout(1500)
        ring = page.locator("path.chosen-ring").bounding_box()
        x, y = ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2
        frame, card = page.locator("#map").bounding_box(), page.locator(".card").bounding_box()
        assert frame["x"] < x < frame["x"] + frame["width"], (name, lat, lon)
        assert frame["y"] < y < card["y"], (name, lat, lon)


def test_nothing_moves_for_those_who_asked_for_that(open_page: Any, some_data: Any) -> None:
    """Where the map is right after a click it stays, and it was on no way there; without the wish it flies."""
    data = some_data(0)
    data["points"] = points((48.1, 11.6, 35.7, 139.7), (-33.9, 151.2, -34.0, 151.0), (64.1, -21.9, 64.0, -22.0))
    for wish in ("reduce", "no-preference"):
        page = open_page(data, reduced_motion=wish).page
        moves = page.evaluate(
            """async () => {
                const click = (selector) => () => document.querySelector(selector).click();
                const press = (code) => () => {
                    const map = testMap.getContainer();
                    map.focus();
                    const event = new KeyboardEvent("keydown", { key: code, code, bubbles: true });
                    Object.defineProperty(event, "keyCode", { value: 39 });
                    map.dispatchEvent(event);
                };
                const place = () => [testMap.getCenter().lat, testMap.getCenter().lng, testMap.getZoom()];
                const moves = {};
                const watch = async (name, work) => {
                    let animated = 0;
                    const see = () => animated++;
                    testMap.on("zoomanim", see);
                    const start = place();
                    work();
                    const first = place();
                    await new Promise((done) => setTimeout(done, 1500));
                    testMap.off("zoomanim", see);
                    const same = (a, b) => a.every((value, i) => Math.abs(value - b[i]) < 1e-6);
                    moves[name] = { moved: !same(start, place()), at_once: same(first, place()) && !animated };
                };
                await watch("row", click("#list-body tr:nth-child(2) td"));
                await watch("another row", click("#list-body tr:nth-child(3) td"));
                await watch("key", press("ArrowRight"));
                await watch("button", click(".leaflet-control-zoom-out"));
                return moves;
            }"""
        )
        assert all(move["moved"] for move in moves.values()), moves
        assert {move["at_once"] for move in moves.values()} == {wish == "reduce"}, moves


def test_a_notice_is_written_out_and_its_commands_set_apart(open_page: Any, some_data: Any) -> None:
    data = some_data(3)
    data["notice"] = "Run `geoinfer info <b>x</b>` first; one ` alone stays."
    data["warnings"] = ["`sequence` is empty."]
    page = open_page(data).page
    assert page.locator("#notice").text_content() == "Run geoinfer info <b>x</b> first; one ` alone stays."
    assert page.locator("#notice code").all_text_contents() == ["geoinfer info <b>x</b>"]
    assert page.locator("#warnings-list code").all_text_contents() == ["sequence"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page: Any, some_data: Any, theme: str) -> None:
    """WCAG 2 AA, 1.4.3: 4.5 to 1, of every piece of text that is seen, against the ground that is behind it."""
    page = open_page(some_data(100), color_scheme=theme).page
    page.locator(".band").first.click()
    page.locator("#list-body tr").nth(1).click()
    page.wait_for_timeout(400)
    weak = page.evaluate(
        """() => {
            const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
            const channel = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
            const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
            const ground = (element) => {
                for (let e = element; e; e = e.parentElement) {
                    const colour = numbers(getComputedStyle(e).backgroundColor);
                    if (colour.length === 3 || colour[3] === 1) return colour;
                }
                return [255, 255, 255];
            };
            const weak = [];
            for (const element of document.querySelectorAll("body *")) {
                const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
                if (!own || element.disabled || !element.checkVisibility() || element.closest("script")) continue;
                if (element.closest(".leaflet-disabled")) continue;
                const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
                const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
                if (ratio < 4.5) weak.push([element.className, element.tagName, element.textContent, ratio]);
            }
            return weak;
        }"""
    )
    assert weak == []


def test_everything_that_is_worked_has_a_name(open_page: Any, some_data: Any) -> None:
    page = open_page(some_data(60, thumbs=5)).page
    page.locator("#list-body tr").nth(1).click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, a[href], [tabindex='0'], img:not([alt])")]
            .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()
                || e.getAttribute("aria-labelledby") || e.alt))
            .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    identities = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(identities) == len(set(identities))


def test_what_is_drawn_stays_at_its_place_until_the_next_frame_draws_it_anew(open_page: Any, some_data: Any) -> None:
    opened = open_page(some_data(300))
    opened.look_at(48, 8, 4)
    moved = opened.page.evaluate(
        """async () => {
            const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
            const place = [48, 8];
            const canvases = [...document.querySelectorAll("#map canvas")];
            const boxes = () => {
                const map = testMap.getContainer().getBoundingClientRect();
                return canvases.map((canvas) => {
                    const { x, y, width, height } = canvas.getBoundingClientRect();
                    return { x: x - map.x - testMap.getContainer().clientLeft,
                             y: y - map.y - testMap.getContainer().clientTop, width, height };
                });
            };
            const pictures = () => canvases.map((canvas) => canvas.toDataURL());
            await frame();
            const first = { boxes: boxes(), pictures: pictures() };
            const views = [[[48, 8], 5], [[47, 9], 4], [[30, 40], 4], [[48, 8], 2.5], [[48, 8], 4]];
            const off = [];
            for (const [centre, zoom] of views) {
                const old = boxes();
                const at = testMap.latLngToContainerPoint(place);
                testMap.setView(centre, zoom, { animate: false });
                const now = testMap.latLngToContainerPoint(place);
                boxes().forEach((box, i) => {
                    const x = box.x + ((at.x - old[i].x) / old[i].width) * box.width;
                    const y = box.y + ((at.y - old[i].y) / old[i].height) * box.height;
                    off.push(Math.hypot(x - now.x, y - now.y));
                });
                await frame();
            }
            const last = { boxes: boxes(), pictures: pictures() };
            const same = JSON.stringify(first) === JSON.stringify(last);
            return { count: canvases.length, off, same, blank: new Set(first.pictures).size < 2 };
        }"""
    )
    assert moved["count"] == 2
    assert max(moved["off"]) < 2, moved["off"]
    assert moved["same"]
    assert not moved["blank"]


@pytest.mark.parametrize("count", [10_000, 20_000])
def test_many_points_stay_smooth(
    open_page: Any, some_data: Any, count: int, record_property: Callable[[str, object], None]
) -> None:
    """What each movement has to do is counted, and its script timed apart from the browser's own drawing.

    A busy machine adds time to some of the movements, work of the page's own to all: so the quickest quarter is judged
    strictly, and the slowest twentieth for what nobody would wait for.
    """
    data = some_data(count, thumbs=200)
    path_data = build.build_page(data)
    began = time.perf_counter()
    opened = open_page(path_data)
    page = opened.page
    load_s = time.perf_counter() - began
    took = page.evaluate(
        """async () => {
            const counted = { clearRect: 0, drawImage: 0, hypot: 0 };
            const count = (owner, name) => {
                const own = owner[name];
                owner[name] = function (...given) { counted[name]++; return own.apply(this, given); };
            };
            count(CanvasRenderingContext2D.prototype, "clearRect");
            count(CanvasRenderingContext2D.prototype, "drawImage");
            count(Math, "hypot");
            const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
            const took = {};
            const measured = async (name, times, work) => {
                const all = { script: [], whole: [], clearRect: [], drawImage: [], hypot: [] };
                for (let i = 0; i < times; i++) {
                    Object.assign(counted, { clearRect: 0, drawImage: 0, hypot: 0 });
                    const began = performance.now();
                    // What the page leaves for the next frame is done between these two.
                    let before = 0, after = 0;
                    requestAnimationFrame(() => { before = performance.now(); });
                    work(i);
                    const at_once = performance.now() - began;
                    requestAnimationFrame(() => { after = performance.now(); });
                    await frame();
                    all.whole.push(performance.now() - began);
                    all.script.push(at_once + after - before);
                    for (const [what, calls] of Object.entries(counted)) all[what].push(calls);
                }
                const part = (values, share) => values.sort((a, b) => a - b)[Math.floor(share * (values.length - 1))];
                took[name] = {
                    script_ms: part(all.script, 0.25), middle_ms: part(all.whole, 0.5), slow_ms: part(all.whole, 0.95),
                    paints: Math.max(...all.clearRect), points: Math.max(...all.drawImage), asked: part(all.hypot, 1),
                };
            };
            const set = document.getElementById("set");
            await measured("filter", 8, (i) => {
                set.value = String((i + 1) % 2);
                set.dispatchEvent(new Event("change"));
            });
            await measured("pan", 20, () => testMap.panBy([40, 10], { animate: false }));
            // Beyond what was drawn, there and back.
            await measured("far", 12, (i) => testMap.panBy([i % 2 ? -900 : 900, 0], { animate: false }));
            await measured("zoom", 12, (i) => testMap.setZoom(2 + (i % 4), { animate: false }));
            testMap.setView([48, 8], 3, { animate: false });
            await frame();
            const box = testMap.getContainer().getBoundingClientRect();
            await measured("hover", 40, (i) => {
                const clientX = box.left + box.width / 2 - 40 + 2 * i;
                const at = { bubbles: true, clientX, clientY: box.top + box.height / 2 };
                testMap.getContainer().dispatchEvent(new MouseEvent("mousemove", at));
            });
            return took;
        }"""
    )
    for name, value in (("load_s", load_s), ("page_mb", len(path_data) / 1e6), *took.items()):
        record_property(name, value)
        print(count, name, value)
    assert shown(page) == count
    assert page.locator("#list-body tr").count() == 50
    assert load_s < 60
    # The ground and the photos have a canvas each, drawn once for a movement. The world may be in view more than once.
    moves = ("filter", "pan", "far", "zoom")
    assert all(took[name]["paints"] <= 2 for name in moves)
    assert all(took[name]["points"] <= 3 * count for name in moves)
    assert (took["hover"]["paints"], took["hover"]["points"]) == (0, 0)
    assert took["hover"]["asked"] < count / 5
    for name, script_ms in (("hover", 40), ("pan", 150), ("far", 150), ("zoom", 60), ("filter", 400)):
        assert took[name]["script_ms"] < script_ms, name
    assert all(one["slow_ms"] < 3000 for one in took.values())


@pytest.fixture
def geodesy(chromium: Any) -> Any:
    """A blank page that knows the page's own geodesy."""
    page = chromium.new_page()
    page.add_script_tag(path=str(Path(build.__file__).parent / "js" / "geodesy.js"))
    yield page
    page.close()


PLACES = [(0, 0), (48.9, 2.3), (-33.9, 151.2), (64.1, -21.9), (-17.0, 179.9), (-17.0, -179.9), (89.9, 10), (-90, 0)]


def test_distances_are_those_of_geodesy(geodesy: Any) -> None:
    for lat1, lon1 in PLACES:
        for lat2, lon2 in PLACES:
            found = geodesy.evaluate("([a, b, c, d]) => distanceKm(a, b, c, d)", [lat1, lon1, lat2, lon2])
            wanted = float(haversine_km([[lat1, lon1]], [[lat2, lon2]])[0])
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_a_great_circle_is_the_shortest_way_and_unbroken(geodesy: Any) -> None:
    for lat1, lon1 in PLACES:
        for lat2, lon2 in PLACES:
            way = geodesy.evaluate("([a, b, c, d]) => greatCircle(a, b, c, d)", [lat1, lon1, lat2, lon2])
            assert way[0] == [lat1, lon1]
            assert way[-1][0] == lat2
            assert math.isclose((way[-1][1] - lon2 + 180) % 360, 180, abs_tol=1e-9)
            assert all(abs(a[1] - b[1]) <= 180 for a, b in itertools.pairwise(way))
            if len(way) > 2:
                wrapped = [[lat, (lon + 180) % 360 - 180] for lat, lon in way]
                length = float(haversine_km(wrapped[:-1], wrapped[1:]).sum())
                assert length == pytest.approx(
                    float(haversine_km([[lat1, lon1]], [[lat2, lon2]])[0]), rel=1e-6, abs=1e-3
                )


@pytest.mark.parametrize("radius_km", [1.0, 500.0, 5000.0, 9000.0])
def test_a_circle_is_as_far_away_everywhere(geodesy: Any, radius_km: float) -> None:
    for lat, lon in PLACES:
        ring = geodesy.evaluate("([a, b, c]) => circleAround(a, b, c)", [lat, lon, radius_km])
        around = [[y, (x + 180) % 360 - 180] for y, x in ring[:181]]
        assert haversine_km([[lat, lon]] * 181, around) == pytest.approx([radius_km] * 181, rel=1e-4)
        holds_pole = any(radius_km > float(haversine_km([[lat, lon]], [[pole, 0]])[0]) for pole in (-90, 90))
        assert (len(ring) == 183) == holds_pole
    assert geodesy.evaluate("circleAround(10, 20, 12000)") is None
