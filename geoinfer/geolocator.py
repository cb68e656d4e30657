"""`Geolocator`: photos in, predictions out. The Python API, and the core of the `geoinfer` command."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np

from geoinfer.aggregate import aggregate
from geoinfer.answer import DEFAULT_ANSWER, check_answer
from geoinfer.backends import ENGINE_SUFFIX, MODEL_SUFFIXES, NOT_FINITE, open_embedder
from geoinfer.backends.beside import open_beside
from geoinfer.bundle import SHIPPED, Bundle, check_loaded, is_bundle, open_bundle
from geoinfer.calibration import SPREAD_K, calibrate, neighbor_spread_km, why_not_calibrated
from geoinfer.errors import ImageError, MismatchError, UsageError
from geoinfer.images import load_pixels, pixels_from_array
from geoinfer.index import StoredIndex, open_index

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from geoinfer.answer import Method
    from geoinfer.backends import Embedder
    from geoinfer.images import Preprocessing

Photo: TypeAlias = "str | bytes | os.PathLike[str] | NDArray[np.uint8]"

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the references that an answer was made from.

    Attributes:
        reference: its name in the index.
        latitude: degrees.
        longitude: degrees.
        similarity: cosine with the photo, at most 1.
        source: where the reference comes from; may be empty.
        probability: among all references, None where the index gives its similarities no such meaning.
    """

    reference: str
    latitude: float
    longitude: float
    similarity: float
    source: str
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Where a photo was taken, as far as its pixels tell: an estimate, not a fact.

    Attributes:
        source: the path as it was given, or `array N` for the N-th input, counted from 0.
        status: `ok`, `error`, or `skipped` for camera raw.
        latitude: degrees, NaN unless ok; likewise the other numbers.
        longitude: degrees.
        radius_km: holds the true place with 90% probability, see docs/confidence.md.
        score: expected GeoScore from 0 to 1; orders predictions by how far to trust them.
        top1_similarity: cosine with the most similar reference.
        candidates: the most similar references, best first.
        error: what went wrong, empty if nothing did.
        error_code: one word for it, see docs/error-codes.md.
    """

    source: str
    status: str
    latitude: float = float("nan")
    longitude: float = float("nan")
    radius_km: float = float("nan")
    score: float = float("nan")
    top1_similarity: float = float("nan")
    candidates: tuple[Candidate, ...] = ()
    error: str = ""
    error_code: str = ""


@dataclass(frozen=True, slots=True)
class Located:
    """Answers to a batch of embeddings; row i belongs to embedding i.

    Attributes:
        coordinates: (q, 2) float64 degrees.
        radius_km: (q,) float64.
        scores: (q,) float64.
        ids: (q, c) int64, the most similar references, best first.
        similarities: (q, c) float32.
        probabilities: (q, p) float64 of the first p, as many as were asked for; None without an index that has them.
    """

    coordinates: NDArray[np.float64]
    radius_km: NDArray[np.float64]
    scores: NDArray[np.float64]
    ids: NDArray[np.int64]
    similarities: NDArray[np.float32]
    probabilities: NDArray[np.float64] | None = None


class Geolocator:
    """A model, an index and a way of making an answer from neighbours, opened and checked against each other.

    Example:
        with Geolocator.open() as geolocator:
            for prediction in geolocator.locate(["a.jpg", "b.heic"]):
                print(prediction.source, prediction.latitude, prediction.longitude, prediction.radius_km)
    """

    def __init__(
        self,
        embedder: Embedder,
        index: StoredIndex,
        *,
        k: int | None = None,
        method: Method | None = None,
        bundle: Bundle | None = None,
    ) -> None:
        """Most callers want `Geolocator.open`. For `k` and `method` left out, the index says, or the general defaults.

        Raises:
            MismatchError: the index was made by another embedder.
            UsageError: `k` or `method` is out of range.
        """
        answer = (index.manifest.answer or DEFAULT_ANSWER).chosen(k, method)
        check_match(embedder, index)
        self.embedder = embedder
        self.index = index
        self.k = answer.k
        self.method = answer.aggregate
        self.bundle = bundle
        self._calibration = calibrate(index.leave_one_out, index.references.coordinates, self.method, self.k)

    @classmethod
    def open(
        cls,
        engine: str | os.PathLike[str] | None = None,
        index: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        k: int | None = None,
        aggregate: Method | None = None,
        preprocessing: Preprocessing | None = None,
        threads: int = 0,
    ) -> Self:
        """Opens a bundle, or a model or engine and an index.

        Args:
            engine: a bundle's folder, an `.onnx` model or a `.trt` engine; the shipped demonstration bundle if left
                out. An engine that fits the GPU and lies beside a bundle's model is used instead of it.
            index: an index's folder; the bundle's own if left out, also for an engine in a bundle's folder.
            device: `auto`, `cpu`, `cuda`, `cuda:N`, `tensorrt` or `tensorrt:N`.
            k: neighbours that make an answer, 1 to 100; what the index says if left out, else 10.
            aggregate: `top1`, `mean` or `density`; what the index says if left out, else `density`.
            preprocessing: for a model whose metadata has none.
            threads: CPU threads of one call; 0 for all cores.

        Raises:
            InputError: a file or folder is missing.
            ModelError, IndexFolderError: one is damaged, or not what it should be.
            MismatchError: they were not made for each other.
            DeviceError: the device is not there.
            UsageError: an option makes no sense, or a model is given and no index.
        """
        check_answer(k, aggregate)
        engine_path = SHIPPED if engine is None else Path(engine)
        bundle = open_bundle(engine_path) if is_bundle(engine_path) or engine is None else None
        engine_file = None if bundle is not None else engine_path
        if index is None and engine_path.suffix.lower() == ENGINE_SUFFIX and is_bundle(engine_path.parent):
            bundle = open_bundle(engine_path.parent)
        if bundle is None and index is None:
            if not engine_path.is_file() or engine_path.suffix.lower() not in MODEL_SUFFIXES:
                open_embedder(engine_path, device)  # says what is wrong with it
            raise UsageError(
                f"{engine_path} is a model without an index", hint="give --index, or a bundle, which has both"
            )
        index_path = bundle.index_path if bundle is not None and index is None else Path(index or "")
        # The index first: it is quick to open, so what is wrong with it shows before a large model is loaded.
        stored = open_index(index_path)
        if engine_file is None and bundle is not None:
            wanted = stored.manifest.embedder
            embedder, engine_file = open_beside(
                bundle.model_path, wanted, device, preprocessing=preprocessing, threads=threads
            )
        else:
            embedder = open_embedder(engine_path, device, preprocessing=preprocessing, threads=threads)
        try:
            if bundle is not None:
                check_loaded(bundle, engine_file or engine_path, embedder.fingerprint)
            return cls(embedder, stored, k=k, method=aggregate, bundle=bundle)
        except BaseException:
            embedder.close()
            raise

    def locate(self, photos: Iterable[Photo], *, top: int = 5) -> list[Prediction]:
        """Locates photos, in their order; a bad one costs its own answer and nothing else.

        Args:
            photos: paths, or pictures that are already decoded and upright, uint8 (height, width, 3) RGB.
            top: how many candidates to keep of each.

        Returns:
            One prediction for each photo.

        Raises:
            UsageError: one path instead of several, or `top` is negative.
        """
        if isinstance(photos, (str, bytes, os.PathLike)):
            # A string is an iterable of its letters.
            raise UsageError("locate takes several photos; give a list of one")
        if top < 0:
            raise UsageError(f"top is {top}; expected 0 or more")
        predictions: list[Prediction] = []
        numbered = enumerate(photos)
        # Reading and decoding let go of Python's lock, so threads do them side by side.
        with ThreadPoolExecutor(thread_name_prefix="geoinfer-decode") as pool:
            while batch := list(itertools.islice(numbered, _BATCH)):
                predictions += self._locate_batch(list(pool.map(self._pixels, batch)), top)
        return predictions

    def locate_embeddings(self, embeddings: NDArray[np.float32], *, top: int = 0, threads: int = 0) -> Located:
        """Answers for embeddings that are made already.

        Args:
            embeddings: (q, dim) float32, unit rows.
            top: how many neighbours to return at least, and their probabilities where the index has them.
            threads: CPU threads to search with; 0 for all cores.

        Returns:
            Answers, with max(k, top) neighbours, or as many as there are references.
        """
        wanted = max(self.k, SPREAD_K, top)
        neighbors = self.index.index.search(embeddings, wanted, threads=threads)
        places = self.index.references.coordinates[neighbors.ids]
        answers = aggregate(places[:, : self.k], neighbors.similarities[:, : self.k], self.method)
        spread = neighbor_spread_km(answers, places)
        top1 = neighbors.similarities[:, 0].astype(np.float64)
        kept = max(self.k, top)
        scale, probabilities = self.index.manifest.logit_scale, None
        if scale is not None and top > 0:
            probabilities = self.index.index.probabilities(embeddings, neighbors.ids[:, :top], scale)
        return Located(
            coordinates=answers,
            radius_km=self._calibration.radius_km(spread, top1),
            scores=self._calibration.score(spread, top1),
            ids=neighbors.ids[:, :kept],
            similarities=neighbors.similarities[:, :kept],
            probabilities=probabilities,
        )

    def candidates(self, located: Located, row: int, top: int) -> tuple[Candidate, ...]:
        """The first `top` neighbours of one answer."""
        references = self.index.references
        ids = located.ids[row, :top].tolist()
        probabilities: list[float | None] = [None] * len(ids)
        if located.probabilities is not None and located.probabilities.shape[1] >= len(ids):
            probabilities = located.probabilities[row, : len(ids)].tolist()
        return tuple(
            Candidate(
                reference=references.ids[reference],
                latitude=float(references.coordinates[reference, 0]),
                longitude=float(references.coordinates[reference, 1]),
                similarity=float(similarity),
                source=references.sources[reference],
                probability=probability,
            )
            for reference, similarity, probability in zip(
                ids, located.similarities[row, :top].tolist(), probabilities, strict=True
            )
        )

    @property
    def calibrated(self) -> bool:
        """Whether the index was calibrated on enough photos for its radii to mean anything (about twenty)."""
        return self._calibration.usable

    @property
    def why_not_calibrated(self) -> str:
        """A clause that says why `radius_km` is the whole Earth; empty where it is not."""
        return "" if self.calibrated else why_not_calibrated(self.index.leave_one_out)

    @property
    def notice(self) -> str:
        """One line that whoever uses this should read, such as that the bundle is a demonstration; may be empty."""
        if self.bundle is None or self.index.folder.resolve() != self.bundle.index_path.resolve():
            return ""
        return self.bundle.notice

    def close(self) -> None:
        """Frees the model."""
        self.embedder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _pixels(self, numbered: tuple[int, Photo]) -> tuple[str, NDArray[np.uint8] | ImageError]:
        number, photo = numbered
        preprocessing = self.embedder.identity.preprocessing
        name = f"array {number}" if isinstance(photo, np.ndarray) else os.fsdecode(photo)
        try:
            if isinstance(photo, np.ndarray):
                return name, pixels_from_array(photo, preprocessing)
            return name, load_pixels(os.fsencode(photo), preprocessing)
        except ImageError as error:
            return name, error
        except UnicodeEncodeError as error:
            return name, ImageError("read", "missing", f"not a possible file name: {error.reason}")

    def _locate_batch(self, batch: list[tuple[str, NDArray[np.uint8] | ImageError]], top: int) -> list[Prediction]:
        pixels = [picture for _, picture in batch if not isinstance(picture, ImageError)]
        embeddings = self.embedder.embed(np.stack(pixels)) if pixels else np.empty((0, self.embedder.dim), np.float32)
        finite = np.atleast_1d(np.isfinite(embeddings).all(axis=1))
        located = self.locate_embeddings(embeddings[finite], top=top)
        answers = iter(range(int(finite.sum())))
        computed = iter(finite.tolist())
        predictions = []
        for name, picture in batch:
            if isinstance(picture, ImageError):
                predictions.append(Prediction(name, picture.status, error=str(picture), error_code=picture.code))
            elif not next(computed):
                predictions.append(Prediction(name, "error", error=NOT_FINITE, error_code="not_finite"))
            else:
                row = next(answers)
                predictions.append(
                    Prediction(
                        source=name,
                        status="ok",
                        latitude=float(located.coordinates[row, 0]),
                        longitude=float(located.coordinates[row, 1]),
                        radius_km=float(located.radius_km[row]),
                        score=float(located.scores[row]),
                        top1_similarity=float(located.similarities[row, 0]),
                        candidates=self.candidates(located, row, top),
                    )
                )
        return predictions


def check_match(embedder: Embedder, index: StoredIndex) -> None:
    """Raises MismatchError, naming both, unless the index was made by this embedder with this preprocessing."""
    made_by = index.manifest.embedder
    if made_by != embedder.identity:
        raise MismatchError(
            f"the index {index.folder} was made by {made_by}, but the model is {embedder.identity}",
            hint="use the model that made the index, or build the index again with `geoinfer index build --engine …`",
        )
