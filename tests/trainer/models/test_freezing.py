"""Which parameters learn under each policy, family by family, and what stays as it was of those that do not."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from geoinfer.errors import UsageError  # noqa: E402
from geoinfer.images import Preprocessing  # noqa: E402
from trainer.models import create_model, freeze  # noqa: E402
from trainer.models.freezing import count_parameters, training_mode  # noqa: E402

pytestmark = pytest.mark.slow


def built(backbone: str, size: int = 224, *, device: str = "meta", **options: Any) -> Any:
    with torch.device(device):
        return create_model(backbone, Preprocessing(size), weights="none", **options)


def learning(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


HEAD = {"projection.0.weight", "projection.0.bias", "projection.3.weight", "projection.3.bias"}

# Of each family: policy, and the beginnings of the names that learn, by hand from timm's architectures.
EXPECTED = [
    ("resnet50", "layer3+layer4", ("layer3.", "layer4.")),
    ("resnet50", "last:2", ("layer3.", "layer4.")),
    ("resnet50", "last:1", ("layer4.",)),
    ("resnet50", "layer4.2", ("layer4.2.",)),
    ("resnet50", "conv1+bn1", ("conv1.", "bn1.")),
    ("vit_base_patch16_224", "last:4", ("blocks.8.", "blocks.9.", "blocks.10.", "blocks.11.", "norm.")),
    ("vit_base_patch16_224", "last:1", ("blocks.11.", "norm.")),
    ("vit_base_patch16_224", "blocks.0+patch_embed", ("blocks.0.", "patch_embed.")),
    ("vit_large_patch16_224", "last:12", (*(f"blocks.{i}." for i in range(12, 24)), "norm.")),
    ("efficientnet_b0", "last:2", ("blocks.5.", "blocks.6.", "conv_head.", "bn2.")),
    ("tf_efficientnet_lite0", "last:1", ("blocks.6.", "conv_head.", "bn2.")),
    ("convnext_tiny", "last:1", ("stages.3.", "head.norm.")),
    ("convnext_tiny", "last:2", ("stages.2.", "stages.3.", "head.norm.")),
    ("swin_tiny_patch4_window7_224", "last:2", ("layers.2.", "layers.3.", "norm.")),
    ("swin_tiny_patch4_window7_224", "last:1", ("layers.3.", "norm.")),
    ("mobilenetv3_small_100", "last:1", ("blocks.5.", "conv_head.")),
    ("mobilenetv2_100", "last:1", ("blocks.6.", "conv_head.", "bn2.")),
    # Blocks of another kind follow the first ones, and the position embedding comes before.
    ("xcit_nano_12_p16_224", "last:1", ("blocks.11.", "cls_attn_blocks.", "norm.")),
    ("resnet50", "none", ()),
    ("vit_base_patch16_224", "none", ()),
]


@pytest.mark.parametrize(("backbone", "policy", "beginnings"), EXPECTED)
def test_exactly_these_parameters_learn(backbone: str, policy: str, beginnings: tuple[str, ...]) -> None:
    model = built(backbone)
    freeze(model, policy)
    with torch.device("meta"):
        of_backbone = [name for name, _ in timm.create_model(backbone, num_classes=0).named_parameters()]
    expected = {f"backbone.{name}" for name in of_backbone if name.startswith(beginnings or "?")}
    assert learning(model) == expected | HEAD
    for beginning in beginnings:
        assert any(name.startswith(beginning) for name in of_backbone), beginning


def test_names_of_a_small_network_one_by_one() -> None:
    model = built("test_vit")
    freeze(model, "last:1")
    block = {
        f"backbone.blocks.5.{part}.{role}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for role in ("weight", "bias")
    }
    assert learning(model) == block | {"backbone.norm.weight", "backbone.norm.bias"} | HEAD


def test_all_learns_everything() -> None:
    model = built("test_efficientnet", coordinates="embedding")
    freeze(model, "all")
    assert learning(model) == {name for name, _ in model.named_parameters()}


def test_a_policy_undoes_the_one_before() -> None:
    model = built("test_vit")
    freeze(model, "all")
    freeze(model, "none", ["projection"])
    assert learning(model) == HEAD


def test_heads_by_name() -> None:
    model = built("test_vit", coordinates="embedding")
    freeze(model, "none", ["coordinates"])
    assert learning(model) == {name.replace("projection", "coordinate_head") for name in HEAD}
    freeze(model, "none", ["projection"])
    assert learning(model) == HEAD
    freeze(model, "blocks.0", [])
    assert learning(model)
    assert all(name.startswith("backbone.blocks.0.") for name in learning(model))


# The paper: "approximately 24 million learnable parameters" for ResNet50 with layer3 and layer4, "approximately 29
# million" for ViT-B/16 with the last 4 of 12 blocks; both with the head. Sums by hand: a bottleneck of width w in
# layer4, and so on, are timm's; the head is 2048 x 768 + 768 + 768 x 256 + 256.
def test_learnable_parameters_are_the_papers_for_resnet50() -> None:
    model = built("resnet50")
    freeze(model, "layer3+layer4")
    layer3, layer4, head = 7_098_368, 14_964_736, 2048 * 768 + 768 + 768 * 256 + 256
    assert count_parameters(model, learnable=True) == layer3 + layer4 + head == 23_833_600
    assert count_parameters(model) == 23_508_032 + head


def test_learnable_parameters_are_the_papers_for_vit_base() -> None:
    model = built("vit_base_patch16_224")
    freeze(model, "last:4")
    width = 768
    block = 12 * width * width + 13 * width  # qkv, projection, two layers of 4 x width, their biases, two norms
    head = width * 768 + 768 + 768 * 256 + 256
    assert count_parameters(model, learnable=True) == 4 * block + 2 * width + head == 29_140_480


def test_learnable_parameters_of_the_stages_of_the_vit_large() -> None:
    model = built("vit_large_patch16_224.orig_in21k")
    width = 1024
    block = 12 * width * width + 13 * width
    head = width * 768 + 768 + 768 * 256 + 256
    for blocks in (12, 7, 1):
        freeze(model, f"last:{blocks}")
        assert count_parameters(model, learnable=True) == blocks * block + 2 * width + head


@pytest.mark.parametrize(
    ("backbone", "policy", "message"),
    [
        ("resnet50", "layer5", r"this backbone has no 'layer5'; it has conv1, bn1, .*layer4"),
        ("resnet50", "layer3+", "this backbone has no ''"),
        ("resnet50", "", "this backbone has no ''"),
        ("resnet50", "last:5", "this backbone has 4 blocks, so 1 to 4"),
        ("resnet50", "last:0", "this backbone has 4 blocks, so 1 to 4"),
        ("resnet50", "last:-1", "this backbone has 4 blocks"),
        ("resnet50", "last:two", "this backbone has 4 blocks"),
        ("resnet50", "last:", "this backbone has 4 blocks"),
        ("vit_base_patch16_224", "layer3+layer4", "this backbone has no 'layer3'; it has patch_embed"),
        ("regnety_002", "last:1", "where this backbone's blocks are is not known"),
    ],
)
def test_policies_that_do_not_fit_are_refused(backbone: str, policy: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        freeze(built(backbone), policy)
    assert f"train.backbone is {policy!r}" in str(caught.value)


def test_nothing_that_learns_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing would learn"):
        freeze(built("test_vit"), "none", [])
    with pytest.raises(UsageError, match="nothing would learn"):
        freeze(built("test_vit"), "none", ["coordinates"])


def statistics(model: Any) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name or "tracked" in name}


def noise(count: int = 6, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_byobnet", "mobilenetv3_small_050"])
def test_frozen_batch_norms_keep_their_statistics(backbone: str) -> None:
    model = built(backbone, 64, device="cpu")
    freeze(model, "last:1")
    before = statistics(model)
    assert before
    training_mode(model, batch_norm=False)
    model(noise())
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())


def test_batch_norms_that_learn_may_take_their_statistics_from_the_batch() -> None:
    model = built("test_resnet", 64, device="cpu")
    freeze(model, "layer3+layer4")
    before = statistics(model)
    training_mode(model, batch_norm=True)
    model(noise())
    changed = {name for name, value in statistics(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(("backbone.layer3.", "backbone.layer4."))}


class OwnNorm(torch.nn.Module):
    """Keeps statistics as timm's own norms do, without being one of torch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.running_var.lerp_(x.var(dim=(0, 2, 3)).detach(), 0.1)
        return x * (self.weight / self.running_var.sqrt()).view(1, -1, 1, 1)


