"""A float32 ONNX model as an int8 one: calibrated on real pictures, the layers that int8 would spoil left in float.

Which layers those are is measured. Each one is quantised alone to see what it costs, and from the costliest down as
many stay in float as it takes for the embeddings of pictures that calibration has not seen to stay close enough.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from export.layers import Layer, count_macs, embed, open_session
from export.qdq import Calibration, Ranges, Target, insert_pairs, measure_ranges, place, quantisable_layers
from geoinfer.errors import InputError, ModelError, UsageError
from geoinfer.model_metadata import INT8_MIN_COSINE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

MIN_PICTURES: Final = 16
"""Fewer say nothing about the range of an activation."""

ENOUGH_PICTURES: Final = 100
"""With fewer the report warns."""

_HELD_OUT_EVERY: Final = 4
_MAX_HELD_OUT: Final = 128
# Layers are ranked on so many pictures, and on fewer of a large model: four of a ViT-B.
_MOST_JUDGES: Final = 16
_FEWEST_JUDGES: Final = 4
_JUDGED_MACS: Final = 64e9
_SAY_EVERY_S: Final = 10.0
# Of the loss that is allowed. The worst of 150 photos that took no part lost 2.5 times as much as the worst held out.
_MARGIN: Final = 0.5
_LEAST_SHARE: Final = 0.5
_CALIBRATIONS: Final[tuple[Calibration, ...]] = ("minmax", "percentile")


@dataclass(frozen=True, slots=True)
class FloatLayer:
    """A layer that was left in float.

    Attributes:
        name: of its node.
        operator: `Conv`, `MatMul` or `Gemm`.
        cosine: the smallest, with this layer alone quantised.
        macs_share: of the multiplications of the model that are its own.
        why: `sensitive`, or `feeds a layer in float`.
    """

    name: str
    operator: str
    cosine: float
    macs_share: float
    why: str


@dataclass(frozen=True, slots=True)
class Int8Report:
    """What quantisation did.

    Attributes:
        target: `any` or `cpu`.
        calibration: how ranges were chosen, the better of `minmax` and `percentile`.
        calibration_pictures: that ranges were measured on.
        held_out_pictures: that cosines were measured on.
        layers: of the model that gain from int8.
        float_layers: those left in float, the most sensitive first.
        float_macs_share: of all multiplications, those of attention included, that stay in float.
        all_int8_cosine: smallest over the held-out pictures with every layer quantised.
        min_cosine: smallest with `float_layers` in float.
        mean_cosine: likewise, the mean.
        warnings: sentences.
    """

    target: Target
    calibration: Calibration
    calibration_pictures: int
    held_out_pictures: int
    layers: int
    float_layers: tuple[FloatLayer, ...]
    float_macs_share: float
    all_int8_cosine: float
    min_cosine: float
    mean_cosine: float
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, figures rounded to six digits."""
        return _rounded(asdict(self))

    def lines(self) -> list[str]:
        """For a reader at a terminal."""
        quantised = self.layers - len(self.float_layers)
        lines = [
            f"int8 for {'any device' if self.target == 'any' else 'ONNX Runtime on a CPU'}: {quantised} of "
            f"{self.layers} layers, {100 * (1 - self.float_macs_share):.1f} % of the multiplications; ranges by "
            f"{self.calibration} over {self.calibration_pictures} pictures",
            f"cosine on {self.held_out_pictures} held-out pictures: smallest {self.min_cosine:.4f}, mean "
            f"{self.mean_cosine:.4f} (with every layer in int8: smallest {self.all_int8_cosine:.4f})",
        ]
        lines += [
            f"left in float: {layer.name} ({layer.why}; cosine {layer.cosine:.4f} when it alone is int8, "
            f"{100 * layer.macs_share:.1f} % of the multiplications)"
            for layer in self.float_layers
        ]
        return lines + [f"warning: {warning}" for warning in self.warnings]


