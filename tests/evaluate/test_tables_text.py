"""Markdown as another parser reads it, LaTeX as a small one of our own does."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from geoinfer.evaluate.tables import Table
from geoinfer.evaluate.tables.latex import escape_latex, latex, latex_tables
from geoinfer.evaluate.tables.markdown import markdown, markdown_tables

NASTY = r"a|b_c*d*_e_ `f` \g <b>h</b> [i](j) & &lt; ~~k~~ $l$ # 100% {m} ^n ~o --- ``p'' \\ \textbf{q}"


def table(names=("one", "two"), note="A note: d < R.", title="Global Test Set: Error Metrics"):
    rows = [[name, "1", "12.50†", "3.00"] for name in names]
    bold = [[False, False, True, False] for _ in names]
    return Table(title, ["Model", "Best k", "Median Error (km)", "Acc@25km (%)"], rows, bold, note, "global-errors")


def cells_of_markdown(text):
    """Title, rows of (cell, whether bold) and the note."""
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    title = re.search("<h3>(.*?)</h3>", page).group(1)
    rows = [
        [
            (
                html.unescape(re.fullmatch("(?:<strong>)?(.*?)(?:</strong>)?", cell).group(1)),
                cell.startswith("<strong>"),
            )
            for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in re.findall("<tr>(.*?)</tr>", page, re.DOTALL)
    ]
    notes = re.findall("</table>\n<p>(.*?)</p>", page, re.DOTALL)
    return html.unescape(title), rows, html.unescape(notes[0]) if notes else ""


@pytest.mark.parametrize("name", [NASTY, "plain", "*", "_", "中国 | ünï", "- a", "1. b", "# c", "> d", "=x"])
def test_markdown_shows_what_the_table_says(name):
    title, rows, note = cells_of_markdown(markdown(table([name, "two"], note=f"Of {name}.", title=name)))
    assert title == name
    assert note == f"Of {name}."
    assert [cell for cell, _ in rows[0]] == ["Model", "Best k", "Median Error (km)", "Acc@25km (%)"]
    assert rows[1] == [(name, False), ("1", False), ("12.50†", True), ("3.00", False)]
    assert len(rows) == 3


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_no_name_breaks_a_markdown_table(name):
    _, rows, _ = cells_of_markdown(markdown(table([name, "two"])))
    assert [len(row) for row in rows] == [4, 4, 4]
    assert [cell for cell, _ in rows[2]] == ["two", "1", "12.50†", "3.00"]


def test_markdown_columns_stand_below_each_other():
    lines = markdown(table(["a|b", "a longer name"])).split("\n")[2:6]
    assert len({len(line) for line in lines}) == 1
    # Apart from the escaped pipe, all pipes are in the same places.
    places = [[at for at, letter in enumerate(line) if letter == "|" and line[at - 1] != "\\"] for line in lines]
    assert all(place == places[0] for place in places)
    assert lines[1].startswith("| :---")
    assert lines[1].endswith("---: |")


def test_markdown_tables_are_apart():
    text = markdown_tables([table(), table(title="Another")])
    assert text.count("### ") == 2
    assert "R.\n\n### Another\n" in text


COMMANDS = {
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">",
    "textbar": "|", "textasciigrave": "`", "textdegree": "°", "char34": '"', "dag": "†", "le": "≤", "ge": "≥",
    "pm": "±",
}  # fmt: skip
SHOWN = {"textbf", "textsuperscript", "footnotesize"}


def text_of_latex(source):
    """What LaTeX prints; fails on anything that is not escaped, and on braces that do not match."""
    out, at, depth, maths = [], 0, 0, False
    while at < len(source):
        letter = source[at]
        if letter == "\\":
            word = re.match(r"\\([A-Za-z]+\d*|.)", source[at:]).group(1)
            at += 1 + len(word)
            if word in "{}#$%&_":
                out.append(word)
                continue
            assert word in COMMANDS or word in SHOWN, word
            out.append(COMMANDS.get(word, ""))
            # An argument is braces; a command that has none swallows a space.
            assert source[at : at + 1] in ("{", "}", "$", " "), source[at - 9 : at + 9]
            at += source[at : at + 1] == " " and word in SHOWN
            continue
        assert letter not in "#%&_^~\n", source[max(0, at - 9) : at + 9]
        if letter in "{}":
            depth += 1 if letter == "{" else -1
            assert depth >= 0
        elif letter == "$":
            maths = not maths
        else:
            assert maths or source[at : at + 2] != "--" or source[at + 2 : at + 3] != "-"
            out.append(letter)
        at += 1
    assert depth == 0
    assert not maths
    return "".join(out)


def cells_of_latex(source):
    """Caption, label, columns, rows of (cell, whether bold) and the note of one table."""
    lines = [line for line in source.strip().split("\n") if line and not line.startswith("%")]
    assert lines[:2] == [r"\begin{table}[htbp]", r"\centering"]
    caption = re.fullmatch(r"\\caption\{(.*)\}", lines[2]).group(1)
    label = re.fullmatch(r"\\label\{tab:([a-z0-9-]+)\}", lines[3]).group(1)
    at = 4
    scaled = lines[at] == r"\resizebox{\linewidth}{!}{%"
    at += scaled
    spec = re.fullmatch(r"\\begin\{tabular\}\{(l r*|lr*)\}", lines[at]).group(1)
    assert lines[at + 1] == r"\toprule"
    assert lines[at + 3] == r"\midrule"
    end = lines.index(r"\bottomrule")
    assert lines[end + 1] == r"\end{tabular}" + "}" * scaled
    rows = []
    for line in [lines[at + 2], *lines[at + 4 : end]]:
        assert line.endswith(r" \\")
        assert line[0] not in "[*"
        cells = re.split(r"(?<!\\) & ", line.removesuffix(r" \\"))
        assert len(cells) == len(spec)
        rows.append([(text_of_latex(cell), r"\textbf{" in cell) for cell in cells])
    note = ""
    if lines[end + 2] == r"\par\smallskip":
        note = text_of_latex(re.fullmatch(r"\\parbox\{\\linewidth\}\{(.*)\}", lines[end + 3]).group(1))
    assert lines[-1] == r"\end{table}"
    return text_of_latex(caption), label, rows, note


@pytest.mark.parametrize("name", [NASTY, "plain", "[x]", "*", '"quoted"', "≤ ± ° †", "ünï 中国"])
def test_latex_prints_what_the_table_says(name):
    caption, label, rows, note = cells_of_latex(latex(table([name, "two"], note=f"Of {name}.", title=name)))
    assert caption == name
    assert label == "global-errors"
    assert note == f"Of {name}."
    assert rows[1] == [(name, False), ("1", False), ("12.50†", True), ("3.00", False)]
    assert len(rows) == 3


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=30))
def test_latex_prints_any_name(name):
    assert text_of_latex(escape_latex(name)) == name.strip()


def test_latex_bold_is_the_number_and_not_its_dagger():
    assert r"\textbf{12.50}\textsuperscript{\dag} & 3.00 \\" in latex(table())


def test_hyphens_do_not_become_dashes():
    assert escape_latex("a---b-c") == "a-{}-{}-b-c"


def test_a_wide_table_is_scaled():
    wide = Table("T", list("abcdef"), [list("uvwxyz")], [[False] * 6], "", "wide")
    _, label, rows, note = cells_of_latex(latex(wide))
    assert (label, len(rows), note) == ("wide", 2, "")
    assert r"\resizebox{\linewidth}{!}{%" in latex(wide)
    assert "resizebox" not in latex(table())


def test_latex_names_its_packages():
    text = latex_tables([table(), table()])
    assert text.startswith("% Needs \\usepackage{booktabs}")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2


def test_a_table_is_a_rectangle():
    with pytest.raises(AssertionError):
        Table("T", ["a", "b"], [["1"]], [[False, False]])


def test_what_tables_share_is_said_once_in_markdown_and_below_each_in_latex():
    shared = ("Said of all.", "Said of the first.")
    first = Table("One", ["Model", "x"], [["m", "1"]], [[False, False]], "Own.", "one", shared)
    second = Table("Two", ["Model", "x"], [["m", "2"]], [[False, False]], "", "two", shared[:1])
    text = markdown_tables([first, second])
    assert [text.count(words) for words in ("Own.", *shared)] == [1, 1, 1]
    assert text.endswith("### Notes\n\n- Said of all.\n- Said of the first.\n")
    assert [cells_of_latex(latex(one))[3] for one in (first, second)] == [
        "Own. Said of all. Said of the first.",
        "Said of all.",
    ]
    plain = Table("One", ["Model", "x"], [["m", "1"]], [[False, False]])
    assert "Notes" not in markdown_tables([plain])
