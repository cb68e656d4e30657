"""How neighbours become an answer: the words for it, their range and their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from geoinfer.errors import UsageError

Method = Literal["top1", "mean", "density"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
DEFAULT_METHOD: Final[Method] = "density"
DEFAULT_K: Final = 10

MAX_K: Final = 100
"""The largest number of neighbours an answer may be made of: as many as calibration looks at."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A way of answering.

    Attributes:
        k: neighbours that make an answer, 1 to `MAX_K`.
        aggregate: how they become a place, see `geoinfer.aggregate`.
    """

    k: int = DEFAULT_K
    aggregate: Method = DEFAULT_METHOD

    def chosen(self, k: int | None, aggregate: Method | None) -> Answer:
        """This way, but for what a user asked for otherwise.

        A `k` was chosen for its method, so another method comes with the general default.

        Raises:
            UsageError: `k` or `aggregate` is out of range.
        """
        check_answer(k, aggregate)
        if aggregate is None or aggregate == self.aggregate:
            return Answer(self.k if k is None else k, self.aggregate)
        return Answer(DEFAULT_K if k is None else k, aggregate)

    def as_dict(self) -> dict[str, Any]:
        """As it is written in an index's manifest."""
        return {"k": self.k, "aggregate": self.aggregate}

    @classmethod
    def from_dict(cls, values: Any) -> Answer:
        """The inverse of `as_dict`.

        Raises:
            ValueError, TypeError: anything else.
        """
        if not isinstance(values, dict) or set(values) != {"k", "aggregate"}:
            raise ValueError(f"the answer is {values!r}; expected k and aggregate")
        k, aggregate = values["k"], values["aggregate"]
        if not isinstance(k, int) or isinstance(k, bool) or not isinstance(aggregate, str):
            raise TypeError(f"the answer is {values!r}; expected a number k and a word aggregate")
        check_answer(k, aggregate)
        return cls(k, aggregate)  # type: ignore[arg-type]  # it is one of METHODS


DEFAULT_ANSWER: Final = Answer()


def check_answer(k: int | None, aggregate: str | None) -> None:
    """Raises UsageError unless `k` is 1 to 100 and `aggregate` one that is known; None stands for a default."""
    if aggregate is not None and aggregate not in METHODS:
        raise UsageError(f"--aggregate {aggregate}: expected one of {', '.join(METHODS)}")
    if k is not None and not 1 <= k <= MAX_K:
        raise UsageError(f"--k {k}: expected 1 to {MAX_K}")
