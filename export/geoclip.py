"""GeoCLIP as a bundle: its image tower as an ONNX model, its gallery of coordinates as the reference index.

GeoCLIP (V. Vivanco Cepeda et al., "GeoCLIP: Clip-Inspired Alignment between Locations and Images for Effective
Worldwide Geo-localization", NeurIPS 2023, arXiv 2309.16020) compares an image with 100,000 coordinates that a second
network, the location encoder, embeds in the same space. Those embeddings do not depend on the photo, so they are made
once, here; what is left for each photo is the image tower and a search.

The package `geoclip` brings the location encoder, the two layers above CLIP, the temperature and the gallery. CLIP
itself comes from the user's cache of Hugging Face, a folder, or, only when allowed, from the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from export.bundle import BundleParts, bundle_lock, check_bundle_output, write_locked_bundle
from export.graph import weight_bytes
from export.labelled import Labelled, chosen_labels, embed_labelled
from export.messages import first_line
from export.onnx_model import ExportOptions, Precision, check_options, export_onnx
from export.torch_embedder import TorchEmbedder
from geoinfer.answer import Answer
from geoinfer.backends import EmbedderIdentity, open_embedder
from geoinfer.errors import GeoInferError, InputError, MissingPackageError, ModelError, OutputError
from geoinfer.geodesy import as_coordinates
from geoinfer.images import Preprocessing
from geoinfer.index import FlatIndex, LeaveOneOut, References, held_out_photos, write_index
from geoinfer.index.leave_one_out import MAX_ROWS
from geoinfer.integrity import canonical_json
from geoinfer.unfinished import undone_at_the_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from export.parity import ParityLimits
    from geoinfer.bundle import Bundle
    from geoinfer.labels import Label

CLIP_REPOSITORY: Final = "openai/clip-vit-large-patch14"
CLIP_FILES: Final = ("config.json", "model.safetensors")
DOWNLOAD: Final = "1.7 GB"

PREPROCESSING: Final = Preprocessing(
    size=224,
    # As CLIP's image processor of transformers cuts: the longer side is not rounded.
    resize="crop_floor",
    interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
"""That of GeoCLIP's `predict`, but that a photo is turned upright as its EXIF says."""

ANSWER: Final = Answer(1, "top1")
"""GeoCLIP answers with the most similar coordinates of its gallery."""

CLIP_SHAPE: Final[Mapping[str, int | float | str]] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "image_size": PREPROCESSING.size,
    "projection_dim": 768,
}
"""Of CLIP ViT-L/14's image tower. Of heads, activation and epsilon its weights say nothing, yet other ones answer
otherwise."""

_CLIP_DIM: Final = 768
_GALLERY_SOURCE: Final = "GeoCLIP gallery"
_COORDINATES_AT_ONCE: Final = 4096
_DIGEST_BYTES: Final = 32
_TERMS: Final = "MIT, Copyright (c) 2024 Vicente Vivanco"
_REINSTALL: Final = "install it again: pip install --force-reinstall --no-deps geoclip"


@dataclass(frozen=True, slots=True)
class GeoClipOptions:
    """What an export of GeoCLIP is told.

    Attributes:
        clip: folder with CLIP's `config.json` and `model.safetensors`; the cache of Hugging Face if left out.
        allow_download: fetch what the cache does not hold.
        precision: of the ONNX model.
        photos: folder of photos for the parity gate; those of the checkout if left out.
        calibration: folder of photos that int8 takes its ranges from.
        limits: of the parity gate; the defaults of the precision if left out.
        max_batch: the gate's largest batch.
        explain: name the first layer that departs when the gate fails.
        labels: CSV of photos whose place is known, to calibrate the radius on.
        images: folder that its names are relative to.
        force: replace a bundle that is there.
    """

    clip: Path | None = None
    allow_download: bool = False
    precision: Precision = "fp32"
    photos: Path | None = None
    calibration: Path | None = None
    limits: ParityLimits | None = None
    max_batch: int = 16
    explain: bool = False
    labels: Path | None = None
    images: Path | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Gallery:
    """GeoCLIP's coordinates, embedded.

    Attributes:
        coordinates: (n, 2) float64 degrees, exactly the float32 values that GeoCLIP itself works and answers with.
        embeddings: (n, 512) float32, unit rows.
        logit_scale: what GeoCLIP multiplies similarities by before its softmax.
    """

    coordinates: NDArray[np.float64]
    embeddings: NDArray[np.float32]
    logit_scale: float