def to_int8(
    model: onnx.ModelProto,
    pixels: NDArray[np.uint8],
    *,
    min_cosine: float = INT8_MIN_COSINE,
    target: Target = "any",
    report: Callable[[str], None] | None = None,
) -> tuple[onnx.ModelProto, Int8Report]:
    """Quantises convolutions and matrix products with constant weights; everything else stays in float32.

    `any` has symmetric int8 activations, the one form that TensorRT takes. ONNX Runtime's CPU kernels multiply
    matrices in it as fast as in any other, but have no convolution that fits: a ResNet50 ran at 0.8 times the speed of
    float32, and at 3.2 times as `cpu`, with uint8 activations, zero points, and quantised results of convolutions.

    The same arguments give the same bytes on the same machine.

    Args:
        model: canonical: `pixels` uint8 (batch, size, size, 3) -> `embeddings` float32 (batch, dim), unit rows.
        pixels: (n, size, size, 3) uint8, pictures like those that the model will see; every fourth, 128 at most, is
            held out to measure what was lost.
        min_cosine: that no held-out picture's embedding may fall below, with a margin: half of what is allowed,
            as other pictures will do worse.
        target: `any`, or `cpu` for ONNX Runtime on a CPU alone.
        report: told what goes on, a sentence at a time.

    Returns:
        The model, with the names of its values, inputs, outputs and metadata kept and `geoinfer.int8_target` added,
        and what was done.

    Raises:
        UsageError: `target` or `min_cosine` makes no sense.
        InputError: fewer than 16 pictures.
        ModelError: the model has no layers to quantise, pictures are of another size, or less than half of it could
            be quantised within `min_cosine`.
    """
    _check(model, pixels, min_cosine, target)
    say = report or (lambda _: None)
    held_out = _held_out(len(pixels))
    judged, calibrating = pixels[held_out], np.delete(pixels, held_out, axis=0)
    layers = quantisable_layers(model, target)
    names = {layer.name for layer in layers}
    values = place(model, names, target).values
    say(f"measuring the ranges of {len(values)} activations on {len(calibrating)} pictures")
    ranges = measure_ranges(
        model, values, calibrating, _Progress(say, f"measured ranges on {{}} of {len(calibrating)} pictures")
    )
    search = _Search(model, layers, judged, target, say)
    calibration, cosines = search.choose_calibration(ranges)
    all_int8 = float(cosines.min())
    wanted = min_cosine + _MARGIN * (1.0 - min_cosine)
    alone: dict[str, float] = {}
    sensitive: list[str] = []
    if all_int8 < wanted:
        alone = search.rank(ranges.get(calibration), cosines)
        sensitive, cosines = search.leave_in_float(ranges.get(calibration), list(alone), min_cosine, wanted)
    placement = place(model, names - set(sensitive), target)
    made = insert_pairs(model, placement, ranges.get(calibration), target)
    onnx.checker.check_model(made)
    _set_metadata(made, "geoinfer.int8_target", target)
    quantised = {layer.name for layer in placement.layers}
    done = Int8Report(
        target=target,
        calibration=calibration,
        calibration_pictures=len(calibrating),
        held_out_pictures=len(judged),
        layers=len(layers),
        float_layers=tuple(
            FloatLayer(
                layer.name,
                layer.operator,
                alone[layer.name],
                search.share({layer.name}),
                "sensitive" if layer.name in sensitive else "feeds a layer in float",
            )
            for layer in sorted(layers, key=lambda layer: list(alone).index(layer.name) if alone else 0)
            if layer.name not in quantised
        ),
        float_macs_share=1.0 - search.share(quantised),
        all_int8_cosine=all_int8,
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        warnings=_warnings(len(pixels)),
    )
    return made, done


