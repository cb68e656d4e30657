"""The documentation says what the program does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from geoinfer.batch.rows import COLUMNS, ERROR_COLUMNS, PLACE_COLUMNS

CHECKOUT = Path(__file__).parents[1]


def test_the_documented_help_is_the_real_one() -> None:
    spec = importlib.util.spec_from_file_location("make_commands", CHECKOUT / "docs" / "make_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run python docs/make_commands.py"


def test_every_error_code_is_documented_and_no_other() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (CHECKOUT / "geoinfer").rglob("*.py")]
    stages = "discover|read|decode|embed|answer|labels"
    # A constant is called as its code is.
    codes = rf'\(\s*"(?:{stages})",\s*(?:"([a-z_]+)"|([A-Z_]+)\b)'
    raised = {code or name.lower() for text in sources for code, name in re.findall(codes, text)}
    # One place works its code out first.
    raised |= {"missing", "unreadable"}
    page = (CHECKOUT / "docs" / "error-codes.md").read_text(encoding="utf-8")
    assert set(re.findall(rf"^\| (?:{stages}) \| `([a-z_]+)`", page, re.MULTILINE)) == raised


def test_the_columns_are_documented_in_their_order() -> None:
    page = (CHECKOUT / "docs" / "file-formats.md").read_text(encoding="utf-8").replace("\n", " ")
    assert ", ".join(f"`{column}`" for column in COLUMNS) in page
    assert ", ".join(f"`{column}`" for column in PLACE_COLUMNS) in page
    assert ", ".join(f"`{column}`" for column in ERROR_COLUMNS) in page


def test_every_link_leads_somewhere() -> None:
    for page in [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("README.md", {"pipeline-12MP.md", "pipeline-web.md", "memory.md"}),
        ("docs/training.md", {"toy_world.md", "training.md"}),
        ("docs/confidence.md", {"coverage.md"}),
        ("docs/engines.md", {"embed-cpu.md", "int8-answers.md"}),
        ("docs/embedders.md", {"geoclip-cpu.md"}),
        ("docs/large-index.md", {"index.md"}),
    ],
)
def test_pages_show_what_the_benchmarks_printed(page: str, names: set[str]) -> None:
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    tables = re.findall(r"<!-- benchmarks/results/(\S+) -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert {name for name, _ in tables} == names
    for name, shown in tables:
        assert shown.strip() == (CHECKOUT / "benchmarks" / "results" / name).read_text(encoding="utf-8").strip()


def test_no_page_names_a_machine() -> None:
    for page in [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md"), *(CHECKOUT / "benchmarks").rglob("*.*")]:
        if page.suffix in (".md", ".py", ".json"):
            assert not re.search(r"/(?:work|root|home)/", page.read_text(encoding="utf-8")), page
