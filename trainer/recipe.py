"""Recipes: everything that decides what a run learns, as readable TOML with every key checked.

A recipe is a file of `trainer/recipes/` by name, or any file by path; `--set key=value` changes one key of it. What a
run was made with stands in its folder, resolved, as `recipe.toml`.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from geoinfer.errors import InputError, UsageError
from geoinfer.images import Preprocessing
from geoinfer.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD

RECIPES: Final = Path(__file__).parent / "recipes"

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Level = Annotated[int, Field(ge=3, le=14)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Triple = tuple[float, float, float]
Head = Literal["projection", "coordinates"]


def _mean(value: Any) -> str | list[float]:
    named = isinstance(value, str) and value in ("pretrained", "imagenet")
    if not named and not (isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))):
        raise ValueError("expected pretrained, imagenet or three numbers, as in [0.5, 0.5, 0.5]")
    return value if isinstance(value, str) else [float(number) for number in value]


def _std(value: Any) -> str | list[float]:
    checked = _mean(value)
    if isinstance(checked, list) and min(checked) <= 0:
        raise ValueError("expected three numbers above 0")
    return checked


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelTable(_Table):
    """`[model]`."""

    backbone: str
    weights: str = "pretrained"
    dim: Annotated[int, Field(ge=0, le=4096)] = 256
    hidden: Count = 768
    dropout: Fraction = 0.3
    coordinates: Literal["none", "backbone", "embedding"] = "none"
    batch_norm: Literal["frozen", "train"] = "frozen"
    start_from: str = ""  # a checkpoint whose weights it begins with, where names and shapes agree


class PreprocessingTable(_Table):
    """`[preprocessing]`; `mean` and `std` may be `pretrained`, what the backbone's weights were trained with."""

    size: Annotated[int, Field(ge=1, le=4096)] = 224
    resize: Literal["crop", "squash"] = "crop"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: Annotated[str | list[float], PlainValidator(_mean)] = "pretrained"
    std: Annotated[str | list[float], PlainValidator(_std)] = "pretrained"


class DataTable(_Table):
    """`[data]`: how a source that is not prepared yet is split, and how much of the training part is used."""

    images: Annotated[int, Field(ge=0)] = 0  # of the whole set, 0 for all
    split: Literal["random", "sequence", "geocell"] = "random"
    split_level: Level = 6
    validation: Fraction = 0.2
    test: Fraction = 0.0
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation:g} and test {self.test:g} leave nothing to train on")
        return self


class OptimiserTable(_Table):
    """`[optimiser]`, or `[stages.optimiser]` for one stage, which changes single keys of the recipe's."""

    name: Literal["adam", "adamw"] = "adamw"
    lr_head: Positive = 1e-4
    lr_backbone: Positive = 1e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip_norm: Annotated[float, Field(ge=0)] = 0.0  # 0: not clipped


class TrainTable(_Table):
    """`[stages.train]`: what learns."""

    backbone: str = "all"
    heads: list[Head] = ["projection", "coordinates"]


class SamplerTable(_Table):
    """`[stages.sampler]`."""

    kind: Literal["random", "cells"] = "random"
    level: Level = 6
    images_per_cell: Annotated[int, Field(ge=2)] = 4


class LossTable(_Table):
    """One of `[[stages.losses]]`."""

    kind: Literal["supcon", "hierarchical", "triplet", "haversine", "soft_supcon"]
    weight: Positive = 1.0
    temperature: Positive = 0.07
    levels: list[Level] = []  # supcon: one; hierarchical: one or more
    level_weights: list[Annotated[float, Field(ge=0)]] = []
    margin: Positive = 0.2
    mining: Literal["farthest", "semi_hard"] = "farthest"
    negative_km: Positive = 750.0
    scale_km: Positive = 75.0
    max_positive_km: Positive = 200.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        needed = _LOSS_KEYS[self.kind]
        foreign = self.model_fields_set.difference(needed, ("kind", "weight"))
        if foreign:
            has = ", ".join(("weight", *needed))
            raise ValueError(f"a {self.kind} loss has no {', '.join(sorted(foreign))}; it has {has}")
        if self.kind == "supcon" and len(self.levels) != 1:
            raise ValueError("a supcon loss has one S2 level, as in levels = [6]")
        if self.kind == "hierarchical" and not 1 <= len(self.levels) == len(self.level_weights):
            raise ValueError("a hierarchical loss has as many level_weights as levels, and at least one")
        return self

    @property
    def label(self) -> str:
        """Its name in `metrics.csv`."""
        return self.kind + "".join(f"_l{level}" for level in self.levels)


_LOSS_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "supcon": ("levels", "temperature"),
    "hierarchical": ("levels", "level_weights", "temperature"),
    "triplet": ("margin", "mining", "negative_km"),
    "haversine": (),
    "soft_supcon": ("temperature", "scale_km", "max_positive_km"),
}


