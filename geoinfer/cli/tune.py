"""`geoinfer tune`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoinfer.cli import options
from geoinfer.errors import OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.images import Preprocessing
    from geoinfer.self_tuning.cache import CacheKey, Kept
    from geoinfer.self_tuning.choose import Trial
    from geoinfer.self_tuning.tune import Tuned


def tune(
    engine: Annotated[
        Path | None,
        typer.Option("--engine", "-e", help="Bundle folder or .onnx model.", show_default="the shipped demonstration"),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos",
            help="Folder of photos to compare embeddings on, up to 16 of them.",
            metavar="FOLDER",
            show_default="pictures that are drawn",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="How long a model is measured, about.")] = 20.0,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="What is measured: auto, the model and the int8 file beside it, if there is one; fp32, the model "
            "alone; int8, that file alone.",
            metavar="PRECISION",
        ),
    ] = "auto",
    forget: Annotated[
        bool, typer.Option("--forget", help="Measure nothing, and forget what is kept of this model and machine.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    preprocessing: options.Pixels = None,
) -> None:
    """Find out how a model runs fastest on this CPU.

    \b
    Examples:
      geoinfer tune
      geoinfer tune --engine my-bundle --photos ./photos
      geoinfer tune --forget

    It tries threads, batches, pinning and memory settings against the default in turns, and keeps what is surely faster
    and gives the same embeddings to the last bit, for `predict`, `index build` and `evaluate`. A long `predict` or
    `index build` does this by itself, in some seconds, once a model and machine.
    """
    from geoinfer.cli.console import answer, say
    from geoinfer.self_tuning import cache
    from geoinfer.self_tuning.plan import PRECISIONS, sha256

    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    if not 1 <= seconds <= 3600:
        raise UsageError(f"--seconds {seconds:g}: expected 1 to 3600")
    pixels = options.parsed_preprocessing(preprocessing)
    model = _model(engine)
    models = _of_precision(model, precision)
    if forget:
        files = [cache.CacheKey.here(sha256(path)) for path in models]
        gone = [_forgotten(key) for key in files]
        if as_json:
            answer(json.dumps({"forgotten": [str(key.path) for key, was in zip(files, gone, strict=True) if was]}))
            return
        answer("Forgotten." if any(gone) else "Nothing was kept of this model on this machine.")
        return
    measured: list[_Measured] = []
    for path in models:
        # A sibling that is not to take its model's place need not be measured further.
        if path != models[0] and not measured[0].tuned.prefers_int8:
            continue
        if not as_json:
            say(f"measuring {path.name} for about {seconds:g} s…")
        sibling = models[1] if path == models[0] and len(models) > 1 else None
        measured.append(_measured(path, sibling, photos, pixels, seconds))
    if as_json:
        answer(json.dumps({"models": [one.values() for one in measured]}, indent=2, ensure_ascii=False))
        return
    for one in measured:
        for line in one.lines():
            answer(line)


class _Measured:
    """One model's measurement, kept and for a reader."""

    def __init__(self, model: Path, key: CacheKey, tuned: Tuned, kept: Kept, pictures: str, complaint: str) -> None:
        self.model, self.key, self.tuned, self.kept = model, key, tuned, kept
        self.pictures, self.complaint = pictures, complaint

    @property
    def trials(self) -> list[Trial]:
        return [*self.tuned.trials, *([] if self.tuned.int8 is None else [self.tuned.int8])]

    def values(self) -> dict[str, Any]:
        """For --json."""
        verdict = self.tuned.int8_verdict
        return {
            "model": str(self.model.absolute()),
            "machine": self.key.as_dict(),
            "pictures": self.pictures,
            "seconds": round(self.tuned.seconds, 3),
            "trials": [_values(trial) for trial in self.trials],
            "settings": self.kept.settings.as_dict(),
            "gain": self.kept.gain,
            "int8": None
            if self.tuned.int8 is None
            else {
                "used": self.tuned.prefers_int8,
                "why_not": self.tuned.int8_why_not,
                "min_cosine": None if verdict is None else round(verdict.min_cosine, 7),
            },
            "kept": None if self.complaint else str(self.key.path),
            "complaint": self.complaint,
        }

    def lines(self) -> list[str]:
        """For people."""
        from geoinfer.self_tuning.plan import chosen_words

        rows = [("settings", "images/s, range", "beside the default", "embeddings")]
        for trial in self.trials:
            name = "int8, default" if trial.precision == "int8" else trial.settings.changes
            rows.append((name, _rate(trial), _ratio(trial, self.tuned), self._embeddings(trial)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        cores = self.key.cores
        lines = [
            f"{self.model.name} on {self.key.processor}; {cores} core{'s' * (cores != 1)}, ONNX Runtime "
            f"{self.key.runtime}; {len(self.tuned.trials[0].rates)} rounds on {self.pictures}, "
            f"{self.tuned.seconds:.0f} s.",
            "",
        ]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += ["", f"chosen: {chosen_words(self.kept)}"]
        if self.tuned.int8 is not None and not self.tuned.prefers_int8:
            lines.append(f"int8 is not used: {self.tuned.int8_why_not}")
        lines += [self.complaint or f"kept in {self.key.path}", ""]
        return lines

    def _embeddings(self, trial: Trial) -> str:
        if trial.precision == "int8":
            verdict = self.tuned.int8_verdict
            return trial.left_out if verdict is None else f"smallest cosine with fp32 {verdict.min_cosine:.4f}"
        if trial.left_out:
            return trial.left_out
        return "the same" if trial.same_bits else "other last digits, not used"


def _measured(
    model: Path, sibling: Path | None, photos: Path | None, preprocessing: Preprocessing | None, seconds: float
) -> _Measured:
    from geoinfer.self_tuning import cache
    from geoinfer.self_tuning.plan import sha256, to_keep
    from geoinfer.self_tuning.tune import tune

    pixels = None if photos is None else _pictures(model, photos, preprocessing)
    pictures = "16 drawn pictures" if pixels is None else f"pictures of {photos}"
    tuned = tune(model, int8=sibling, preprocessing=preprocessing, pixels=pixels, seconds=seconds, all_rounds=True)
    kept = to_keep(tuned, sibling)
    key = cache.CacheKey.here(sha256(model))
    return _Measured(model, key, tuned, kept, pictures, cache.store(key, kept))


def _pictures(model: Path, photos: Path, preprocessing: Preprocessing | None) -> NDArray[np.uint8]:
    """Pictures of a folder's photos, at least as many as the largest batch: the same ones again where it has fewer."""
    import numpy as np

    from geoinfer.backends import open_embedder
    from geoinfer.engine_check import PICTURES, photos_of

    with open_embedder(model, "cpu", preprocessing=preprocessing, threads=1) as embedder:
        found = photos_of(photos, embedder.identity.preprocessing)
    return np.resize(found, (PICTURES, *found.shape[1:]))


def _model(engine: Path | None) -> Path:
    from geoinfer.backends import ENGINE_SUFFIX
    from geoinfer.bundle import SHIPPED, is_bundle, open_bundle

    path = engine or SHIPPED
    if engine is None or is_bundle(path):
        return open_bundle(path).model_path
    if path.suffix.lower() == ENGINE_SUFFIX:
        raise UsageError(
            f"{path} is a TensorRT engine, which runs on a GPU alone",
            hint="tune is for CPUs: name the ONNX model, or a bundle",
        )
    if not path.is_file():
        from geoinfer.backends import open_embedder

        open_embedder(path, "cpu")  # says what is wrong with it
    return path


def _of_precision(model: Path, precision: str) -> list[Path]:
    from geoinfer.engines.int8_beside import require_int8
    from geoinfer.self_tuning.plan import usable_sibling

    if precision == "int8":
        return [require_int8(model)]
    sibling = usable_sibling(model) if precision == "auto" else None
    return [model] if sibling is None else [model, sibling]


def _forgotten(key: CacheKey) -> bool:
    from geoinfer.self_tuning import cache

    try:
        return cache.forget(key)
    except OSError as error:
        raise OutputError(f"{key.path}: cannot be removed: {(error.strerror or str(error)).lower()}") from error


def _values(trial: Trial) -> dict[str, Any]:
    ratio = trial.ratio if len(trial.rates) > 1 else None
    return {
        "precision": trial.precision,
        "settings": trial.settings.as_dict(),
        "images_per_second": [round(rate, 3) for rate in trial.rates],
        "default_images_per_second": [round(rate, 3) for rate in trial.default_rates],
        "ratio": None if ratio is None else round(ratio.value, 4),
        "ratio_low": None if ratio is None else round(ratio.low, 4),
        "ratio_high": None if ratio is None else round(ratio.high, 4),
        "same_bits": trial.same_bits,
        "left_out": trial.left_out,
    }


def _rate(trial: Trial) -> str:
    if not trial.rates:
        return ""
    return f"{median(trial.rates):.1f}, {min(trial.rates):.1f} to {max(trial.rates):.1f}"


def _ratio(trial: Trial, tuned: Tuned) -> str:
    if trial is tuned.trials[0] or not trial.rates:
        return ""
    ratio = trial.ratio
    if len(trial.rates) == 1:
        return f"{ratio.value:.2f}, one round"
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