def test_norms_that_share_no_base_with_torchs_are_frozen_too() -> None:
    model = built("test_resnet", 64, device="cpu")
    model.backbone.layer4.append(OwnNorm(96))
    freeze(model, "layer4")
    training_mode(model, batch_norm=False)
    model(noise())
    assert torch.equal(model.backbone.layer4[-1].running_var, torch.ones(96))
    training_mode(model, batch_norm=True)
    model(noise())
    assert not torch.equal(model.backbone.layer4[-1].running_var, torch.ones(96))


def dropping(model: Any) -> set[str]:
    """Names of modules that drop something in the mode that they are in."""
    return {
        name
        for name, module in model.named_modules()
        if module.training and (getattr(module, "p", 0) or getattr(module, "drop_prob", 0) or 0) > 0
    }


def test_frozen_blocks_drop_nothing() -> None:
    # Swin drops paths by default, each block with a rate of its own.
    model = built("swin_tiny_patch4_window7_224")
    model.train()
    assert any(name.startswith("backbone.layers.0.") for name in dropping(model))
    freeze(model, "last:1")
    training_mode(model, batch_norm=False)
    paths = {f"backbone.layers.3.blocks.{block}.drop_path{i}" for block in (0, 1) for i in (1, 2)}
    assert dropping(model) == paths | {"projection.2"}
    freeze(model, "none")
    training_mode(model, batch_norm=False)
    assert dropping(model) == {"projection.2"}


def test_a_frozen_head_drops_nothing() -> None:
    model = built("test_vit", coordinates="embedding")
    freeze(model, "none", ["coordinates"])
    training_mode(model, batch_norm=False)
    assert dropping(model) == {"coordinate_head.2"}


def test_a_frozen_backbone_and_head_answer_the_same_every_time_and_in_any_batch() -> None:
    model = built("test_resnet", 64, device="cpu", coordinates="embedding")
    freeze(model, "none", ["coordinates"])
    training_mode(model, batch_norm=True)
    pixels = noise()
    with torch.no_grad():
        first, again = model(pixels)[:, :256], model(pixels)[:, :256]
        alone = torch.cat([model(pixels[i : i + 1]) for i in range(len(pixels))])[:, :256]
        evaluated = model.eval()(pixels)[:, :256]
    assert torch.equal(first, again)
    assert torch.equal(first, evaluated)
    torch.testing.assert_close(alone, first, rtol=0, atol=1e-5)


def test_only_what_learns_gets_gradients() -> None:
    model = built("test_vit", 64, device="cpu")
    freeze(model, "last:2")
    training_mode(model, batch_norm=False)
    model(noise(size=64)).square().sum(dim=0)[0].backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == learning(model)
