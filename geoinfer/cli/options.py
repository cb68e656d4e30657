"""Options that several commands share, declared once, and their defaults worked out."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoinfer.errors import OutputError, UsageError
from geoinfer.machine import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from geoinfer.backends import Embedder
    from geoinfer.images import Preprocessing
    from geoinfer.self_tuning.plan import MeasuredPlan

Engine = Annotated[
    Path | None,
    typer.Option(
        "--engine", "-e", help="Bundle folder, .onnx model or .trt engine.", show_default="the shipped demonstration"
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N.", metavar="DEVICE")
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        help="Photos that the model sees at once.",
        show_default="on a CPU what `geoinfer tune` found, else 1; 64 on a GPU; an engine's best",
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="CPU threads.", show_default="all cores this process may use")
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="On a CPU: fp32 for the model itself, int8 for the int8 file beside it, or auto: int8 where `geoinfer "
        "tune`, or a long run, found that it is faster here and close enough.",
        metavar="PRECISION",
    ),
]
NoTune = Annotated[
    bool,
    typer.Option(
        "--no-tune", help="Do not measure how the model runs fastest on this CPU, and do not use what was measured."
    ),
]
Decode = Annotated[
    str,
    typer.Option(
        "--decode",
        help="Where JPEGs are decoded: cpu, gpu, or auto: those that go faster there on the model's own GPU.",
        metavar="WHERE",
    ),
]
K = Annotated[
    int | None,
    typer.Option(
        "--k", help="Neighbours that an answer is made of, 1 to 100.", show_default="what the index says, else 10"
    ),
]
Aggregate = Annotated[
    str | None,
    typer.Option(
        "--aggregate",
        help="How neighbours become a place: top1, mean, median, density, cells or geoscore.",
        metavar="METHOD",
        show_default="what the index says, else density",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        help="A neighbour less similar than the nearest by this much weighs e times less.",
        metavar="SIMILARITY",
        show_default="what the index says, else the method's own",
    ),
]
BandwidthKm = Annotated[
    float | None,
    typer.Option(
        "--bandwidth-km",
        help="Of density: how far a neighbour's vote reaches, as a standard deviation.",
        metavar="KM",
        show_default="what the index says, else 200",
    ),
]
Pixels = Annotated[
    str | None,
    typer.Option(
        "--preprocessing",
        help="The pixels that a model without metadata wants: size=224,resize=squash and, joined by commas likewise, "
        "interpolation=bicubic, mean=imagenet, std=0.5/0.5/0.5.",
        metavar="PIXELS",
    ),
]
MaxErrors = Annotated[
    str, typer.Option("--max-errors", help="Exit with 1 if more inputs fail than this.", metavar="N|P%")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def checked_workers(workers: int | None) -> int:
    """`--workers` or its default.

    Raises:
        UsageError: below 1 or above 1024.
    """
    if workers is not None and not 1 <= workers <= 1024:
        raise UsageError(f"--workers {workers}: expected 1 to 1024")
    return workers or available_cores()


def planned(
    precision: str,
    device: str,
    *,
    quiet: bool = False,
    no_tune: bool = False,
    enough: Callable[[], bool] | None = None,
    made_with: str | None = None,
    pixels: Preprocessing | None = None,
) -> tuple[MeasuredPlan, str]:
    """How a model is to be run if it comes to run on the CPU, and the device to open it on.

    Args:
        precision: `--precision`.
        device: `--device`.
        quiet: `--quiet`.
        no_tune: `--no-tune`.
        enough: whether there is so much to do that it pays to measure where nothing is kept; None never to measure.
        made_with: SHA-256 of the model file of the run that is gone on with.
        pixels: `--preprocessing`.

    Returns:
        A planner for `Geolocator.open`, and `cpu` in place of `auto` where int8 was asked for.

    Raises:
        UsageError: no such precision, or int8 and a GPU.
    """
    from geoinfer.cli.console import say
    from geoinfer.self_tuning.plan import PRECISIONS, MeasuredPlan

    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    if precision == "int8":
        if device not in ("auto", "cpu"):
            raise UsageError(
                f"--precision int8 is for a CPU, and --device is {device}",
                hint="leave one of the two out; on a GPU an engine has the precision that it was built with",
            )
        device = "cpu"
    plan = MeasuredPlan(
        precision=precision,
        measure=None if no_tune else enough,
        say=(lambda _: None) if quiet else say,
        preprocessing=pixels,
        made_with=made_with,
        ignore_kept=no_tune,
    )
    return plan, device


def many(sources: Iterable[object]) -> bool:
    """Whether there are so many that it pays to measure; takes no more than it needs to know."""
    from geoinfer.self_tuning.plan import WORTH_MEASURING

    return sum(1 for _ in itertools.islice(sources, WORTH_MEASURING)) == WORTH_MEASURING


def check_batch_size(batch_size: int | None) -> None:
    """Raises UsageError for a `--batch-size` below 1 or above 4096."""
    if batch_size is not None and not 1 <= batch_size <= 4096:
        raise UsageError(f"--batch-size {batch_size}: expected 1 to 4096")


def chosen_batch_size(batch_size: int | None, embedder: Embedder) -> int:
    """`--batch-size` or its default for the model and its device."""
    from geoinfer.batch.predict import CPU_BATCH, GPU_BATCH

    return batch_size or embedder.best_batch or (CPU_BATCH if embedder.device == "cpu" else GPU_BATCH)


def check_written(files: dict[str, Path], inputs: Iterable[str], made: Path) -> None:
    """Finds out before a run what would stop it from writing a file at its end, or make it overwrite an original.

    Args:
        files: option to the file that it names.
        inputs: what the run reads, as the user typed it.
        made: a folder that the run makes if it is not there.

    Raises:
        UsageError: two of the files are one, or one is an input or is called like a photo.
        OutputError: it is a folder, or is in one that is missing or cannot be written to.
    """
    from geoinfer.images.discover import IMAGE_SUFFIXES
    from geoinfer.images.read import RAW_SUFFIXES

    read = {status for name in inputs if (status := _file_id(name.removeprefix("@"))) is not None}
    seen: dict[str, str] = {}
    for option, path in files.items():
        if path.is_dir():
            raise OutputError(f"{option} {path}: is a folder", hint=f"{option} names a file")
        real = os.path.realpath(path)
        if real in seen:
            raise UsageError(f"{option} {path}: is the file of {seen[real]} too", hint="choose another file")
        seen[real] = option
        if os.fsencode(path.suffix.lower()) in IMAGE_SUFFIXES | RAW_SUFFIXES:
            raise UsageError(
                f"{option} {path}: is called like a photo", hint="choose another file; photos are only read"
            )
        if _file_id(path) in read:
            raise UsageError(f"{option} {path}: is an input", hint="choose another file; inputs are only read")
        if path.parent == made and not made.exists():
            continue
        if not path.parent.is_dir():
            raise OutputError(
                f"{option} {path}: there is no folder {path.parent}", hint="make it, or choose another file"
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise OutputError(f"{option} {path}: cannot be written: permission denied", hint="choose another file")


def check_summary(path: Path) -> None:
    """Raises OutputError if a file is there that is no summary of an earlier run."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    try:
        values = json.loads(content)
    except ValueError:
        values = None
    if content and not (isinstance(values, dict) and {"geoinfer", "exit_code"} <= set(values)):
        raise OutputError(f"--summary-json {path}: exists, and is no summary of a run", hint="choose another file")


def _file_id(path: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def parsed_preprocessing(text: str | None) -> Preprocessing | None:
    """`--preprocessing`, None when it is left out.

    Raises:
        UsageError: it makes no sense.
    """
    from geoinfer.images import Preprocessing

    return None if text is None else Preprocessing.parse(text)