def export_geoclip(output: Path, options: GeoClipOptions, report: Callable[[str], None] = lambda _: None) -> Bundle:
    """Writes a bundle that answers as GeoCLIP does.

    Args:
        output: the bundle's folder; it appears whole or not at all.
        options: where CLIP comes from, and the rest.
        report: is told what goes on, a line at a time.

    Raises:
        MissingPackageError: `geoclip` or `transformers` is not installed.
        InputError: CLIP's weights are not at hand, or photos or labels are missing.
        LabelsError: the labels lack a column.
        ModelError: weights are damaged or not of CLIP ViT-L/14, or the model failed the parity gate. One of fp16 or
            int8 must also find the coordinates of the gallery that torch finds.
        OutputError: the output exists and must not be replaced, or cannot be written.
    """
    check_bundle_output(output, force=options.force)
    labels = None if options.labels is None else chosen_labels(options.labels, options.images, MAX_ROWS)
    package_folder()
    with bundle_lock(output), _aside(output) as folder:
        model, index, bare = folder / "model.onnx", folder / "index", folder / "gallery"
        chosen = ExportOptions(
            precision=options.precision,
            photos=options.photos,
            calibration=options.calibration,
            limits=options.limits,
            # A model that is rounded must still find the coordinates that torch finds.
            index=None if options.precision == "fp32" else bare,
            max_batch=options.max_batch,
            explain=options.explain,
        )
        check_options(model, chosen)
        embedder = load_geoclip(find_clip(options.clip, allow_download=options.allow_download))
        report("embedding the gallery of coordinates, once")
        gallery = embed_gallery()
        _check_room(output, embedder, gallery, options.precision)
        identity = EmbedderIdentity(embedder.identity, gallery.embeddings.shape[1], embedder.preprocessing)
        if chosen.index is not None:
            _write_index(bare, gallery, identity, None)
        report(f"exporting the image tower, {options.precision}")
        export_onnx(embedder, model, chosen)
        del embedder
        labelled = None
        if labels is not None and options.labels is not None:
            with open_embedder(model, "cpu") as opened:
                labelled = _embed(opened, options.labels, labels, report)
        _write_index(index, gallery, identity, labelled)
        return write_locked_bundle(
            BundleParts(
                model=model,
                index=index,
                name="geoclip",
                description=f"GeoCLIP {version('geoclip')}: CLIP ViT-L/14 and a gallery of {len(gallery.coordinates)} "
                "coordinates",
                licences={
                    "model.onnx": "MIT (GeoCLIP's layers, Copyright (c) 2024 Vicente Vivanco; CLIP ViT-L/14, Copyright "
                    "(c) 2021 OpenAI)",
                    "index": f"{_TERMS} (GeoCLIP's gallery and location encoder)",
                },
                notice="GeoCLIP answers with one of its gallery's places, never with a place between them",
            ),
            output,
            force=options.force,
            report=report,
        )


@contextlib.contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """A folder beside the output, for who holds its lock; what a killed export left in it goes first, gigabytes often.

    Raises:
        OutputError: it cannot be made.
    """
    output = Path(os.path.realpath(output))
    folder = output.with_name(f".{output.name}.geoclip-tmp")

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    with undone_at_the_end(remove):
        try:
            remove()
            try:
                folder.mkdir()
            except OSError as error:
                raise OutputError(
                    f"{folder}: cannot be made: {(error.strerror or str(error)).lower()}", hint="choose another --out"
                ) from error
            yield folder
        finally:
            remove()


def _check_room(output: Path, embedder: TorchEmbedder, gallery: Gallery, precision: Precision) -> None:
    """Raises OutputError where the disk will not hold what minutes of work would make."""
    model = weight_bytes(embedder.network) // (1 if precision == "fp32" else 2)
    needed = model + 3 * gallery.embeddings.nbytes  # the index twice, and its tables
    free = shutil.disk_usage(Path(os.path.realpath(output)).parent).free
    if needed > free:
        raise OutputError(
            f"{output}: the bundle takes about {needed / 1e6:.0f} MB, and the disk has {free / 1e6:.0f} MB left",
            hint="make room, or choose another --out",
        )


def package_folder() -> Path:
    """Where the package `geoclip` is installed.

    Raises:
        MissingPackageError: it is not, or cannot be imported.
    """
    try:
        with warnings.catch_warnings():  # of torch, of what the package does with it
            warnings.simplefilter("ignore")
            import geoclip
    except ImportError as error:
        raise MissingPackageError(
            f"the package geoclip cannot be imported: {error}", hint="pip install -e '.[export]' in the checkout"
        ) from error
    return Path(geoclip.__file__).parent


