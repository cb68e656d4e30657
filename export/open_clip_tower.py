"""Image towers of open_clip: CLIP as OpenAI and LAION trained it, SigLIP, CoCa and their relatives."""

from __future__ import annotations

import difflib
import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import load_state_dict
from open_clip.model import resize_pos_embed

from export.hub import Published
from export.messages import first_line
from geoinfer.errors import ModelError, UsageError
from geoinfer.images import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX: Final = "open_clip:"

# Stands in for the text tower, which nobody needs here: as small as open_clip builds one, and never with a tokenizer or
# configuration that would be fetched.
_NO_TEXT: Final = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
_VISUAL: Final = "visual."
_OPENAI: Final = "openai"
_QUICK_GELU: Final = "-quickgelu"


@dataclass(frozen=True, slots=True)
class TowerName:
    """`open_clip:ARCHITECTURE/TAG`, taken apart.

    Attributes:
        architecture: as open_clip knows it.
        tag: of its weights; empty where none was named.
    """

    architecture: str
    tag: str

    @property
    def configuration(self) -> dict[str, Any]:
        """What open_clip knows of the weights; empty without a tag."""
        return dict(open_clip.get_pretrained_cfg(self.architecture, self.tag)) if self.tag else {}


def parse_tower(name: str) -> TowerName:
    """Takes a name apart.

    Raises:
        UsageError: open_clip knows no such architecture, or no such weights of it; the hint has the nearest.
    """
    architecture, _, tag = name.removeprefix(PREFIX).partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        raise UsageError(
            f"the backbone is {name!r}, but open_clip {open_clip.__version__} has no {architecture!r}",
            hint=f"near it are {', '.join(near)}" if near else "open_clip.list_models() names them all",
        )
    if tag and not open_clip.get_pretrained_cfg(architecture, tag):
        raise UsageError(
            f"the backbone is {name!r}, but open_clip {open_clip.__version__} has no weights {tag!r} of {architecture}",
            hint=f"it has {known_tags(architecture)}",
        )
    return TowerName(architecture, tag)


def known_tags(architecture: str) -> str:
    """The tags of an architecture's weights, for a hint."""
    return ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"


def published_tower(tower: TowerName) -> Published:
    """Where open_clip publishes the weights of a tag.

    OpenAI's own files are programs (TorchScript), which are not run here; the hub has the same weights as tensors. So
    neither OpenAI's address nor what its package left in the cache that open_clip shares with it is looked at.
    """
    configuration = tower.configuration
    repository, _, filename = str(configuration.get("hf_hub", "")).rpartition("/")
    filenames = (filename,) if filename else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if filename.endswith((".bin", ".pth")):
        filenames = (f"{filename[:-4]}.safetensors", filename)
    url = "" if repository and tower.tag == _OPENAI else str(configuration.get("url", ""))
    return Published(repository, filenames, url, Path("~/.cache/clip").expanduser())


def random_name(tower: TowerName) -> str:
    """What a tower of random weights is called: its architecture, which a tag may change in its activation alone.

    `-quickgelu` is open_clip's own word for that.
    """
    quick = bool(tower.configuration.get("quick_gelu", False))
    return tower.architecture + (_QUICK_GELU if quick and not tower.architecture.endswith(_QUICK_GELU) else "")


def tower_licence(tower: TowerName) -> str:
    """SPDX expression of a tag's weights where it is known here, else empty.

    open_clip itself does not say; these are what the publishers' own pages say.
    """
    if tower.tag == _OPENAI:
        return "MIT"
    repository = str(tower.configuration.get("hf_hub", ""))
    if repository.startswith("laion/"):
        return "MIT"
    if repository.startswith("timm/ViT-") and "SigLIP" in repository:
        return "Apache-2.0"
    return ""


def build_tower(tower: TowerName, weights: Path | None, size: int | None) -> tuple[torch.nn.Module, Preprocessing]:
    """Builds an image tower.

    Args:
        tower: which.
        weights: a file in open_clip's format; None for random numbers.
        size: side of the pictures; None for the architecture's own. Position embeddings are resampled to fit.

    Returns:
        The tower, (n, 3, size, size) -> (n, dim), projected into the space that image and text share; and its pixels.

    Raises:
        UsageError: the tower takes no pictures of that size, or pads them.
        ModelError: the file's weights are not those of this architecture.
    """
    configuration = tower.configuration
    asked = {key: configuration[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in configuration}
    with _quiet():
        try:
            model: Any = open_clip.create_model(
                tower.architecture,
                force_image_size=size,
                force_quick_gelu=bool(configuration.get("quick_gelu", False)),
                force_preprocess_cfg=asked,
                text_cfg=_NO_TEXT,
                pretrained_text=False,
            )
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            raise UsageError(f"{tower.architecture} cannot be built: {first_line(error)}") from error
        if weights is not None:
            _load(model, weights, tower.architecture)
    return _Tower(model.visual).eval(), _preprocessing(model.visual.preprocess_cfg, tower.architecture)


class _Tower(torch.nn.Module):
    """The tower's pooled, projected answer, without the patches that some towers give with it."""

    def __init__(self, visual: torch.nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        answer = self.visual(planes)
        embeddings: torch.Tensor = answer[0] if isinstance(answer, tuple) else answer
        return embeddings


def _load(model: Any, path: Path, architecture: str) -> None:
    try:
        state = dict(load_state_dict(str(path), weights_only=True))
    except Exception as error:  # torch and safetensors raise nearly anything on a foreign file
        raise ModelError(
            f"{path}: no weights that can be read: damaged, of another format, or a pickle of more than tensors, whose "
            "code is not run",
            hint="open_clip's own format is expected: safetensors, or PyTorch with tensors alone",
        ) from error
    try:
        state = convert_state_dict(model, state)
        resize_pos_embed(state, model)
        visual = {key.removeprefix(_VISUAL): value for key, value in state.items() if key.startswith(_VISUAL)}
        model.visual.load_state_dict(visual, strict=True)
    except Exception as error:
        raise ModelError(
            f"{path}: not weights of {architecture}: {first_line(error)}",
            hint="the image tower's tensors are expected, their names beginning with visual., as open_clip saves them",
        ) from error


def _preprocessing(configuration: dict[str, Any], architecture: str) -> Preprocessing:
    size, mode = configuration["size"], configuration["resize_mode"]
    sides = set(size) if isinstance(size, (tuple, list)) else {size}
    if len(sides) != 1:
        raise UsageError(f"{architecture} takes pictures of {size} pixels; geoinfer's are square")
    if mode not in ("shortest", "squash"):
        raise UsageError(f"{architecture} resizes by {mode!r}, which geoinfer does not")
    return Preprocessing(
        size=int(sides.pop()),
        resize="squash" if mode == "squash" else "crop_torchvision",
        interpolation=configuration["interpolation"],
        mean=tuple(configuration["mean"]),
        std=tuple(configuration["std"]),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    # open_clip logs through the root logger that it starts without weights, which is what is meant here.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
