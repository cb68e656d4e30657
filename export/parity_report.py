"""What the parity gate asks for, what it found, and how both are told."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Any, Final

from geoinfer.errors import UsageError
from geoinfer.model_metadata import INT8_MIN_COSINE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from export.index_parity import IndexParity

MAX_NORM_ERROR: Final = 1e-4
"""How far a row's length may be from 1."""

SHIFT_FLOOR_KM: Final = 25.0
"""A median distance may grow by so much under the default limits, whatever its share: the scale of a city."""

FREE_SHARE: Final = 0.5
"""Of what one and the same answer to every picture would lose: a model must lose less on average."""

ROUNDING_SHARE: Final = 0.05
"""Of the loss that the limit allows: so much counts as rounding, also where all embeddings are nearly the same, as
those of a network with random weights may be."""


@dataclass(frozen=True, slots=True)
class ParityLimits:
    """What an exported model may differ by.

    Attributes:
        min_cosine: of any picture's embedding with torch's, and with its own in another batch size.
        min_agreement: share of the photos whose most similar reference must be the same.
        max_shift: by which share of torch's the median distance may grow.
        free_photos: may have another most similar reference whatever the share: of ten photos, a single near-tie would
            decide otherwise. Of the defaults alone; limits that somebody sets are taken as they are.
        shift_floor_km: the median distance may grow by so much whatever the share; likewise.
    """

    min_cosine: float
    min_agreement: float
    max_shift: float
    free_photos: int = 0
    shift_floor_km: float = 0.0

    def __post_init__(self) -> None:
        """Raises UsageError for limits that make no sense."""
        for name, value in (("--min-cosine", self.min_cosine), ("--min-agreement", self.min_agreement)):
            if not 0.0 <= value <= 1.0:
                raise UsageError(f"{name} {_plain(value)}: expected 0 to 1")
        if not (math.isfinite(self.max_shift) and self.max_shift >= 0.0):
            raise UsageError(f"--max-shift {_plain(self.max_shift)}: expected a share of 0 or more, such as 0.05")

    def allowed_shift_km(self, torch_km: float) -> float:
        """By how many km the median distance may grow from torch's."""
        return max(self.max_shift * torch_km, self.shift_floor_km)


# Measured on the 335 references of the demonstration bundle, each located by the others, with noise of just the
# smallest cosine added to each embedding: at 0.99999 another reference comes first for 0.3% of them, at 0.999 for 2.3%,
# at 0.98 for 8%, and the median distance does not move. References of a larger index lie closer together, hence the
# room beyond that. A median over sixteen photos alone moves by up to 0.2% at 0.999 and 19% at 0.98, in nineteen of
# twenty draws: the shift wants more photos than the other figures.
_LIMITS: Final[Mapping[str, ParityLimits]] = {
    "fp32": ParityLimits(0.99999, 0.98, 0.01, free_photos=1, shift_floor_km=SHIFT_FLOOR_KM),
    "fp16": ParityLimits(0.999, 0.95, 0.03, free_photos=1, shift_floor_km=SHIFT_FLOOR_KM),
    "int8": ParityLimits(INT8_MIN_COSINE, 0.85, 0.10, free_photos=1, shift_floor_km=SHIFT_FLOOR_KM),
}


def default_limits(precision: str) -> ParityLimits:
    """The limits for `fp32`, `fp16` or `int8`.

    Raises:
        UsageError: another precision.
    """
    if precision not in _LIMITS:
        raise UsageError(f"--precision {precision}: expected one of {', '.join(_LIMITS)}")
    return _LIMITS[precision]


def chosen_limits(
    precision: str,
    *,
    min_cosine: float | None = None,
    min_agreement: float | None = None,
    max_shift: float | None = None,
) -> ParityLimits:
    """The limits for a precision, those that are given taken literally and the others the defaults.

    Raises:
        UsageError: another precision, or a limit that makes no sense.
    """
    limits = default_limits(precision)
    if min_cosine is not None:
        limits = replace(limits, min_cosine=min_cosine)
    if min_agreement is not None:
        limits = replace(limits, min_agreement=min_agreement, free_photos=0)
    if max_shift is not None:
        limits = replace(limits, max_shift=max_shift, shift_floor_km=0.0)
    return limits


@dataclass(frozen=True, slots=True)
class ParityReport:
    """How an exported model compares with torch.

    Attributes:
        photos: compared on.
        pictures: these, and turned copies where the folder held too few.
        unreadable: names of photos that could not be decoded.
        batches: sizes that the model was run at.
        min_cosine: between a picture's embedding and torch's, of all pictures and batches.
        mean_cosine: likewise, over the pictures at the largest batch.
        worst: name of the picture with the smallest cosine, relative to the photos' folder.
        constant_cosine: the mean between torch's embeddings and the one answer that comes closest to all of them, which
            a model that ignores its input would reach.
        batch_cosine: the smallest between a picture's embeddings in two batch sizes.
        max_norm_error: largest distance of a row's length from 1.
        index: what changes in an index's answers; None where none was given.
        limits: that it was held to.
        onnxruntime: version.
    """

    photos: int
    pictures: int
    unreadable: tuple[str, ...]
    batches: tuple[int, ...]
    min_cosine: float
    mean_cosine: float
    worst: str
    constant_cosine: float
    batch_cosine: float
    max_norm_error: float
    index: IndexParity | None
    limits: ParityLimits
    onnxruntime: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a model's metadata: figures rounded so as never to flatter, and no name of a photo."""
        values: dict[str, Any] = {
            "photos": self.photos,
            "pictures": self.pictures,
            "batches": list(self.batches),
            "min_cosine": _floored(self.min_cosine, 7),
            "mean_cosine": _floored(self.mean_cosine, 7),
            "max_norm_error": float(f"{self.max_norm_error:.1e}"),
            "onnxruntime": self.onnxruntime,
        }
        if self.index is not None and self.index.photos:
            values["agreement"] = _floored(self.index.agreement, 4)
            values["agreement_photos"] = self.index.photos
        if self.index is not None and self.index.labelled:
            values["median_km"] = round(self.index.model_km, 1)
            values["median_torch_km"] = round(self.index.torch_km, 1)
            values["median_photos"] = self.index.labelled
        return values

    def lines(self) -> list[str]:
        """What the console shows, a line each."""
        turned = "" if self.pictures == self.photos else f" and {self.pictures - self.photos} turned copies of them"
        *most, last = (str(batch) for batch in self.batches)
        batches = f"{', '.join(most)} and {last}" if most else last
        shown = [
            f"parity with torch on {_count(self.photos, 'photo')}{turned}, batches of {batches}:",
            f"  cosine at least {_floored(self.min_cosine, 7):.7f} ({self.worst}), "
            f"{_floored(self.mean_cosine, 7):.7f} on average; at least {_plain(self.limits.min_cosine)} is asked for",
            f"  norms within {self.max_norm_error:.1e} of 1",
        ]
        if self.index is not None:
            shown += _index_lines(self.index, self.limits)
        if self.unreadable:
            names = ", ".join(self.unreadable[:3]) + (", …" if len(self.unreadable) > 3 else "")
            shown.append(f"  left out: {_count(len(self.unreadable), 'file')} that cannot be decoded ({names})")
        return shown


