"""`python -m trainer`: photos with coordinates become embedders."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from geoinfer.errors import EXIT_INTERRUPTED, EXIT_USAGE, GeoInferError

EXIT_BUG = 70
"""An error that was not foreseen, as of the `geoinfer` command."""

app = typer.Typer(
    name="trainer",
    help="Train geolocation embedders. Runs from a checkout, with the extra train.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_Source = Annotated[
    Path,
    typer.Argument(
        help="A labels CSV, an OSV-5M folder (CSV, and image folders or their ZIP files), or a folder of photos with "
        "GPS in their EXIF.",
        show_default=False,
    ),
]
_Images = Annotated[
    Path | None, typer.Option("--images", help="Folder that the names in a CSV are relative to.", show_default=False)
]
_Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
_Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Decoding threads; by default one a core.", show_default=False)
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


@app.command()
def prepare(
    source: _Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the prepared set to.", show_default=False)],
    images: _Images = None,
    split: Annotated[
        Literal["random", "sequence", "geocell"],
        typer.Option("--split", help="random as in the paper; sequence or geocell so that no neighbour leaks."),
    ] = "random",
    validation: Annotated[float, typer.Option("--validation", help="Share of the photos to validate on.")] = 0.2,
    test: Annotated[float, typer.Option("--test", help="Share of the photos kept for tests.")] = 0.0,
    split_level: Annotated[int, typer.Option("--split-level", help="S2 level of --split geocell.")] = 6,
    subset: Annotated[int, typer.Option("--subset", help="Draw so many photos; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of the split and the subset.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Decode every photo, and drop those that fail.")] = False,
    assume_order: Annotated[
        bool, typer.Option("--assume-order", help="Take the columns as they are, even if they look exchanged.")
    ] = False,
    workers: _Workers = None,
) -> None:
    """Read labels, say what was found and what was dropped and why, split, and draw the map of the split.

    \b
    Example:
      python -m trainer prepare osv5m/ --split sequence --validation 0.05 --out prepared
    """
    from geoinfer.cli.console import say
    from geoinfer.machine import available_cores
    from trainer.data.prepare import prepare as prepare_set
    from trainer.data.split_map import draw_split_map

    report = prepare_set(
        source,
        out,
        images=images,
        split=split,
        validation=validation,
        test=test,
        split_level=split_level,
        seed=seed,
        subset=subset,
        check_swapped=not assume_order,
        verify=verify,
        threads=workers or available_cores(),
        progress=_Stages(say),
    )
    for line in report.lines():
        typer.echo(line)
    picture = out / "split.png"
    draw_split_map(report.examples, picture)
    typer.echo(f"map of the split: {picture}")


@app.command()
def fit(
    recipe: Annotated[
        str, typer.Argument(help="Name of a recipe (see `recipes`), or a TOML file.", show_default=False)
    ],
    data: Annotated[
        Path, typer.Option("--data", "-d", help="A prepared set, or a source as `prepare` takes.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.", show_default=False)],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, as in stages.0.batch_size=64; can be repeated.", show_default=False),
    ] = None,
    images: _Images = None,
    device: _Device = "auto",
    workers: _Workers = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew where --out holds a run.")] = False,
    quiet: _Quiet = False,
) -> None:
    """Train a recipe. The same command again goes on where it was interrupted.

    \b
    Examples:
      python -m trainer fit vit_two_stage --data prepared --out runs/two-stage
      python -m trainer fit resnet50 --data photos.csv --out runs/small --set data.images=0 --set stages.0.batch_size=32
      torchrun --nproc-per-node 4 -m trainer fit vit_geocontrast --data prepared --out runs/ours
    """
    from trainer.recipe import load_recipe

    resolved = load_recipe(recipe, changes)
    from trainer.launch import FitOptions
    from trainer.launch import fit as fit_recipe

    fit_recipe(
        resolved,
        FitOptions(data=data, out=out, images=images, device=device, workers=workers, restart=restart, quiet=quiet),
    )


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Show this one as TOML, with every key.", show_default=False)
    ] = None,
) -> None:
    """List the recipes: what each does, how many parameters learn, how much memory it needs."""
    from trainer.recipe import load_recipe, recipe_names

    if name is not None:
        typer.echo(load_recipe(name).to_toml().rstrip())
        return
    from trainer.memory_needed import stage_needs

    for known in recipe_names():
        recipe = load_recipe(known)
        typer.echo(f"{known}\n  {recipe.summary}")
        for stage, needs in zip(recipe.stages, stage_needs(recipe), strict=True):
            typer.echo(
                f"  {stage.name}: {needs.learnable / 1e6:.1f} of {needs.parameters / 1e6:.1f} million parameters "
                f"learn; batches of {stage.batch_size}"
                + (f" in parts of {stage.micro_batch}" if stage.micro_batch else "")
                + f", {stage.epochs} {'epoch' if stage.epochs == 1 else 'epochs'}, about "
                f"{needs.bytes_total / 1e9:.1f} GB ({recipe.run.precision})"
            )


@app.command()
def embed(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of a run.", show_default=False)],
    data: Annotated[
        Path, typer.Option("--data", "-d", help="A prepared set, or a source as `prepare` takes.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.", show_default=False)],
    images: _Images = None,
    split: Annotated[
        Literal["all", "train", "validation", "test"], typer.Option("--split", help="Photos of one split only.")
    ] = "all",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Photos at a time.")] = 256,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option("--precision", help="Of the model.")] = "fp32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Often faster for ResNets.")] = False,
    device: _Device = "auto",
    workers: _Workers = None,
    quiet: _Quiet = False,
) -> None:
    """Embed a set of photos with a checkpoint into a Parquet file.

    \b
    Example:
      python -m trainer embed runs/ours/checkpoints/best.safetensors --data prepared --out embeddings
    """
    from trainer.embed_command import run_embed

    run_embed(
        checkpoint, data, out, images=images, split=split, batch_size=batch_size, precision=precision,
        channels_last=channels_last, device=device, workers=workers, quiet=quiet,
    )  # fmt: skip


@app.command("toy-world")
def toy_world(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
    count: Annotated[int, typer.Option("--count", min=1, help="Photos.")] = 20_000,
    size: Annotated[int, typer.Option("--size", min=16, max=512, help="Side in pixels.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything.")] = 0,
    quiet: _Quiet = False,
) -> None:
    """Render a world whose looks follow from coordinates, in OSV-5M's layout: something to train on without photos.

    \b
    Example:
      python -m trainer toy-world --out toy --count 20000
    """
    from geoinfer.cli.console import say
    from trainer.world.toy import make_toy_world

    made = 0

    def tell(done: int, total: int) -> None:
        nonlocal made
        if not quiet and done - made >= max(1, total // 10):
            made = done
            say(f"{done:,} of {total:,} photos")

    make_toy_world(out, count=count, size=size, seed=seed, progress=tell)
    typer.echo(f"{out}: {count:,} photos of {size} pixels; python -m trainer prepare {out} --split geocell --out …")


class _Stages:
    """Tells of each stage of preparing when it begins, and now and then how far it is."""

    def __init__(self, say: object) -> None:
        import time

        self._say = say
        self._clock = time.monotonic
        self._last = time.monotonic()

    def __call__(self, stage: str, done: int) -> None:
        if self._clock() - self._last >= 10:
            self._last = self._clock()
            assert callable(self._say)
            self._say(f"{stage}: {done:,} photos" if done else stage)


def main() -> None:
    """Runs the command; every error becomes one or two lines and an exit code, never a traceback."""
    # Names that are not UTF-8 must be printable, and must not end a run that is otherwise fine.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="python -m trainer")
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:  # what typer makes of Ctrl-C, without a word
            _complain("interrupted", "")
        raise
    except GeoInferError as error:
        _complain(str(error), error.hint)
        raise SystemExit(error.exit_code) from None
    except ModuleNotFoundError as error:
        _complain(
            f"the package {error.name} is missing", "the trainer needs the extra train: pip install -e '.[train]'"
        )
        raise SystemExit(EXIT_USAGE) from None
    except Exception as error:
        if os.environ.get("GEOINFER_DEBUG"):
            raise
        _complain(
            f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:500]}",
            "this is a fault of the trainer: please report it with the output of GEOINFER_DEBUG=1 and this command",
        )
        raise SystemExit(EXIT_BUG) from None


def _complain(message: str, hint: str) -> None:
    for line in (f"trainer: {message}", f"  {hint}" if hint else ""):
        if line:
            # File names may hold line ends and control characters.
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
