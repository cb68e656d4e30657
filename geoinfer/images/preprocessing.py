"""`Preprocessing`: everything that decides which pixels a model sees, in one frozen value.

Training, indexing and prediction read it from the same place (the metadata of the ONNX model), and its digest is part
of an embedder's identity, so that an index made from other pixels is refused instead of answering nonsense.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from geoinfer.errors import UsageError
from geoinfer.integrity import canonical_json

ResizePolicy = Literal["crop", "crop_floor", "crop_torchvision", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_MAX_SIZE: Final = 4096
_KEYS: Final = ("size", "resize", "interpolation", "mean", "std", "colour")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a photo becomes a `(size, size, 3)` uint8 array.

    Attributes:
        size: side of the square that the model takes, in pixels.
        resize: `crop` resizes the shorter side to `size`, the longer to the nearest pixel, and cuts out the centre,
            before which go `(longer - size) / 2` pixels, rounded down. `crop_floor` rounds the longer side down, as the
            CLIP image processor of transformers does. `crop_torchvision` rounds it down too, but half a pixel before
            the centre to the even number, as Resize and CenterCrop of torchvision do. `squash` resizes both sides.
        interpolation: the resampling filter, always antialiased when it shrinks.
        mean: per channel, of pixels scaled to [0, 1]. Applied inside the model's graph, and kept here because two
            models that differ in nothing else are still two embedders.
        std: likewise.
        colour: channel order; only `rgb`.
    """

    size: int = 224
    resize: ResizePolicy = "crop"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    colour: Literal["rgb"] = "rgb"

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no model could mean."""
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= _MAX_SIZE:
            raise UsageError(f"preprocessing size is {self.size!r}; expected a whole number from 1 to {_MAX_SIZE}")
        for name, value, allowed in (
            ("resize", self.resize, get_args(ResizePolicy)),
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("colour", self.colour, ("rgb",)),
        ):
            if value not in allowed:
                raise UsageError(f"preprocessing {name} is {value!r}; expected one of {', '.join(allowed)}")
        for name, triple in (("mean", self.mean), ("std", self.std)):
            if len(triple) != 3 or not all(isinstance(v, (int, float)) and abs(v) < 1e6 for v in triple):
                raise UsageError(f"preprocessing {name} is {triple!r}; expected three numbers")
        if min(self.std) <= 0:
            raise UsageError(f"preprocessing std is {self.std!r}; expected three positive numbers")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a model's metadata and in an index's manifest."""
        return {
            "size": self.size,
            "resize": self.resize,
            "interpolation": self.interpolation,
            "mean": [float(v) for v in self.mean],
            "std": [float(v) for v in self.std],
            "colour": self.colour,
        }

    @classmethod
    def from_dict(cls, values: object) -> Preprocessing:
        """The inverse of `as_dict`.

        Raises:
            UsageError: not a mapping, a key is unknown or missing, or a value makes no sense.
        """
        if not isinstance(values, dict):
            raise UsageError(f"preprocessing is {type(values).__name__}; expected a JSON object")
        unknown = sorted(map(str, set(values) - set(_KEYS)))
        if unknown:
            raise UsageError(f"preprocessing has unknown {', '.join(unknown)}; known are {', '.join(_KEYS)}")
        if "size" not in values:
            raise UsageError("preprocessing has no size")
        arguments = dict(values)
        for name in ("mean", "std"):
            if name in arguments:
                if not isinstance(arguments[name], (list, tuple)):
                    raise UsageError(f"preprocessing {name} is {arguments[name]!r}; expected three numbers")
                arguments[name] = tuple(arguments[name])
        return cls(**arguments)

    @classmethod
    def parse(cls, text: str) -> Preprocessing:
        """From the command line: `size=224,resize=squash,interpolation=bilinear,mean=0.5/0.5/0.5,std=imagenet`.

        What is left out takes the defaults of the class, except `size`, which must be given.

        Raises:
            UsageError: a part is not `key=value`, or as `from_dict`.
        """
        values: dict[str, Any] = {}
        for part in text.split(","):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not key or not value:
                raise UsageError(
                    f"preprocessing has {part.strip()!r}; expected key=value, as in size=224,resize=crop,mean=imagenet"
                )
            values[key] = _parse_value(key, value)
        return cls.from_dict(values)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name this preprocessing."""
        return hashlib.sha256(canonical_json(self.as_dict()).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.size} px {self.resize}, {self.interpolation}, mean {_triple(self.mean)}, std {_triple(self.std)}"


def _parse_value(key: str, value: str) -> Any:
    if key == "size":
        try:
            return int(value)
        except ValueError:
            raise UsageError(f"preprocessing size is {value!r}; expected a whole number of pixels") from None
    if key in ("mean", "std"):
        if value.lower() == "imagenet":
            return IMAGENET_MEAN if key == "mean" else IMAGENET_STD
        try:
            return cast("Any", tuple(float(v) for v in value.split("/")))
        except ValueError:
            raise UsageError(f"preprocessing {key} is {value!r}; expected imagenet, or 0.5/0.5/0.5") from None
    return value


def _triple(values: tuple[float, float, float]) -> str:
    return "/".join(f"{v:g}" for v in values)
