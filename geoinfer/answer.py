"""How neighbours become an answer: the words for it, their range and their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from geoinfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

Method = Literal["top1", "mean", "median", "density", "cells", "geoscore"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
DEFAULT_METHOD: Final[Method] = "density"
DEFAULT_K: Final = 10

MAX_K: Final = 100
"""The largest number of neighbours an answer may be made of: as many as calibration looks at."""

PARAMETERS: Final[Mapping[Method, Mapping[str, float | None]]] = MappingProxyType(
    {
        "top1": {},
        "mean": {"temperature": None},
        "median": {"temperature": 0.05},
        "density": {"temperature": 0.05, "bandwidth_km": 200.0},
        "cells": {"temperature": 0.05},
        "geoscore": {"temperature": 0.05},
    }
)
"""What each method may be told, and what it does untold; a method does not know what it does not list.

The temperature says what counts as about as similar: a neighbour less similar by this much weighs e times less. A mean
untold weighs neighbours in proportion to their similarity, as the founding paper does. The bandwidth is the standard
deviation of the density's kernel: 200 km is about what tells one region of a country from another.
"""

TEMPERATURES: Final = (1e-4, 100.0)
"""The smallest and the largest temperature: from the most similar alone to all alike."""

BANDWIDTHS_KM: Final = (1.0, 10_000.0)
"""The smallest and the largest bandwidth: from a village to a quarter of the way around the Earth."""

GEOSCORE_SCALE_KM: Final = 1492.7
"""The scale of the GeoScore of OpenStreetView-5M: 5000 exp(-d / 1492.7 km)."""

_OPTIONS: Final = {"temperature": "--temperature", "bandwidth_km": "--bandwidth-km"}
_RANGES: Final = {"temperature": TEMPERATURES, "bandwidth_km": BANDWIDTHS_KM}


@dataclass(frozen=True, slots=True)
class Answer:
    """A way of answering.

    Attributes:
        k: neighbours that make an answer, 1 to `MAX_K`.
        aggregate: how they become a place, see `geoinfer.aggregate`.
        temperature: see `PARAMETERS`; None for the method's default.
        bandwidth_km: likewise.

    Raises:
        UsageError: a value is out of range, or the method does not know it.
    """

    k: int = DEFAULT_K
    aggregate: Method = DEFAULT_METHOD
    temperature: float | None = None
    bandwidth_km: float | None = None

    def __post_init__(self) -> None:
        check_answer(self.k, self.aggregate, self.temperature, self.bandwidth_km)

    @property
    def used_temperature(self) -> float | None:
        """The temperature that counts; None where similarities are weighed in proportion, or not at all."""
        return self._used("temperature", self.temperature)

    @property
    def used_bandwidth_km(self) -> float | None:
        """The bandwidth that counts; None where the method has none."""
        return self._used("bandwidth_km", self.bandwidth_km)

    @property
    def resolved(self) -> Answer:
        """The same way with the method's defaults written out: equal for ways that answer the same."""
        return Answer(self.k, self.aggregate, self.used_temperature, self.used_bandwidth_km)

    def chosen(
        self,
        k: int | None = None,
        aggregate: Method | None = None,
        temperature: float | None = None,
        bandwidth_km: float | None = None,
    ) -> Answer:
        """This way, but for what a user asked for otherwise.

        The other values were chosen for their method, so another method comes with the general defaults.

        Raises:
            UsageError: a value is out of range, or the method does not know it.
        """
        check_answer(k, aggregate, temperature, bandwidth_km)
        base = self if aggregate is None or aggregate == self.aggregate else Answer(DEFAULT_K, aggregate)
        return Answer(
            base.k if k is None else k,
            base.aggregate,
            base.temperature if temperature is None else temperature,
            base.bandwidth_km if bandwidth_km is None else bandwidth_km,
        )

    def as_dict(self) -> dict[str, Any]:
        """As it is written in an index's manifest; what is left to the method's default is left out."""
        values: dict[str, Any] = {"k": self.k, "aggregate": self.aggregate}
        told = {"temperature": self.temperature, "bandwidth_km": self.bandwidth_km}
        return values | {name: value for name, value in told.items() if value is not None}

    def as_options(self) -> str:
        """As one types it: `--aggregate density --k 10 --temperature 0.05`."""
        words = [f"--aggregate {self.aggregate} --k {self.k}"]
        told = {"temperature": self.temperature, "bandwidth_km": self.bandwidth_km}
        words += [f"{_OPTIONS[name]} {value:g}" for name, value in told.items() if value is not None]
        return " ".join(words)

    @classmethod
    def from_dict(cls, values: Any) -> Answer:
        """The inverse of `as_dict`.

        Raises:
            ValueError, TypeError: anything else.
        """
        if not isinstance(values, dict) or not {"k", "aggregate"} <= set(values) <= {"k", "aggregate", *_OPTIONS}:
            raise ValueError(f"the answer is {values!r}; expected k and aggregate, {' and '.join(_OPTIONS)} at most")
        k, aggregate = values["k"], values["aggregate"]
        if not isinstance(k, int) or isinstance(k, bool) or not isinstance(aggregate, str):
            raise TypeError(f"the answer is {values!r}; expected a number k and a word aggregate")
        told = {name: values[name] for name in _OPTIONS if name in values}
        for name, value in told.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"the answer's {name} is {value!r}; expected a number")
        numbers = {name: float(value) for name, value in told.items()}
        return cls(k, aggregate, **numbers)  # type: ignore[arg-type]  # it is one of METHODS, or refused

    def _used(self, name: str, value: float | None) -> float | None:
        return PARAMETERS[self.aggregate].get(name) if value is None else value


def check_answer(
    k: int | None, aggregate: str | None, temperature: float | None = None, bandwidth_km: float | None = None
) -> None:
    """Checks what a user asked for; None stands for a default.

    Raises:
        UsageError: a value is out of range, `aggregate` is unknown, or it does not know what is set.
    """
    if aggregate is not None and aggregate not in METHODS:
        raise UsageError(f"--aggregate {aggregate}: expected one of {', '.join(METHODS)}")
    if k is not None and not 1 <= k <= MAX_K:
        raise UsageError(f"--k {k}: expected 1 to {MAX_K}")
    for name, value in (("temperature", temperature), ("bandwidth_km", bandwidth_km)):
        if value is None:
            continue
        least, most = _RANGES[name]
        if not least <= value <= most:  # NaN compares false
            raise UsageError(f"{_OPTIONS[name]} {value:g}: expected {least:g} to {most:g}")
        if aggregate is not None and name not in PARAMETERS[aggregate]:
            knowing = [method for method in METHODS if name in PARAMETERS[method]]
            raise UsageError(
                f"{_OPTIONS[name]} {value:g}: --aggregate {aggregate} has no such setting",
                hint=f"leave it out, or choose --aggregate {' or '.join(knowing)}",
            )


DEFAULT_ANSWER: Final = Answer()