class StageTable(_Table):
    """One of `[[stages]]`; weights are carried over from the one before."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    micro_batch: Annotated[int, Field(ge=0)] = 0  # images in memory at once (GradCache); 0: the batch
    images: Annotated[int, Field(ge=0)] = 0  # of the training part, 0 for all
    memory: Annotated[int, Field(ge=0)] = 0  # embeddings of the cross-batch memory
    memory_after: Annotated[int, Field(ge=0)] = 0  # steps before it is used
    train: TrainTable = TrainTable()
    sampler: SamplerTable = SamplerTable()
    losses: Annotated[list[LossTable], Field(min_length=1)]
    optimiser: OptimiserTable | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        labels = [loss.label for loss in self.losses]
        if len(set(labels)) < len(labels):
            raise ValueError(f"stage {self.name} has the same loss twice: {', '.join(labels)}")
        if self.sampler.kind == "cells" and self.sampler.images_per_cell > self.batch_size:
            raise ValueError(f"stage {self.name}: images_per_cell is more than batch_size")
        return self


class ValidationTable(_Table):
    """`[validation]`: kNN of some validation photos among some training photos, each epoch."""

    queries: Annotated[int, Field(ge=0)] = 5000  # 0 for all
    references: Annotated[int, Field(ge=0)] = 50000
    k: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=1)] = [1, 3, 5, 10, 20, 50]


class RunTable(_Table):
    """`[run]`: how it is computed."""

    seed: Seed = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    checkpoint_minutes: Positive = 15.0


class Recipe(_Table):
    """A whole recipe."""

    name: str
    summary: str
    model: ModelTable
    preprocessing: PreprocessingTable = PreprocessingTable()
    data: DataTable = DataTable()
    optimiser: OptimiserTable = OptimiserTable()
    validation: ValidationTable = ValidationTable()
    run: RunTable = RunTable()
    stages: Annotated[list[StageTable], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """What `[stages.optimiser]` leaves out is as in `[optimiser]`."""
        if not isinstance(values, dict) or not isinstance(values.get("stages"), list):
            return values
        common = values.get("optimiser")
        return values | {
            "stages": [
                stage | {"optimiser": common | stage["optimiser"]}
                if isinstance(common, dict) and isinstance(stage, dict) and isinstance(stage.get("optimiser"), dict)
                else stage
                for stage in values["stages"]
            ]
        }

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        for stage in self.stages:
            kinds = {loss.kind for loss in stage.losses}
            if "haversine" in kinds and self.model.coordinates == "none":
                raise ValueError(f"stage {stage.name} has a haversine loss, and model.coordinates is none")
            if kinds - {"haversine"} and self.model.dim == 0:
                raise ValueError(f"stage {stage.name} has a loss on embeddings, and model.dim is 0")
            if stage.memory and kinds == {"haversine"}:
                raise ValueError(f"stage {stage.name} has a memory of embeddings, and no loss that uses them")
            if stage.micro_batch and self.model.batch_norm == "train":
                raise ValueError(
                    f"stage {stage.name} has a micro_batch, and model.batch_norm is train: statistics of a part are "
                    "not those of the batch"
                )
        return self

    def optimiser_of(self, stage: StageTable) -> OptimiserTable:
        """The stage's own optimiser, or the recipe's."""
        return stage.optimiser or self.optimiser

    def heads_of(self, stage: StageTable) -> list[Head]:
        """The heads that learn in a stage: of those it names, the ones that a loss of it reaches.

        The others would be given gradients of zero, and shrink by weight decay.
        """
        kinds = {loss.kind for loss in stage.losses}
        reached: set[Head] = set()
        if "haversine" in kinds:
            reached.add("coordinates")
        if kinds != {"haversine"} or self.model.coordinates == "embedding":
            reached.add("projection")
        return [head for head in stage.train.heads if head in reached]

    def make_preprocessing(self) -> Preprocessing:
        """The runtime's own `Preprocessing`, so that training and prediction see the same pixels."""
        table = self.preprocessing
        mean, std = _normalisation(table, self.model.backbone)
        return Preprocessing(
            size=table.size, resize=table.resize, interpolation=table.interpolation, mean=mean, std=std
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values of every key, with those that were left out at their defaults."""
        values: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        for stage in values["stages"]:
            stage["losses"] = [
                {key: loss[key] for key in loss if key in ("kind", "weight", *_LOSS_KEYS[loss["kind"]])}
                for loss in stage["losses"]
            ]
        return values

    def to_toml(self) -> str:
        """`as_dict` as TOML, which `load_recipe` reads back to the same recipe."""
        return tomli_w.dumps(self.as_dict())


def recipe_names() -> list[str]:
    """Names of the recipes that come with the trainer."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str, changes: list[str] | None = None) -> Recipe:
    """Reads a recipe and applies changes to it.

    Args:
        name: one of `recipe_names()`, or the path of a TOML file.
        changes: `key=value` each, the key dotted (`run.seed=1`, `stages.0.batch_size=64`, `stages.*.epochs=2`), the
            value as TOML writes it; what is not TOML is taken as text.

    Raises:
        InputError: there is no such recipe.
        UsageError: it is not TOML, or a key is unknown, missing or of a value that makes no sense.
    """
    path = RECIPES / f"{name}.toml" if name in recipe_names() else Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        raise InputError(
            f"{name}: there is no such recipe" + (f"; {near[0]} is near it" if near else ""),
            hint=f"give the path of a TOML file, or one of {', '.join(recipe_names())}",
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not TOML, which is UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {str(error)[0].lower()}{str(error)[1:]}") from error
    for change in changes or []:
        _apply(values, change)
    return parse_recipe(values, f"{name} with {len(changes)} --set" if changes else name)


def parse_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Checks plain values.

    Raises:
        UsageError: the message names the first fault's place and every other's.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = [_fault(fault, values) for fault in error.errors()]
        also = f"and then: {'; '.join(faults[1:])}" if faults[1:] else ""
        raise UsageError(f"{where}: {faults[0]}", hint=also) from None


def _fault(fault: Any, values: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        known = _keys_beside(fault["loc"])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        return f"{place} is not a key of a recipe" + (f"; {near[0]} is near it" if near else "")
    if fault["type"] == "missing":
        return f"{place} is missing"
    if fault["type"] == "value_error" and not message.startswith("expected"):
        return f"{place}: {message}" if place else message
    return f"{place} is {_shown(fault['input'])}: {_expectation(fault, message)}"


def _expectation(fault: Any, message: str) -> str:
    """What was expected, in the words of somebody who writes TOML and not Python."""
    context, kind = fault.get("ctx", {}), str(fault["type"])
    plain = {
        "int_type": "expected a whole number",
        "int_from_float": "expected a whole number",
        "float_type": "expected a number",
        "finite_number": "expected a finite number",
        "bool_type": "expected true or false",
        "string_type": "expected text",
        "list_type": "expected a list",
        "model_type": "expected a table",
        "model_attributes_type": "expected a table",
        "string_pattern_mismatch": "expected small letters, digits, - and _ alone",
    }
    bounds = {
        "greater_than_equal": ("ge", "expected at least {}"),
        "greater_than": ("gt", "expected more than {}"),
        "less_than_equal": ("le", "expected at most {}"),
        "less_than": ("lt", "expected less than {}"),
        "too_short": ("min_length", "expected at least {} in the list"),
        "literal_error": ("expected", "expected {}"),
    }
    if kind in bounds:
        key, sentence = bounds[kind]
        bound = context[key]
        return sentence.format(bound if isinstance(bound, str) else f"{bound:.10g}")
    return plain.get(kind) or f"{message[0].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    """A value about as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    return repr(value) if isinstance(value, (str, int, float, list)) else str(value)


def _keys_beside(place: tuple[int | str, ...]) -> list[str]:
    table: Any = Recipe
    for part in place[:-1]:
        if isinstance(part, int):
            continue
        annotation = table.model_fields[part].annotation
        table = next((t for t in _tables_in(annotation)), None)
        if table is None:
            return []
    return list(table.model_fields)


def _tables_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for part in getattr(annotation, "__args__", ()) for table in _tables_in(part)]


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {change}: expected key=value, as in run.seed=1 or stages.0.batch_size=64")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    _put(values, key.strip().split("."), value, change)


def _put(values: Any, parts: list[str], value: Any, change: str) -> None:
    head, rest = parts[0], parts[1:]
    if isinstance(values, list):
        places = range(len(values)) if head == "*" else [int(head)] if head.isdecimal() else []
        named = [i for i, item in enumerate(values) if isinstance(item, dict) and item.get("name") == head]
        for place in list(places) or named:
            if place >= len(values):
                raise UsageError(f"--set {change}: there is no {place}; they are counted from 0, to {len(values) - 1}")
            if rest:
                _put(values[place], rest, value, change)
            else:
                values[place] = value
        if not list(places) and not named:
            names = [str(item["name"]) for item in values if isinstance(item, dict) and "name" in item]
            raise UsageError(f"--set {change}: {head!r} is none of {', '.join([*names, '0 and up', '* for all'])}")
        return
    if not isinstance(values, dict):
        raise UsageError(f"--set {change}: {head!r} has no keys below it")
    if rest:
        _put(values.setdefault(head, {}), rest, value, change)
    else:
        values[head] = value


def _normalisation(table: PreprocessingTable, backbone: str) -> tuple[Triple, Triple]:
    imagenet = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    chosen: dict[str, Triple] = {}
    for key, value in (("mean", table.mean), ("std", table.std)):
        if value == "imagenet":
            chosen[key] = imagenet[key]
        elif value == "pretrained":
            # timm takes seconds to import, and only this needs it.
            from trainer.models.backbones import normalisation_of

            chosen[key] = normalisation_of(backbone)[0 if key == "mean" else 1]
        else:
            first, second, third = map(float, value)
            chosen[key] = (first, second, third)
    return chosen["mean"], chosen["std"]