def find_clip(folder: Path | None, *, allow_download: bool) -> Path:
    """The folder with CLIP's weights.

    Args:
        folder: named by the user; None looks into the cache of Hugging Face.
        allow_download: fetch them where the cache does not hold them; otherwise the network is not touched.

    Raises:
        InputError: they are not there, or cannot be fetched.
    """
    if folder is not None:
        missing = [name for name in CLIP_FILES if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{folder}: holds no {' and no '.join(missing)}",
                hint=f"--clip names a folder with {' and '.join(CLIP_FILES)} of {CLIP_REPOSITORY}",
            )
        return folder
    from huggingface_hub import snapshot_download

    with contextlib.suppress(Exception):  # whatever is wrong with the cache, the weights are not at hand
        found = Path(snapshot_download(CLIP_REPOSITORY, allow_patterns=list(CLIP_FILES), local_files_only=True))
        if all((found / name).is_file() for name in CLIP_FILES):
            return found
    if not allow_download:
        raise InputError(
            f"the weights of {CLIP_REPOSITORY} are not in the cache of Hugging Face, and downloads are not allowed",
            hint=f"--allow-download fetches them ({DOWNLOAD}); or give --clip FOLDER with {' and '.join(CLIP_FILES)}",
        )
    try:
        return Path(snapshot_download(CLIP_REPOSITORY, allow_patterns=list(CLIP_FILES)))
    except Exception as error:  # of the network, of its library, of the disk
        raise InputError(
            f"{CLIP_REPOSITORY} cannot be downloaded: {first_line(error)}",
            hint=f"fetch {' and '.join(CLIP_FILES)} some other way, and give --clip FOLDER",
        ) from error


def load_geoclip(clip: Path) -> TorchEmbedder:
    """GeoCLIP's image tower.

    Args:
        clip: from `find_clip`.

    Raises:
        MissingPackageError: `geoclip` or `transformers` is not installed.
        ModelError: weights are damaged, incomplete, or of another model than CLIP ViT-L/14 at 224 pixels.
    """
    network = _ImageTower(_load_clip(clip), _load_mlp()).eval()
    sha256 = weights_digest(network, CLIP_SHAPE)
    return TorchEmbedder(
        network=network,
        preprocessing=PREPROCESSING,
        identity=f"geoclip-clip_vit_l14:{sha256[:16]}",
        source=f"GeoCLIP {version('geoclip')} on {_origin(clip)}",
        licence="MIT",
        weights_sha256=sha256,
    )


def embed_gallery() -> Gallery:
    """Embeds the package's coordinates with its location encoder, a few thousand at a time.

    Raises:
        MissingPackageError: the package is not installed.
        ModelError: one of its files is damaged.
    """
    folder = package_folder()
    from geoclip import LocationEncoder
    from geoclip.model.misc import load_gps_data

    table = folder / "model" / "gps_gallery" / "coordinates_100K.csv"
    try:
        # By the package's own reader, whose numbers are the ones that it answers with.
        places = load_gps_data(str(table))
        coordinates = as_coordinates(places.numpy())
    except Exception as error:  # pandas raises its own kinds
        raise _damaged(table, error) from error
    if len(coordinates) == 0:
        raise _damaged(table, ValueError("it has no rows"))
    encoder = LocationEncoder(from_pretrained=False)
    _fill(encoder, "location_encoder_weights.pth")
    encoder.eval()
    scale_file = folder / "model" / "weights" / "logit_scale_weights.pth"
    scale = _read_weights(scale_file)
    if not isinstance(scale, torch.Tensor) or scale.numel() != 1 or not math.isfinite(float(scale)):
        raise _damaged(scale_file, ValueError("it holds no number"))
    with torch.inference_mode():
        parts = [
            torch.nn.functional.normalize(encoder(some), dim=1).numpy()
            for some in torch.split(places, _COORDINATES_AT_ONCE)
        ]
    # The exponential in float32, as GeoCLIP takes it.
    return Gallery(coordinates, np.concatenate(parts), float(scale.exp()))