class _Search:
    """Measures what quantising costs on the held-out pictures."""

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[Layer],
        pixels: NDArray[np.uint8],
        target: Target,
        say: Callable[[str], None],
    ) -> None:
        self._model, self._layers, self._pixels, self._target, self._say = model, layers, pixels, target, say
        self._names = {layer.name for layer in layers}
        self._expected = embed(open_session(model), pixels)
        self._macs = count_macs(model)

    def share(self, names: set[str]) -> float:
        """Of the model's multiplications, those of these layers."""
        return sum(self._macs[name] for name in names) / max(sum(self._macs.values()), 1)

    def choose_calibration(self, ranges: Ranges) -> tuple[Calibration, NDArray[np.float64]]:
        """The way of calibrating that loses least with every layer quantised, and its cosines."""
        tried = {name: self._cosines(self._names, ranges.get(name)) for name in _CALIBRATIONS}
        best = max(_CALIBRATIONS, key=lambda name: float(tried[name].min()))
        for name, cosines in tried.items():
            self._say(f"every layer in int8, ranges by {name}: smallest cosine {cosines.min():.4f}")
        return best, tried[best]

    def rank(self, ranges: dict[str, tuple[float, float]], cosines: NDArray[np.float64]) -> dict[str, float]:
        """The smallest cosine with one layer alone quantised, the costliest layer first.

        Judged by the pictures that suffered most with all of them quantised. The order is by the mean loss, which a
        single odd picture moves less than it moves the smallest cosine.
        """
        macs = max(sum(self._macs.values()), 1)
        wanted = min(max(int(_JUDGED_MACS / macs), _FEWEST_JUDGES), _MOST_JUDGES)
        judges = np.sort(np.argsort(cosines, kind="stable")[:wanted])
        self._say(f"measuring {len(self._layers)} layers one by one on {len(judges)} pictures")
        progress = _Progress(self._say, f"measured {{}} of {len(self._layers)} layers")
        losses = {}
        for done, layer in enumerate(self._layers, start=1):
            placement = place(self._model, {layer.name}, "any")
            made = insert_pairs(self._model, placement, ranges, self._target)
            losses[layer.name] = self._compare(made, judges)
            progress(done)
        order = sorted(losses, key=lambda name: (float(losses[name].mean()), name))
        return {name: float(losses[name].min()) for name in order}

    def leave_in_float(
        self, ranges: dict[str, tuple[float, float]], order: Sequence[str], min_cosine: float, wanted: float
    ) -> tuple[list[str], NDArray[np.float64]]:
        """The shortest beginning of `order` that has to stay in float: doubled until it is enough, then bisected.

        Raises:
            ModelError: more than half of the multiplications would have to stay in float.
        """
        tried: dict[int, NDArray[np.float64]] = {}

        def enough(count: int) -> bool:
            tried[count] = self._cosines(self._names - set(order[:count]), ranges)
            self._say(f"{count} layers in float: smallest cosine {tried[count].min():.4f}")
            return float(tried[count].min()) >= wanted

        fewer, count = 0, 1
        whole = self.share(self._names)
        while not enough(count):
            placement = place(self._model, self._names - set(order[:count]), self._target)
            kept = self.share({layer.name for layer in placement.layers})
            if kept < _LEAST_SHARE * whole or count >= len(order):
                best = max(float(cosines.min()) for cosines in tried.values())
                raise ModelError(
                    f"int8 spoils this model: with {count} of its {len(order)} layers left in float, beginning with "
                    f"{', '.join(order[:3])}, the smallest cosine on held-out pictures is {best:.4f} at best; "
                    f"{wanted:.4f} is needed for {min_cosine}",
                    hint="export it as fp16, calibrate with more pictures, or allow a lower cosine",
                )
            fewer, count = count, min(2 * count, len(order))
        while count - fewer > 1:
            middle = (fewer + count) // 2
            fewer, count = (fewer, middle) if enough(middle) else (middle, count)
        return list(order[:count]), tried[count]

    def _cosines(self, quantised: set[str], ranges: dict[str, tuple[float, float]]) -> NDArray[np.float64]:
        placement = place(self._model, quantised, self._target)
        return self._compare(insert_pairs(self._model, placement, ranges, self._target), np.arange(len(self._pixels)))

    def _compare(self, made: onnx.ModelProto, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        embeddings = embed(open_session(made), self._pixels[rows])
        # A model that overflowed gives NaN, which no comparison would refuse.
        return np.nan_to_num(np.einsum("ij,ij->i", embeddings, self._expected[rows]), nan=-1.0)


class _Progress:
    """Says how much of a long task is done, every ten seconds."""

    def __init__(self, say: Callable[[str], None], words: str) -> None:
        self._say, self._words = say, words
        self._said = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY_S:
            self._said = now
            self._say(self._words.format(done))


def _check(model: onnx.ModelProto, pixels: NDArray[np.uint8], min_cosine: float, target: Target) -> None:
    if target not in ("any", "cpu"):
        raise UsageError(f"int8 target is {target!r}; expected any or cpu")
    if not 0.0 < min_cosine < 1.0:
        raise UsageError(f"the smallest cosine is {min_cosine}; expected a number between 0 and 1")
    if len(pixels) < MIN_PICTURES:
        raise InputError(
            f"{len(pixels)} pictures are too few to calibrate int8; {MIN_PICTURES} are needed",
            hint="name a folder with a hundred or more photos like those that will be located",
        )
    side = tuple(item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim)[1:]
    if pixels.dtype != np.uint8 or pixels.shape[1:] != side:
        raise ModelError(f"calibration pictures are {pixels.dtype} {pixels.shape[1:]}; the model takes uint8 {side}")
    if not quantisable_layers(model, target):
        raise ModelError("the model has no convolution and no matrix product with float32 weights to quantise")


def _held_out(count: int) -> NDArray[np.intp]:
    """Positions of the pictures to measure on, spread over all of them."""
    wanted = min(count // _HELD_OUT_EVERY, _MAX_HELD_OUT)
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(np.intp)


def _warnings(count: int) -> tuple[str, ...]:
    if count >= ENOUGH_PICTURES:
        return ()
    return (f"only {count} pictures to calibrate on; {ENOUGH_PICTURES} or more make the ranges trustworthy",)


def _set_metadata(model: onnx.ModelProto, key: str, value: str) -> None:
    properties = {item.key: item.value for item in model.metadata_props} | {key: value}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(properties.items())))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
