"""Embedders that others trained and published, as `TorchEmbedder`s: backbones of timm, image towers of open_clip.

What an embedding is follows the way in which each family was trained, and what its authors compare pictures by:

- DINOv2 and DINOv3 transformers: the class token after the last norm. timm's default for DINOv3 is the mean of the
  patches, its authors' is the class token.
- SigLIP: the answer of its attention pooling, which is the embedding that it was trained on.
- CLIP by open_clip: the class token, projected into the space that image and text share; that is where it was trained
  to compare by cosine. timm's CLIP names give the class token before the projection.
- ConvNeXt, ResNet and other convolutional networks: the mean over the last map, and the norm that follows it if any.

Pixels: the shorter side is resized to the size that the model takes, and the centre cut out as torchvision cuts it.
timm's own evaluation resizes to a little more (`crop_pct`) and cuts more away; the rest of a photo is worth more to us
than the last percent of ImageNet.

An embedder is named alike by whatever name it was asked for: with the tag of its weights, which timm fills in where it
was left out, or with the architecture alone where the weights are random.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import timm
import timm.data
import torch

from export.hub import Published, find_weights
from export.torch_embedder import UNKNOWN_LICENCE, TorchEmbedder
from geoinfer.errors import InputError, MissingPackageError, ModelError, UsageError
from geoinfer.images import Preprocessing
from geoinfer.integrity import sha256_of
from trainer.efficientnet_lite import weights_distribution, weights_path
from trainer.models.backbones import PRETRAINED, RANDOM, check_name, create_backbone

if TYPE_CHECKING:
    from collections.abc import Mapping

OPEN_CLIP: Final = "open_clip:"
_SEED: Final = 0
_SPDX: Final[Mapping[str, str]] = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
}
_EFFICIENTNET_LITE: Final = re.compile(r"tf_efficientnet_lite([012])(\.in1k)?")
_DINOV3_TRANSFORMER: Final = re.compile(r"vit_\w+_dinov3\w*")
_INTERPOLATIONS: Final = ("nearest", "bilinear", "bicubic", "lanczos")


def load_public(
    name: str,
    *,
    weights: str | None = None,
    allow_download: bool = False,
    size: int | None = None,
    licence: str | None = None,
) -> TorchEmbedder:
    """Builds a published embedder.

    Args:
        name: as timm knows it, with the tag of its weights (`vit_base_patch14_dinov2.lvd142m`) or without, for its
            default ones; or `open_clip:ARCHITECTURE/TAG`.
        weights: a file of them, `none` for random numbers; None for those of the tag, from a cache of this machine.
        allow_download: fetch them where no cache has them. Without it no connection is opened.
        size: side of the pictures in pixels; None for the size that the weights were trained at.
        licence: SPDX expression; None for what the publisher says.

    Raises:
        UsageError: the name is not known, or the architecture takes no pictures of this size.
        InputError: the weights are not on this machine, or cannot be fetched or read.
        ModelError: the file's weights are not those of this architecture.
        MissingPackageError: open_clip, or the package with EfficientNet-Lite's weights, is not installed.
    """
    if weights is not None and weights != RANDOM and not Path(weights).is_file():
        raise InputError(
            f"--weights {weights}: there is no such file",
            hint="--weights takes a file, or none for random weights; leave it out for the published ones",
        )
    with torch.random.fork_rng(devices=[]):  # so that random weights are the same ones each time
        torch.manual_seed(_SEED)
        if name.startswith(OPEN_CLIP):
            return _load_tower(name, weights, licence, allow_download=allow_download, size=size)
        return _load_timm(name, weights, licence, allow_download=allow_download, size=size)


def _load_timm(
    name: str, weights: str | None, licence: str | None, *, allow_download: bool, size: int | None
) -> TorchEmbedder:
    check_name(name, called="the backbone")
    configuration: Any = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    architecture = name.partition(".")[0]
    tagged = f"{architecture}.{configuration.tag}" if configuration.tag else name
    called = architecture if weights == RANDOM else tagged
    preprocessing = _timm_preprocessing(name, configuration, size)
    lite = _EFFICIENTNET_LITE.fullmatch(name)
    path: Path | None = None
    if weights is None and lite:
        path, origin = weights_path(int(lite[1])), f"weights of {weights_distribution(int(lite[1]))}"
    elif weights is None:
        published = _published(name, configuration)
        path, origin = find_weights(name, published, allow_download=allow_download), f"weights of {published.page}"
    elif weights != RANDOM:
        path, origin = Path(weights), f"weights of {Path(weights).name}"
    else:
        origin = "random weights"
    chosen = PRETRAINED if weights is None and lite else RANDOM if path is None else str(path)
    try:
        network = create_backbone(name, chosen, size=preprocessing.size).module.eval()
    except ModelError as error:
        raise ModelError(
            str(error),
            hint="timm's own format is expected; a checkpoint of the trainer goes through `python -m export onnx`",
        ) from error
    if _DINOV3_TRANSFORMER.fullmatch(architecture):
        network.global_pool = "token"  # its authors' pooling, see above
    published_licence = _spdx(configuration.license) if weights is None else ""
    return _embedder(called, network, preprocessing, path, f"{called} by timm, {origin}", licence or published_licence)


def _load_tower(
    name: str, weights: str | None, licence: str | None, *, allow_download: bool, size: int | None
) -> TorchEmbedder:
    try:
        from export.open_clip_tower import (
            build_tower,
            known_tags,
            parse_tower,
            published_tower,
            random_name,
            tower_licence,
        )
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        raise MissingPackageError(
            f"{name} needs open_clip, which is not installed", hint="pip install open-clip-torch"
        ) from error
    tower = parse_tower(name)
    path: Path | None = None
    if weights is None and not tower.tag:
        raise UsageError(
            f"{name}: which weights?",
            hint=f"{OPEN_CLIP}{tower.architecture}/TAG with TAG one of {known_tags(tower.architecture)}; or --weights",
        )
    if weights is None:
        published = published_tower(tower)
        path, origin = find_weights(name, published, allow_download=allow_download), f"weights of {published.page}"
    elif weights != RANDOM:
        path, origin = Path(weights), f"weights of {Path(weights).name}"
    else:
        origin = "random weights"
    network, preprocessing = build_tower(tower, path, size)
    published_licence = tower_licence(tower) if weights is None else ""
    called = random_name(tower) if path is None else name.removeprefix(OPEN_CLIP)
    return _embedder(
        f"open_clip-{called.replace('/', '.')}",
        network,
        preprocessing,
        path,
        f"{OPEN_CLIP}{called}, {origin}",
        licence or published_licence,
    )


def _embedder(
    name: str, network: torch.nn.Module, preprocessing: Preprocessing, path: Path | None, source: str, licence: str
) -> TorchEmbedder:
    sha256 = _digest(network) if path is None else sha256_of(path)
    return TorchEmbedder(
        network=network,
        preprocessing=preprocessing,
        identity=f"{name}{'-random' if path is None else ''}:{sha256[:16]}",
        source=source,
        licence=licence or UNKNOWN_LICENCE,
        weights_sha256=sha256,
    )


def _timm_preprocessing(name: str, configuration: Any, size: int | None) -> Preprocessing:
    values = timm.data.resolve_data_config(pretrained_cfg=configuration.to_dict())
    _, height, width = values["input_size"]
    if size is None and height != width:
        raise UsageError(
            f"{name} takes pictures of {height} x {width} pixels; geoinfer's are square", hint="give --size"
        )
    interpolation = values["interpolation"]
    return Preprocessing(
        size=height if size is None else size,
        resize="squash" if values["crop_mode"] == "squash" else "crop_torchvision",
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bicubic",
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
    )


def _published(name: str, configuration: Any) -> Published:
    filename = configuration.hf_hub_filename or ""
    filenames = (filename,) if filename else ("model.safetensors", "pytorch_model.bin")
    if not configuration.hf_hub_id and not configuration.url:
        raise UsageError(f"timm publishes no weights of {name}", hint="give --weights FILE, or none for random ones")
    return Published(
        configuration.hf_hub_id or "", filenames, configuration.url or "", Path(torch.hub.get_dir()) / "checkpoints"
    )


def _spdx(licence: str | None) -> str:
    """What timm calls a licence, as SPDX writes it; empty where it says none."""
    if not licence or licence == "other":
        return ""
    return _SPDX.get(licence, f"LicenseRef-{licence}")


def _digest(network: torch.nn.Module) -> str:
    """SHA-256 of all tensors, by their names: what stands for a file where there is none."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