def weights_digest(network: torch.nn.Module, shape: Mapping[str, int | float | str]) -> str:
    """Hexadecimal SHA-256 over all weights with their names, in the order of these, and over what those do not show.

    Args:
        network: whose weights.
        shape: fields of its configuration, as `CLIP_SHAPE`.
    """
    digest = hashlib.sha256(canonical_json(dict(shape)).encode())
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(canonical_json([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.data)
    return digest.hexdigest()


class _ImageTower(torch.nn.Module):
    """(n, 3, 224, 224) float32 normalised pixels -> (n, 512) float32: CLIP's image features, and two layers."""

    def __init__(self, clip: torch.nn.Module, mlp: torch.nn.Module) -> None:
        super().__init__()
        self.clip = clip
        self.mlp = mlp

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.mlp(self.clip(pixel_values=planes).image_embeds)
        return embeddings


def _origin(clip: Path) -> str:
    """What is known of where CLIP is from; a folder of the user's may hold anything of that shape."""
    from huggingface_hub import constants

    cached = Path(constants.HF_HUB_CACHE) / f"models--{CLIP_REPOSITORY.replace('/', '--')}" / "snapshots"
    return CLIP_REPOSITORY if clip.resolve().parent == cached.resolve() else f"CLIP of {clip.resolve().name}"


def _load_clip(folder: Path) -> torch.nn.Module:
    try:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    except ImportError as error:
        raise MissingPackageError(
            f"transformers cannot be imported: {error}", hint="pip install -e '.[export]' in the checkout"
        ) from error
    try:
        # From a folder, and from safetensors only: no network, and nothing that could be executed.
        with _quiet_transformers():
            config = CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
            _check_shape(folder, config)
            clip, told = CLIPVisionModelWithProjection.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
            )
    except ModelError:
        raise
    except Exception as error:  # of safetensors, of json, of transformers
        raise ModelError(
            f"{folder}: CLIP cannot be loaded from it: {first_line(error)}",
            hint=f"it must hold {' and '.join(CLIP_FILES)} of {CLIP_REPOSITORY}",
        ) from error
    missing = sorted(map(str, told["missing_keys"])) + sorted(map(str, told["mismatched_keys"]))
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} of CLIP's weights are missing or of another shape, such as {missing[0]}",
            hint=f"it must hold {' and '.join(CLIP_FILES)} of {CLIP_REPOSITORY}",
        )
    return clip


def _check_shape(folder: Path, config: Any) -> None:
    for name, wanted in CLIP_SHAPE.items():
        found = getattr(config, name, None)
        if found != wanted:
            raise ModelError(
                f"{folder}: {CLIP_FILES[0]} says {name} {found!r}; GeoCLIP stands on {CLIP_REPOSITORY}, where it is "
                f"{wanted!r}",
                hint=f"it must hold {' and '.join(CLIP_FILES)} of {CLIP_REPOSITORY}",
            )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its report of the text tower's weights, which are left behind on purpose."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _load_mlp() -> torch.nn.Module:
    mlp = torch.nn.Sequential(torch.nn.Linear(_CLIP_DIM, _CLIP_DIM), torch.nn.ReLU(), torch.nn.Linear(_CLIP_DIM, 512))
    _fill(mlp, "image_encoder_mlp_weights.pth")
    return mlp


def _fill(module: torch.nn.Module, name: str) -> None:
    path = package_folder() / "model" / "weights" / name
    weights = _read_weights(path)
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    if not all(torch.isfinite(tensor).all() for tensor in module.state_dict().values()):
        raise _damaged(path, ValueError("it holds a weight that is not finite"))


def _read_weights(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle, struct, RuntimeError: each its own for damaged bytes
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> GeoInferError:
    return ModelError(
        f"{path}: a file of the package geoclip is missing or damaged: {first_line(error)}", hint=_REINSTALL
    )


def _embed(embedder: Any, path: Path, labels: list[Label], report: Callable[[str], None]) -> Labelled:
    report(f"embedding {len(labels)} labelled photos, to calibrate the radius")
    labelled = embed_labelled(embedder, labels, path)
    if labelled.failures:
        words = ", ".join(f"{count} {code}" for code, count in labelled.failures.items())
        report(f"  {sum(labelled.failures.values())} of them cannot be used: {words}")
    return labelled


def _write_index(folder: Path, gallery: Gallery, embedder: EmbedderIdentity, labelled: Labelled | None) -> None:
    size = len(gallery.coordinates)
    nothing = np.zeros((size, _DIGEST_BYTES), np.uint8)  # no reference is a photo with a file
    calibration = (
        LeaveOneOut.empty()
        if labelled is None
        else held_out_photos(FlatIndex(gallery.embeddings), labelled.embeddings, labelled.places)
    )
    write_index(
        folder,
        gallery.embeddings,
        References(
            ids=[f"gallery {row}" for row in range(size)],
            coordinates=gallery.coordinates,
            sources=[_GALLERY_SOURCE] * size,
            attributions=[_TERMS] * size,
            content_sha256=nothing,
            perceptual_hashes=nothing,
        ),
        embedder,
        calibration=calibration,
        answer=ANSWER,
        logit_scale=gallery.logit_scale,
    )
