"""What `gpu_check.py` reads out of the results of other benchmarks, and the aims that it holds them to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Row = tuple[str, str, str]
"""What; outcome (`ok`, `FAILED`, `not run`, and of an aim `reached`, `not reached`, `not measured`); figures or the
reason."""

TOGETHER = "embed, one session on all cores"
"""Another way of embedding, in a result of `geoinfer benchmark`, and no stage that a run goes through."""


@dataclass(frozen=True)
class Aim:
    """Something to reach.

    Attributes:
        what: of which figure.
        least: what it should come to.
        shown: the least, and figures beside it, as text: a format of one number.
    """

    what: str
    least: float
    shown: str

    def row(self, found: Iterable[tuple[float, str]]) -> Row:
        """Whether the best of the figures reaches it; each comes with what it is of."""
        best = max(found, default=None)
        if best is None:
            return f"aim: {self.what}", "not measured", f"at least {self.shown.format(self.least)}"
        value, of = best
        outcome = "reached" if value >= self.least else "not reached"
        return (
            f"aim: {self.what}",
            outcome,
            f"{self.shown.format(value)} of at least {self.shown.format(self.least)}; {of}",
        )


ROOFLINE = Aim("ViT-B/16 in fp16, share of the roofline", 0.6, "{:.0%}")
END_TO_END = Aim("end to end, share of the slowest stage", 0.9, "{:.0%}")
SEARCH = Aim("search of 1,000,000 references, queries a second", 100_000, "{:,.0f}")


def embed_rows(result: dict[str, Any], precision: str) -> Iterator[tuple[Row, float | None]]:
    """Rows of a result of `bench_embed.py`, each with its share of the roofline: the best batch of each provider.

    Args:
        result: as it was saved.
        precision: the others are left out.
    """
    for model in result["models"]:
        by_provider: dict[str, list[dict[str, Any]]] = {}
        for row in model["rows"]:
            if row["precision"] == precision:
                by_provider.setdefault(row["provider"], []).append(row)
        for provider, rows in by_provider.items():
            best = max(rows, key=lambda row: statistics.median(row["images_per_second"]))
            rates = best["images_per_second"]
            figures = f"{statistics.median(rates):.0f} images/s ({min(rates):.0f} to {max(rates):.0f}) in batches of "
            figures += f"{best['batch']}, {best['share']:.0%} of the roofline's {best['roofline']:.0f}"
            yield (f"embed, {model['title']}, {provider}, {precision}", "ok", figures), float(best["share"])
        for what, why in model["skipped"].items():
            if what.endswith(f", {precision}"):
                yield (f"embed, {model['title']}, {what}", "not run", why), None


def slowest_stage(result: dict[str, Any]) -> tuple[str, list[float]]:
    """Name and rates, one a round, of a benchmark's stage that does the fewest photos a second."""
    stages = [stage for stage in result["stages"] if stage["name"] != TOGETHER]
    slowest = min(stages, key=lambda stage: statistics.median(stage["rates"]))
    return slowest["name"], slowest["rates"]


def end_to_end(result: dict[str, Any]) -> tuple[str, float]:
    """Figures of a `geoinfer benchmark` result as text, and the share of its slowest stage that warm runs reached.

    The share is the median of the rounds, each run by the stage as it was in the same round.

    Args:
        result: the `result` of the file that `--json` writes, with a warm run at least.
    """
    runs = [run for run in result["runs"] if run["kind"] == "warm"]
    name, rates = slowest_stage(result)
    share = statistics.median(run["images_per_second"] / rates[min(run["round"], len(rates) - 1)] for run in runs)
    speeds = [run["images_per_second"] for run in runs]
    parts = [
        f"{statistics.median(speeds):.0f} photos/s ({min(speeds):.0f} to {max(speeds):.0f})",
        f"{share:.0%} of the slowest stage ({name}, {statistics.median(rates):.0f} photos/s)",
    ]
    if result["bounds"]:
        bound = statistics.median(run["images_per_second"] / result["bounds"][run["round"]] for run in runs)
        parts.append(f"{bound:.0%} of what all cores and the GPU could do together")
    for key, words in (("gpu_use", "GPU busy {:.0%}"), ("gpu_watts", "{:.0f} W")):
        seen = [run[key] for run in runs if run[key] is not None]
        if seen:
            parts.append(words.format(statistics.median(seen)))
    return "; ".join([*parts, result["verdict"]]), share


def decode_rows(
    measured: dict[str, tuple[tuple[float, ...], tuple[float, ...]]], chosen: Iterable[str]
) -> Iterator[Row]:
    """A row for each class of photos that both sides decoded.

    Args:
        measured: class to photos a second, one a round, of the CPU's cores together and of the GPU.
        chosen: classes that `--decode auto` gives to the GPU.
    """
    on_gpu = set(chosen)
    for name, (cpu, gpu) in measured.items():
        ratio = statistics.median(b / a for a, b in zip(cpu, gpu, strict=True))
        figures = (
            f"GPU {statistics.median(gpu):.0f} photos/s, all cores {statistics.median(cpu):.0f}, {ratio:.1f} times; "
        )
        yield f"decode, {name}", "ok", figures + f"auto takes the {'GPU' if name in on_gpu else 'CPU'}"
