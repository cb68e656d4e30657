"""docs/training.md says what the trainer does: its recipes, keys, losses and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("torch")

import typer

from trainer.__main__ import app
from trainer.losses import __all__ as loss_names
from trainer.recipe import (
    _LOSS_KEYS,
    DataTable,
    LossTable,
    ModelTable,
    OptimiserTable,
    PreprocessingTable,
    RunTable,
    SamplerTable,
    StageTable,
    TrainTable,
    ValidationTable,
    load_recipe,
    recipe_names,
)

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "training.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| `")]


def names(text: str) -> set[str]:
    """What stands in backticks, outside brackets."""
    return set(re.findall(r"`([^`]+)`", re.sub(r"\([^()]*\)", "", text)))


def row(first: str) -> list[str]:
    (found,) = [cells for cells in ROWS if cells[0] == f"`{first}`"]
    return found


def test_every_recipe_is_listed_with_its_learnable_parameters() -> None:
    from trainer.memory_needed import stage_needs

    for name in recipe_names():
        for figure in re.findall(r"\(([\d.]+) million\)", row(name)[2]):
            assert float(figure) == pytest.approx(stage_needs(load_recipe(name))[0].learnable / 1e6, abs=0.05)
    kinds = {cells[0].strip("`") for cells in ROWS}
    assert {name for name in kinds if (CHECKOUT / "trainer" / "recipes" / f"{name}.toml").exists()} == set(
        recipe_names()
    )


@pytest.mark.parametrize(
    ("table", "model", "elsewhere"),
    [
        ("[model]", ModelTable, set()),
        ("[preprocessing]", PreprocessingTable, set()),
        ("[data]", DataTable, set()),
        ("[optimiser]", OptimiserTable, set()),
        ("[run]", RunTable, set()),
        ("[validation]", ValidationTable, set()),
        ("[[stages]]", StageTable, {"train", "sampler", "losses", "optimiser"}),
        ("[stages.train]", TrainTable, set()),
        ("[stages.sampler]", SamplerTable, set()),
    ],
)
def test_every_key_is_listed_and_no_other(table: str, model: type, elsewhere: set[str]) -> None:
    assert names(row(table)[1]) == set(model.model_fields) - elsewhere


@pytest.mark.parametrize("kind", _LOSS_KEYS)
def test_every_loss_is_listed_with_its_keys(kind: str) -> None:
    assert names(row(kind)[2]) == set(_LOSS_KEYS[kind])


def test_every_kind_of_loss_has_a_function() -> None:
    assert len(_LOSS_KEYS) == len([name for name in loss_names if name.endswith("_loss")])
    assert set(_LOSS_KEYS) == set(LossTable.model_fields["kind"].annotation.__args__)


def test_every_command_that_is_shown_exists_with_its_options() -> None:
    commands = typer.main.get_command(app).commands
    text = PAGE + (CHECKOUT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^(?:python|torchrun .*?) -m trainer ((?:[^\n]*\\\n)*[^\n]*)", text, re.MULTILINE)
    assert len(shown) >= 8
    for line in shown:
        words = shlex.split(line.replace("\\\n", " "), comments=True)
        options = {option for parameter in commands[words[0]].params for option in parameter.opts}
        assert {word for word in words[1:] if word.startswith("-")} <= options, line
        changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        if words[0] == "fit":
            load_recipe(words[1], changes)


def test_every_command_has_help() -> None:
    for name, command in typer.main.get_command(app).commands.items():
        assert command.help, name
        assert all(parameter.help for parameter in command.params if parameter.name != "help"), name
