"""What `python -m trainer embed` does around `embed`: photos, device, and what is said."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from geoinfer.cli.console import duration, say
from geoinfer.errors import DeviceError, InputError, UsageError
from geoinfer.machine import available_cores
from trainer.data.examples import open_examples
from trainer.data.prepare import prepare
from trainer.devices import describe, is_out_of_memory, make_fabric
from trainer.embed import BAD_PHOTOS, DATA, EMBEDDINGS, check_embeds, check_folder, embed
from trainer.launch import is_prepared, photos

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS_BETWEEN_LINES = 10.0


def run_embed(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    images: Path | None,
    split: str,
    batch_size: int,
    precision: str,
    channels_last: bool,
    device: str,
    workers: int | None,
    quiet: bool,
) -> None:
    """Embeds a prepared set, or a source that is prepared into `out/data` first.

    Raises:
        GeoInferError: see `embed`, `prepare` and `make_fabric`.
    """
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint}: there is no such checkpoint", hint="a run keeps its own in RUN/checkpoints")
    fabric = make_fabric(device, precision)
    if fabric.world_size > 1:
        raise UsageError("embed works with one process", hint="start it without torchrun")
    check_embeds(checkpoint)
    check_folder(out)
    if is_prepared(data):
        examples = open_examples(data)
    else:
        report = prepare(data, out / DATA, images=images, validation=0.0)
        if not quiet:
            for line in report.lines():
                say(f"  {line}" if line else line)
        examples = report.examples
    if split != "all":
        examples = examples.of_split(split)
    if len(examples) == 0:
        raise InputError(f"{data}: it has no photos of the split {split}")
    if not quiet:
        say(f"device: {describe(fabric, device)}, {precision}")
    began = last = time.monotonic()

    def tell(done: int, bad: int) -> None:
        nonlocal last
        now = time.monotonic()
        if not quiet and now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - began)
            say(
                f"{done:,} of {len(examples):,} photos, {rate:.1f}/s, {duration((len(examples) - done) / rate)} left, "
                f"{bad} bad"
            )

    try:
        summary = embed(
            checkpoint, examples, out, fabric, batch_size=batch_size, workers=workers or available_cores(),
            channels_last=channels_last, progress=tell,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"memory does not suffice for {batch_size} photos at a time", hint=f"--batch-size {max(1, batch_size // 4)}"
        ) from error
    if not quiet:
        seconds = time.monotonic() - began
        rate = summary.embedded / seconds
        say(f"{summary.embedded:,} embeddings in {duration(seconds)}, {rate:.1f}/s: {out / EMBEDDINGS}")
        if summary.bad:
            say(f"{photos(summary.bad)} could not be read: {out / BAD_PHOTOS}")
