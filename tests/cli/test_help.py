from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import typer

import geoinfer
from geoinfer.cli import app

COMMANDS = [
    [], ["predict"], ["index"], ["index", "build"], ["index", "add"], ["index", "merge"], ["index", "info"],
    ["tune"], ["engine"], ["engine", "build"], ["engine", "info"], ["info"], ["doctor"],
]  # fmt: skip
IDS = [" ".join(command) or "geoinfer" for command in COMMANDS]
HEAVY = [
    "numpy", "onnxruntime", "faiss", "PIL", "pyarrow", "rich", "simplejpeg", "s2sphere", "pynvml", "torch",
    "onnx", "pi_heif", "tensorrt", "tensorrt_rtx", "cuda",
]  # fmt: skip

WATCHED = f"""
import sys
sys.argv = ["geoinfer", *sys.argv[1:]]
from geoinfer.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
loaded = sorted(name for name in {HEAVY!r} if name in sys.modules)
print("LOADED", code, *loaded, file=sys.stderr)
"""


@pytest.fixture
def shown(run, monkeypatch: pytest.MonkeyPatch):
    def show(command: list[str], columns: int = 100) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        outcome = run(*command, "--help")
        assert outcome.code == 0
        assert outcome.err == ""
        return outcome.out

    return show


@pytest.mark.parametrize("arguments", [*([*command, "--help"] for command in COMMANDS), ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "LOADED 0\n"
    assert "geoinfer" in done.stdout


def test_the_watch_sees_what_is_loaded() -> None:
    """The test above would pass for ever if it looked in the wrong place: a command that works loads NumPy."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "info"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "numpy" in done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
def test_has_an_example_that_starts_with_the_command(command: list[str], shown) -> None:
    text = shown(command)
    lines = [line.strip() for line in text.splitlines()]
    wanted = " ".join(["geoinfer", *command])
    usage = next(line for line in lines if line.startswith("Usage:"))
    assert usage.startswith(f"Usage: {wanted} ")
    examples = [line for line in lines if wanted in line and not line.startswith("Usage:")]
    assert examples, text


@pytest.mark.parametrize("columns", [80, 100, 200])
@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
def test_fits_the_terminal_and_breaks_no_word(command: list[str], columns: int, shown) -> None:
    text = shown(command, columns)
    assert max(len(line) for line in text.splitlines()) <= min(columns, 100)
    # Whatever stands between two spaces at one width stands so at another: no word was cut to fit, but at a hyphen.
    words, whole = (set(re.sub(r"-\n +", "-", t).split()) for t in (text, shown(command, 100)))
    assert words - whole == set()
    assert "..." not in text.replace("[ARGS]...", "").replace("}...", "").replace("SOURCES...", "")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ([], ["index"], ["engine"])], ids=" ".join)
def test_every_parameter_is_explained(command: list[str]) -> None:
    found = typer.main.get_command(app)
    for name in command:
        found = found.commands[name]
    parameters = [parameter for parameter in found.params if parameter.name != "help"]
    assert parameters
    for parameter in parameters:
        assert getattr(parameter, "help", ""), f"{parameter.name} has no help"
        assert parameter.help[0].isupper() or parameter.name == "device"
        assert parameter.help.endswith((".", ")")), parameter.help


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_every_command_is_listed_with_a_whole_sentence(command: list[str], shown) -> None:
    listing = shown(command[:-1]).partition("Commands:")[2]
    line = next(line for line in listing.splitlines() if line.split()[:1] == command[-1:])
    assert re.fullmatch(rf"  {command[-1]}\s+[A-Z][^.]+\.", line)


def test_defaults_are_shown(shown) -> None:
    text = " ".join(shown(["predict"]).split())
    for option, default in {
        "--k": "(what the index says, else 10)", "--aggregate": "(what the index says, else density)",
        "--top": "5", "--max-errors": "0", "--device": "auto",
        "--precision": "auto",
        "--batch-size": "(on a CPU what `geoinfer tune` found, else 1; 64 on a GPU; an engine's best)",
        "--workers": "(all cores this process may use)",
        "--engine": "(the shipped demonstration)", "--errors": "(<output>.errors.csv)",
    }.items():  # fmt: skip
        after = text.split(f" {option} ", 1)[1]
        assert re.search(r"\[default: (.*?)\](?= -)", after)[1] == default, option


def test_version(run) -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.out) == (0, f"geoinfer {geoinfer.__version__}\n")
    assert re.fullmatch(r"\d+\.\d+\.\d+", geoinfer.__version__)


@pytest.mark.parametrize("command", [[], ["index"], ["engine"]], ids=["geoinfer", "index", "engine"])
def test_without_a_command_it_shows_its_help(command: list[str], run) -> None:
    outcome = run(*command)
    assert outcome.code == 2
    assert "Commands:" in outcome.out + outcome.err


def test_short_help_and_the_module() -> None:
    environment = os.environ | {"COLUMNS": "100"}
    texts = [
        subprocess.run(
            [sys.executable, "-m", "geoinfer", "predict", flag],
            capture_output=True, text=True, timeout=60, check=True, env=environment,
        ).stdout
        for flag in ("-h", "--help")
    ]  # fmt: skip
    assert texts[0] == texts[1]
    assert texts[0].startswith("Usage: geoinfer predict")