def faults_of(report: ParityReport, names: Sequence[str], *, differs_most: str) -> list[str]:
    """What keeps a model from passing, a clause each; nothing for one that passes.

    Args:
        report: the figures and the limits.
        names: of the pictures, by row.
        differs_most: name of the picture whose embeddings in two batch sizes are the least alike.
    """
    limits, faults = report.limits, []
    if report.min_cosine < limits.min_cosine:
        faults.append(
            f"the embedding of {report.worst} has a cosine of {_floored(report.min_cosine, 7):.7f} with "
            f"torch's, {_floored(report.mean_cosine, 7):.7f} on average over all pictures; at least "
            f"{_plain(limits.min_cosine)} is asked for"
        )
    if report.pictures > 1 and 1.0 - report.mean_cosine > _free_loss(report):
        faults.append(
            "it does not tell the pictures apart as torch does: the average cosine is "
            f"{_floored(report.mean_cosine, 7):.7f}, and one and the same embedding for all {report.pictures} pictures "
            f"would reach {_floored(report.constant_cosine, 7):.7f}; give photos that differ more if they are too much "
            "alike"
        )
    if report.batch_cosine < limits.min_cosine:
        faults.append(
            f"{differs_most} embeds differently in batches of different sizes ({', '.join(map(str, report.batches))}), "
            f"with a cosine of {_floored(report.batch_cosine, 7):.7f}; at least {_plain(limits.min_cosine)} is asked "
            "for"
        )
    if report.max_norm_error > MAX_NORM_ERROR:
        faults.append(f"rows are not of unit length: off by {report.max_norm_error:.1e}, {MAX_NORM_ERROR:g} is allowed")
    found = report.index
    if found is not None and found.photos and len(found.changed) > _may_change(limits, found.photos):
        faults.append(
            f"the most similar reference is another one for {len(found.changed)} of {_count(found.photos, 'photo')} "
            f"({names[found.changed[0]]} is the first), an agreement of {_floored(found.agreement, 4):g}; at "
            f"least {_plain(limits.min_agreement)} is asked for"
        )
    if found is not None and found.labelled and found.shift_km > limits.allowed_shift_km(found.torch_km):
        faults.append(
            f"the median distance over {_count(found.labelled, 'photo')} grows from {found.torch_km:.1f} km to "
            f"{found.model_km:.1f} km; {limits.allowed_shift_km(found.torch_km):.1f} km more are allowed"
        )
    return faults


def _free_loss(report: ParityReport) -> float:
    """How far the average cosine may be from 1 before the model is no better than one answer to everything."""
    constant = FREE_SHARE * (1.0 - report.constant_cosine)
    return max(constant, ROUNDING_SHARE * (1.0 - report.limits.min_cosine), 1e-12)


def _may_change(limits: ParityLimits, photos: int) -> int:
    """How many photos may have another most similar reference."""
    # The sum forgives binary fractions: 1 - 0.9 of 10 is one photo, not 0.9999.
    return max(int((1.0 - limits.min_agreement) * photos + 1e-9), limits.free_photos)


def _index_lines(found: IndexParity, limits: ParityLimits) -> list[str]:
    if not found.photos:
        return ["  most similar reference: not compared, the index holds nothing but copies of the photos"]
    shown = [
        f"  most similar reference the same for {found.photos - len(found.changed)} of {_count(found.photos, 'photo')} "
        f"({_floored(found.agreement, 4):.2%}); at least {_plain(limits.min_agreement)} is asked for"
    ]
    if found.labelled:
        shown.append(
            f"  median distance {found.model_km:.1f} km, by torch {found.torch_km:.1f} km, on "
            f"{_count(found.labelled, 'photo')} with labels; {limits.allowed_shift_km(found.torch_km):.1f} km more are "
            "allowed"
        )
    return shown


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _plain(value: float) -> str:
    """A limit as it was given: six digits would make 1 of 0.99999999."""
    return f"{value:.15g}"


def _floored(value: float, digits: int) -> float:
    """Rounded down, so that 0.99999996 is never shown as 1."""
    # Through decimal digits: in binary, 0.57 times 10,000 is less than 5700.
    step = Decimal(1).scaleb(-digits)
    return float(Decimal(repr(value)).quantize(step, ROUND_FLOOR))
