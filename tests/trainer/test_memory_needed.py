"""Memory that is worked out against tensors that are really kept."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("pydantic")

from trainer.memory_needed import stage_needs  # noqa: E402
from trainer.models import create_model, freeze  # noqa: E402
from trainer.models.freezing import training_mode  # noqa: E402
from trainer.recipe import load_recipe, parse_recipe  # noqa: E402

pytestmark = pytest.mark.slow


def tiny_recipe(stages: int = 1, **tables: dict[str, Any]) -> Any:
    """Of stages alike, with keys of tables changed; those of `stage` are of all of them."""
    stage = {"epochs": 1, "batch_size": 8, "losses": [{"kind": "supcon", "levels": [5]}]} | tables.pop("stage", {})
    values: dict[str, Any] = {
        "name": "tiny",
        "summary": "For tests.",
        "model": {"backbone": "test_efficientnet", "weights": "none", "dim": 16, "hidden": 32},
        "preprocessing": {"size": 64},
        "run": {},
        "stages": [stage | {"name": f"stage-{i}"} for i in range(stages)],
    }
    return parse_recipe({key: value | tables.get(key, {}) if isinstance(value, dict) else value
                         for key, value in values.items()}, "tiny")  # fmt: skip


def reachable_bytes(recipe: Any, photos: int) -> int:
    """Bytes that the graph of a real forward pass holds, by walking it from the answer, without the weights."""
    model = create_model(
        recipe.model.backbone, recipe.make_preprocessing(), weights="none", dim=recipe.model.dim,
        hidden=recipe.model.hidden,
    )  # fmt: skip
    freeze(model, recipe.stages[0].train.backbone)
    training_mode(model, batch_norm=recipe.model.batch_norm == "train")
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    size = recipe.preprocessing.size
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.run.precision != "fp32"):
        answer = model(torch.zeros(photos, size, size, 3, dtype=torch.uint8))
    seen: set[Any] = set()
    waiting, kept = [answer.grad_fn], {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [after for after, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_"):
                value = getattr(node, name)
                for tensor in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(tensor, torch.Tensor):
                        storage = tensor.untyped_storage()
                        if storage.data_ptr() not in own:
                            kept[storage.data_ptr()] = storage.nbytes()
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("policy", ["all", "last:2", "none"])
@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "test_efficientnet"])
def test_activations_are_those_that_a_graph_really_holds(backbone: str, policy: str, precision: str) -> None:
    recipe = tiny_recipe(
        model={"backbone": backbone}, run={"precision": precision}, stage={"train": {"backbone": policy}}
    )  # fmt: skip
    (needs,) = stage_needs(recipe)
    per_photo = (reachable_bytes(recipe, 9) - reachable_bytes(recipe, 5)) / 4
    assert needs.bytes_per_photo == pytest.approx(per_photo, rel=0.02)


def test_weights_gradients_and_moments_by_hand() -> None:
    # 4 bytes for each weight; for each that learns 4 for its gradient and 8 for Adam's two moments.
    (needs,) = stage_needs(tiny_recipe(stage={"train": {"backbone": "none"}}))
    head = 256 * 32 + 32 + 32 * 16 + 16
    assert needs.learnable == head
    # What is kept once whatever the batch (a scalar, say) is all that may come on top.
    assert 0 <= needs.bytes_fixed - (4 * needs.parameters + 12 * head) < 1024


def test_more_photos_need_more_and_parts_of_a_batch_less() -> None:
    totals = [stage_needs(tiny_recipe(stage={"batch_size": n}))[0].bytes_total for n in (2, 4, 8, 64)]
    assert totals == sorted(set(totals))
    (whole,) = stage_needs(tiny_recipe(stage={"batch_size": 64}))
    (parts,) = stage_needs(tiny_recipe(stage={"batch_size": 64, "micro_batch": 8}))
    assert (whole.photos_at_once, parts.photos_at_once) == (64, 8)
    assert whole.bytes_total - parts.bytes_total == 56 * whole.bytes_per_photo
    (larger,) = stage_needs(tiny_recipe(stage={"batch_size": 8, "micro_batch": 64}))
    assert larger.photos_at_once == 8


def test_freezing_more_needs_less() -> None:
    values = tiny_recipe(4, model={"backbone": "test_vit"}).as_dict()
    for stage, policy in zip(values["stages"], ("all", "last:3", "last:1", "none"), strict=True):
        stage["train"]["backbone"] = policy
    needs = stage_needs(parse_recipe(values, "tiny"))
    assert [n.stage for n in needs] == ["stage-0", "stage-1", "stage-2", "stage-3"]
    for measure in ("learnable", "bytes_fixed", "bytes_per_photo", "bytes_total"):
        values = [getattr(n, measure) for n in needs]
        assert values == sorted(values, reverse=True), measure
    assert len({n.parameters for n in needs}) == 1


def test_half_precision_keeps_less() -> None:
    (full,) = stage_needs(tiny_recipe())
    (half,) = stage_needs(tiny_recipe(run={"precision": "bf16"}))
    assert half.bytes_per_photo < 0.8 * full.bytes_per_photo


def test_the_papers_models() -> None:
    (resnet,) = stage_needs(load_recipe("resnet50"))
    assert resnet.learnable == 23_833_600  # "approximately 24 million"
    (vit,) = stage_needs(load_recipe("vit_single_stage"))
    assert vit.learnable == 29_140_480  # "approximately 29 million"
