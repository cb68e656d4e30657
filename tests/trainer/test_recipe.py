"""Recipes: the paper's numbers, the way to TOML and back, and every mistake in one sentence that names the key."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("tomli_w")

from geoinfer.errors import InputError, UsageError
from geoinfer.images import Preprocessing
from geoinfer.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from trainer.recipe import RECIPES, load_recipe, parse_recipe, recipe_names

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # pydantic comes with the training libraries

PAPER = ["embedding_regression", "resnet50", "resnet50_regression", "vit_large_multistage", "vit_single_stage",
         "vit_two_stage"]  # fmt: skip


def test_these_recipes_come_with_the_trainer() -> None:
    assert recipe_names() == sorted([*PAPER, "vit_geocontrast"])


@pytest.mark.parametrize("name", [path.stem for path in RECIPES.glob("*.toml")])
def test_a_recipe_survives_toml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary.endswith(".")
    assert "\n" not in recipe.summary
    file = tmp_path / "recipe.toml"
    file.write_text(recipe.to_toml(), encoding="utf-8")
    again = load_recipe(str(file))
    assert again.as_dict() == recipe.as_dict()
    assert again.to_toml() == recipe.to_toml()
    for stage, stage_again in zip(recipe.stages, again.stages, strict=True):
        assert recipe.optimiser_of(stage) == again.optimiser_of(stage_again)
    # Everything that the file says, the recipe has.
    written = tomllib.loads((RECIPES / f"{name}.toml").read_text())
    for table, values in written.items():
        if isinstance(values, dict):
            assert recipe.as_dict()[table] | values == recipe.as_dict()[table]


@pytest.mark.parametrize("name", PAPER)
def test_pixels_are_the_papers(name: str) -> None:
    # "Resized to 224x224 pixels and normalized using the standard ImageNet mean and standard deviation."
    preprocessing = load_recipe(name).make_preprocessing()
    assert preprocessing == Preprocessing(224, "squash", "bilinear", IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("name", ["resnet50", "resnet50_regression", "vit_single_stage", "vit_two_stage"])
def test_rates_and_split_are_the_papers(name: str) -> None:
    # "A differential learning rate was used: 1e-4 for the projection head and 1e-5 for the unfrozen backbone layers."
    # "Each subset was split 80/20 into training and validation sets."
    recipe = load_recipe(name)
    for stage in recipe.stages:
        optimiser = recipe.optimiser_of(stage)
        assert (optimiser.lr_head, optimiser.lr_backbone) == (1e-4, 1e-5)
        assert (optimiser.schedule, optimiser.warmup_steps, optimiser.clip_norm) == ("constant", 0, 0.0)
        assert optimiser.name == ("adam" if name.startswith("resnet50") else "adamw")
        assert (stage.sampler.kind, stage.memory, stage.micro_batch) == ("random", 0, 0)
    assert (recipe.data.validation, recipe.data.split) == (0.2, "random")
    assert recipe.data.images == (500_000 if name.startswith("resnet50") else 1_000_000)
    assert (recipe.model.hidden, recipe.model.dropout) == (768, 0.3)


def test_the_first_model_is_the_papers() -> None:
    # "Trained for 20 epochs with the Adam optimizer. ... temperature 0.07, and batch size of 128." Level 6.
    recipe = load_recipe("resnet50")
    (stage,) = recipe.stages
    (loss,) = stage.losses
    assert (recipe.model.backbone, recipe.model.dim, recipe.model.coordinates) == ("resnet50", 256, "none")
    assert (stage.epochs, stage.batch_size, stage.train.backbone) == (20, 128, "layer3+layer4")
    assert (loss.kind, loss.levels, loss.temperature) == ("supcon", [6], 0.07)
    regression = load_recipe("resnet50_regression")
    assert (regression.model.backbone, regression.model.dim) == ("resnet50", 0)
    assert regression.model.coordinates == "backbone"
    assert [loss.kind for loss in regression.stages[0].losses] == ["haversine"]


def test_the_second_and_third_model_are_the_papers() -> None:
    # "15 epochs with the AdamW optimizer ... tau = 0.07, and batch size of 400"; then "5 epochs using Triplet Margin
    # Loss with a margin of 0.2"; level 7 for one million images; the last 4 blocks in both stages.
    single, two = load_recipe("vit_single_stage"), load_recipe("vit_two_stage")
    assert two.stages[0] == single.stages[0]
    first, second = two.stages
    assert two.model.backbone == single.model.backbone == "vit_base_patch16_224"
    assert (first.epochs, first.batch_size, first.train.backbone) == (15, 400, "last:4")
    assert (first.losses[0].kind, first.losses[0].levels, first.losses[0].temperature) == ("supcon", [7], 0.07)
    assert (second.epochs, second.batch_size, second.train.backbone) == (5, 400, "last:4")
    (loss,) = second.losses
    assert (loss.kind, loss.margin, loss.mining) == ("triplet", 0.2, "farthest")


# Table 7, a folder being 50,000 images: folders, blocks that learn, batch, levels with their weights.
TABLE_7 = [
    (10, "all", 16, None),
    (97, "last:12", 128, {3: 1, 4: 0.3, 5: 0.05}),
    (30, "last:7", 256, {3: 1, 4: 0.3, 5: 0.1, 6: 0.03}),
    (60, "last:1", 1024, {3: 0.8, 4: 0.35, 5: 0.15, 6: 0.05}),
]


def test_the_multistage_model_is_table_7() -> None:
    recipe = load_recipe("vit_large_multistage")
    assert recipe.model.backbone == "vit_large_patch16_224.orig_in21k"
    assert recipe.run.precision != "fp32"  # "torch.autocast"
    for stage, (folders, blocks, batch, weights) in zip(recipe.stages, TABLE_7, strict=True):
        assert stage.images * stage.epochs == folders * 50_000
        assert (stage.train.backbone, stage.batch_size) == (blocks, batch)
        if weights is None:
            contrast, distance = stage.losses
            assert (contrast.kind, contrast.levels, contrast.weight) == ("supcon", [3], 1.0)
            assert (distance.kind, distance.weight) == ("haversine", 1.0)
        else:
            (loss,) = stage.losses
            assert loss.kind == "hierarchical"
            assert dict(zip(loss.levels, loss.level_weights, strict=True)) == weights
    # "The full 5 million image dataset, equivalent to approximately two epochs of training."
    assert sum(stage.images for stage in recipe.stages) / 5_000_000 == pytest.approx(2, rel=0.05)


def test_the_head_on_an_embedding_begins_with_a_checkpoint() -> None:
    # Otherwise it would learn from random numbers, and nothing would say so.
    recipe = load_recipe("embedding_regression")
    assert recipe.model.start_from
    assert recipe.model.coordinates == "embedding"
    assert (recipe.stages[0].train.backbone, recipe.stages[0].train.heads) == ("none", ["coordinates"])


def test_ours_batches_by_cells() -> None:
    recipe = load_recipe("vit_geocontrast")
    (stage,) = recipe.stages
    assert stage.sampler.kind == "cells"
    assert stage.sampler.level == max(level for loss in stage.losses for level in loss.levels)
    assert stage.batch_size % stage.sampler.images_per_cell == 0
    assert stage.batch_size % stage.micro_batch == 0


def test_changes_are_applied() -> None:
    changes = [
        "run.seed=7",
        "stages.*.epochs=2",
        "stages.1.batch_size=64",
        "stages.contrast.images=1_000",
        "stages.0.losses.0.levels=[4]",
        "model.backbone=test_vit",
        "model.start_from=runs/a b=c.safetensors",
        'name="mine"',
        "preprocessing.mean=[0.5, 0, 1]",
        "preprocessing.std=[0.5, 1, 2.5]",
        "run.channels_last=true",
        "optimiser.lr_head = 3e-4",
        "data.seed=1",
        "data.seed=2",
    ]
    recipe = load_recipe("vit_two_stage", changes)
    assert [stage.epochs for stage in recipe.stages] == [2, 2]
    assert [stage.batch_size for stage in recipe.stages] == [400, 64]
    assert [stage.images for stage in recipe.stages] == [1000, 0]
    assert recipe.stages[0].losses[0].levels == [4]
    assert (recipe.run.seed, recipe.run.channels_last, recipe.data.seed) == (7, True, 2)
    assert (recipe.model.backbone, recipe.name) == ("test_vit", "mine")
    assert recipe.model.start_from == "runs/a b=c.safetensors"
    assert recipe.optimiser.lr_head == 3e-4
    preprocessing = recipe.make_preprocessing()
    assert (preprocessing.mean, preprocessing.std) == ((0.5, 0.0, 1.0), (0.5, 1.0, 2.5))


def test_a_stages_optimiser_changes_single_keys(tmp_path: Path) -> None:
    recipe = load_recipe("resnet50", ["stages.0.optimiser.lr_head=5e-3"])
    optimiser = recipe.optimiser_of(recipe.stages[0])
    # Not the defaults of an optimiser (AdamW with decay), but the recipe's own.
    assert (optimiser.name, optimiser.weight_decay) == ("adam", 0.0)
    assert (optimiser.lr_head, optimiser.lr_backbone) == (5e-3, 1e-5)
    assert recipe.optimiser.lr_head == 1e-4
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    again = load_recipe(str(tmp_path / "recipe.toml"))
    assert again.optimiser_of(again.stages[0]) == optimiser


def test_pretrained_normalisation_is_that_of_the_backbone() -> None:
    pytest.importorskip("timm")
    recipe = load_recipe("resnet50", ["preprocessing.mean=pretrained", "preprocessing.std=pretrained"])
    assert recipe.make_preprocessing().mean == IMAGENET_MEAN
    recipe = load_recipe("vit_geocontrast")
    assert recipe.make_preprocessing().std == (0.5, 0.5, 0.5)


def minimal(**more: Any) -> dict[str, Any]:
    stage = {"name": "one", "epochs": 1, "batch_size": 8, "losses": [{"kind": "supcon", "levels": [5]}]}
    return {"name": "x", "summary": "X.", "model": {"backbone": "test_vit"}, "stages": [stage]} | more


# What is set, and the whole sentence that a user reads.
MISTAKES = {
    "run.sed=1": "run.sed is not a key of a recipe; seed is near it",
    "colour=1": "colour is not a key of a recipe",
    "optimiser.warmup=1": "optimiser.warmup is not a key of a recipe; warmup_steps is near it",
    "stages.0.batchsize=8": "stages.0.batchsize is not a key of a recipe; batch_size is near it",
    "stages.0.losses.0.level=[6]": "stages.0.losses.0.level is not a key of a recipe; levels is near it",
    "stages.0.optimiser.lrhead=1": "stages.0.optimiser.lrhead is not a key of a recipe; lr_head is near it",
    "run.seed=x": "run.seed is 'x': expected a whole number",
    "run.seed=true": "run.seed is true: expected a whole number",
    "run.seed=-1": "run.seed is -1: expected at least 0",
    "run.seed=1979-05-27": "run.seed is 1979-05-27: expected a whole number",
    "run.compile=1": "run.compile is 1: expected true or false",
    "run.precision=bf8": "run.precision is 'bf8': expected 'fp32', 'bf16' or 'fp16'",
    "stages.0.epochs=2.0": "stages.0.epochs is 2.0: expected a whole number",
    "stages.0.epochs=0": "stages.0.epochs is 0: expected at least 1",
    "stages.0.batch_size=1": "stages.0.batch_size is 1: expected at least 2",
    "stages.0.name='A B'": "stages.0.name is 'A B': expected small letters, digits, - and _ alone",
    "stages.0=5": "stages.0 is 5: expected a table",
    "stages=5": "stages is 5: expected a list",
    "stages=[]": "stages is []: expected at least 1 in the list",
    "stages.0.losses=[]": "stages.0.losses is []: expected at least 1 in the list",
    "stages.0.losses.0.levels=[2]": "stages.0.losses.0.levels.0 is 2: expected at least 3",
    "stages.0.losses.0.levels=[15]": "stages.0.losses.0.levels.0 is 15: expected at most 14",
    "stages.0.losses.0.levels=[]": "stages.0.losses.0: a supcon loss has one S2 level, as in levels = [6]",
    "stages.0.losses.0.levels=[5,6]": "stages.0.losses.0: a supcon loss has one S2 level, as in levels = [6]",
    "stages.0.losses.0.margin=0.3":
        "stages.0.losses.0: a supcon loss has no margin; it has weight, levels, temperature",
    "stages.0.losses=[{kind='hierarchical', levels=[3,4], level_weights=[1]}]":
        "stages.0.losses.0: a hierarchical loss has as many level_weights as levels, and at least one",
    "stages.0.losses=[{kind='triplet'}, {kind='triplet', margin=0.1}]":
        "stages.0: stage contrast has the same loss twice: triplet, triplet",
    "stages.0.losses=[{kind='haversine'}]": "stage contrast has a haversine loss, and model.coordinates is none",
    "stages.0.sampler={kind='cells', images_per_cell=999}":
        "stages.0: stage contrast: images_per_cell is more than batch_size",
    "stages.0.train.heads=['body']": "stages.0.train.heads.0 is 'body': expected 'projection' or 'coordinates'",
    "model=3": "model is 3: expected a table",
    "model.backbone=3": "model.backbone is 3: expected text",
    "model.dropout=1": "model.dropout is 1: expected less than 1",
    "model.dim=0": "stage contrast has a loss on embeddings, and model.dim is 0",
    "preprocessing.mean=foo":
        "preprocessing.mean is 'foo': expected pretrained, imagenet or three numbers, as in [0.5, 0.5, 0.5]",
    "preprocessing.mean=[0.5,0.5]":
        "preprocessing.mean is [0.5, 0.5]: expected pretrained, imagenet or three numbers, as in [0.5, 0.5, 0.5]",
    "preprocessing.mean=[nan,0,0]":
        "preprocessing.mean is [nan, 0, 0]: expected pretrained, imagenet or three numbers, as in [0.5, 0.5, 0.5]",
    "preprocessing.std=[0.5,0.5,0]": "preprocessing.std is [0.5, 0.5, 0]: expected three numbers above 0",
    "preprocessing.size=0": "preprocessing.size is 0: expected at least 1",
    "optimiser.lr_head=0": "optimiser.lr_head is 0: expected more than 0",
    "optimiser.lr_head=inf": "optimiser.lr_head is inf: expected a finite number",
    "optimiser.lr_head=true": "optimiser.lr_head is true: expected a number",
    "optimiser.name=sgd": "optimiser.name is 'sgd': expected 'adam' or 'adamw'",
    "data.validation=1.0": "data.validation is 1.0: expected less than 1",
    "data.test=0.8": "data: validation 0.2 and test 0.8 leave nothing to train on",
    "validation.k=[0]": "validation.k.0 is 0: expected at least 1",
    "validation.k=5": "validation.k is 5: expected a list",
}  # fmt: skip


@pytest.mark.parametrize("change", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_key(change: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("resnet50", [change])
    assert str(caught.value) == f"resnet50 with 1 --set: {MISTAKES[change]}"
    assert caught.value.exit_code == 2
    assert not re.search(r"pydantic|dictionary|instance of|validation error|Table\b", str(caught.value))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("run.seed", "expected key=value, as in run.seed=1 or stages.0.batch_size=64"),
        ("=3", "expected key=value, as in run.seed=1 or stages.0.batch_size=64"),
        ("stages.9.epochs=1", "there is no 9; they are counted from 0, to 1"),
        ("stages.two.epochs=1", "'two' is none of contrast, triplet, 0 and up, * for all"),
        ("stages.-1.epochs=1", "'-1' is none of contrast, triplet, 0 and up, * for all"),
        ("name.x=1", "'x' has no keys below it"),
        ("stages.0.batch_size.x=1", "'x' has no keys below it"),
    ],
)
def test_a_change_that_points_nowhere_is_refused(change: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("vit_two_stage", [change])
    assert str(caught.value) == f"--set {change}: {sentence}"


@pytest.mark.parametrize("missing", ["name", "summary", "model", "stages"])
def test_a_missing_table_is_named(missing: str) -> None:
    values = minimal()
    del values[missing]
    with pytest.raises(UsageError) as caught:
        parse_recipe(values, "mine.toml")
    assert str(caught.value) == f"mine.toml: {missing} is missing"


def test_what_a_stage_and_a_loss_must_have() -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(minimal(stages=[{"losses": [{"weight": 2.0}]}], model={}), "mine.toml")
    assert str(caught.value) == "mine.toml: model.backbone is missing"
    for place in ("stages.0.name", "stages.0.epochs", "stages.0.batch_size", "stages.0.losses.0.kind"):
        assert f"{place} is missing" in caught.value.hint


def test_two_stages_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two stages have one name: one, one"):
        parse_recipe(minimal(stages=minimal()["stages"] * 2), "x")


def test_parts_of_a_batch_and_its_statistics_exclude_each_other() -> None:
    with pytest.raises(UsageError, match=r"has a micro_batch, and model\.batch_norm is train"):
        load_recipe("resnet50", ["model.batch_norm=train", "stages.0.micro_batch=8"])


def test_a_memory_that_no_loss_uses_is_refused() -> None:
    with pytest.raises(UsageError, match="has a memory of embeddings, and no loss that uses them"):
        load_recipe("resnet50_regression", ["stages.0.memory=64"])


def test_the_values_given_are_not_changed() -> None:
    values = minimal(optimiser={"name": "adam"})
    values["stages"][0]["optimiser"] = {"lr_head": 0.1}
    parse_recipe(values, "x")
    assert values["stages"][0]["optimiser"] == {"lr_head": 0.1}


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resnet5: there is no such recipe; resnet50 is near it"):
        load_recipe("resnet5")
    with pytest.raises(InputError, match="there is no such recipe") as caught:
        load_recipe(str(tmp_path))
    assert "vit_two_stage" in caught.value.hint
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"mine.toml: not TOML, which is UTF-8 text"):
        load_recipe(str(file))
    file.write_text("name = \n")
    with pytest.raises(UsageError, match=r"mine.toml: not TOML: invalid value \(at line 1, column 8\)"):
        load_recipe(str(file))
    file.write_text("")
    with pytest.raises(UsageError, match=r"mine.toml: name is missing"):
        load_recipe(str(file))


def test_heads_that_no_loss_reaches_do_not_learn() -> None:
    large = load_recipe("vit_large_multistage")
    # The warm-up's haversine loss goes through the embedding to the projection as well.
    assert [large.heads_of(stage) for stage in large.stages] == [["projection", "coordinates"], *[["projection"]] * 3]
    assert load_recipe("vit_two_stage").heads_of(load_recipe("vit_two_stage").stages[1]) == ["projection"]
    alone = load_recipe("resnet50_regression")
    assert alone.heads_of(alone.stages[0]) == ["coordinates"]
    beside = load_recipe("resnet50_regression", ["model.dim=8"])
    assert beside.heads_of(beside.stages[0]) == ["coordinates"]
    last = load_recipe("embedding_regression")
    assert last.heads_of(last.stages[0]) == ["coordinates"]
