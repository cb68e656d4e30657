"""`Geolocator`: photos in, predictions out. The Python API, and the core of the `geoinfer` command."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np

from geoinfer.aggregate import aggregate
from geoinfer.answer import DEFAULT_ANSWER, check_answer
from geoinfer.backends import ENGINE_SUFFIX, MODEL_SUFFIXES, NOT_FINITE, open_embedder
from geoinfer.backends.beside import open_beside, open_planned
from geoinfer.bundle import SHIPPED, Bundle, check_loaded, is_bundle, open_bundle
from geoinfer.calibration import SPREAD_K, calibrate, neighbor_spread_km, why_not_calibrated
from geoinfer.errors import ImageError, MismatchError, UsageError
from geoinfer.images import load_pixels, pixels_from_array
from geoinfer.index import StoredIndex, open_index
from geoinfer.index.device import IndexDevice, check_index_device, index_on
from geoinfer.places import Places
from geoinfer.prediction import SCORE_DECIMALS, Candidate, Located, Prediction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from geoinfer.answer import Answer, Method
    from geoinfer.backends import Embedder
    from geoinfer.backends.cpu_settings import CpuSettings, Planner
    from geoinfer.images import Preprocessing

Photo: TypeAlias = "str | bytes | os.PathLike[str] | NDArray[np.uint8]"

_BATCH = 16
_AS_OPENED = IndexDevice("cpu", "as opened")


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
        answer: Answer | None = None,
        bundle: Bundle | None = None,
        min_score: float | None = None,
        places: Places | None = None,
        index_device: IndexDevice = _AS_OPENED,
        model_file: Path | None = None,
    ) -> None:
        """Most callers want `Geolocator.open`. For `answer` left out, the index says, or the general default.

        Raises:
            MismatchError: the index was made by another embedder.
            UsageError: `min_score` is not within 0 to 1, or the index is not calibrated, so that nothing has a score.
        """
        check_min_score(min_score)
        check_match(embedder, index)
        self.embedder = embedder
        self.index = index
        self.index_device = index_device
        self.model_file = model_file
        self.answer = answer or index.manifest.answer or DEFAULT_ANSWER
        self.bundle = bundle
        self.min_score = min_score
        self.places = places
        self._calibration = calibrate(index.leave_one_out, index.references.coordinates, self.answer)
        if min_score is not None and not self.calibrated:
            raise UsageError(
                f"--min-score {min_score:g}: no answer has a score, as {self.why_not_calibrated}",
                hint="leave it out, or use an index that is calibrated",
            )

    @classmethod
    def open(
        cls,
        engine: str | os.PathLike[str] | None = None,
        index: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        k: int | None = None,
        aggregate: Method | None = None,
        temperature: float | None = None,
        bandwidth_km: float | None = None,
        min_score: float | None = None,
        places: bool = False,
        index_device: str = "auto",
        preprocessing: Preprocessing | None = None,
        threads: int = 0,
        settings: CpuSettings | None = None,
        plan: Planner | None = None,
    ) -> Self:
        """Opens a bundle, or a model or engine and an index.

        Args:
            engine: a bundle's folder, an `.onnx` model or a `.trt` engine; the shipped demonstration bundle if left
                out. An engine that fits the GPU and lies beside a bundle's model is used instead of it.
            index: an index's folder; the bundle's own if left out, also for an engine in a bundle's folder.
            device: `auto`, `cpu`, `cuda`, `cuda:N`, `tensorrt` or `tensorrt:N`.
            k: neighbours that make an answer, 1 to 100; what the index says if left out, else 10.
            aggregate: how they become a place, see `geoinfer.aggregate`; what the index says if left out, else
                `density`.
            temperature: what counts as about as similar, see `geoinfer.answer.PARAMETERS`; what the index says if left
                out, else the method's default.
            bandwidth_km: of `density`, likewise.
            min_score: answers with a lower score are not given, 0 to 1; None for all.
            places: name the country, region and nearest city of each answer.
            index_device: where to search: `cpu`, `cuda`, or `auto`: on a GPU if one is there and saves time.
            preprocessing: for a model whose metadata has none.
            threads: CPU threads of one call; 0 for all cores.
            settings: how a model runs on a CPU, in place of `threads`.
            plan: is asked how a model runs on a CPU, and which file of it, when all else is known to be well.

        Raises:
            InputError: a file or folder is missing.
            ModelError, IndexFolderError: one is damaged, or not what it should be.
            MismatchError: they were not made for each other.
            DeviceError: the device is not there.
            MissingPackageError: `places` needs a package that is not installed.
            UsageError: an option makes no sense, a model is given and no index, or `min_score` and the index is not
                calibrated.
        """
        # Options first, then the index: it is quick to open, so what is wrong shows before a large model is loaded.
        check_answer(k, aggregate, temperature, bandwidth_km)
        check_min_score(min_score)
        check_index_device(index_device)
        names = Places.open() if places else None
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
        stored = open_index(index_path)
        answer = (stored.manifest.answer or DEFAULT_ANSWER).chosen(k, aggregate, temperature, bandwidth_km)
        stored, searched_on = index_on(stored, index_device)
        if engine_file is None and bundle is not None:
            wanted = stored.manifest.embedder
            embedder, engine_file = open_beside(
                bundle.model_path, wanted, device,
                preprocessing=preprocessing, threads=threads, settings=settings, plan=plan,
            )  # fmt: skip
        else:
            embedder, engine_file = open_planned(
                engine_path, device, preprocessing=preprocessing, threads=threads, settings=settings, plan=plan
            )
        try:
            if bundle is not None:
                check_loaded(bundle, engine_file or engine_path, embedder.fingerprint)
            return cls(
                embedder,
                stored,
                answer=answer,
                bundle=bundle,
                min_score=min_score,
                places=names,
                index_device=searched_on,
                model_file=engine_file,
            )
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
        wanted = max(self.answer.k, SPREAD_K, top)
        neighbors = self.index.index.search(embeddings, wanted, threads=threads)
        near = self.index.references.coordinates[neighbors.ids]
        answers = aggregate(near[:, : self.answer.k], neighbors.similarities[:, : self.answer.k], self.answer)
        spread = neighbor_spread_km(answers, near)
        top1 = neighbors.similarities[:, 0].astype(np.float64)
        scores = self._calibration.score(spread, top1)
        kept = max(self.answer.k, top)
        scale, probabilities = self.index.manifest.logit_scale, None
        if scale is not None and top > 0:
            probabilities = self.index.index.probabilities(embeddings, neighbors.ids[:, :top], scale)
        return Located(
            coordinates=answers,
            radius_km=self._calibration.radius_km(spread, top1),
            spread_km=spread,
            scores=scores,
            ids=neighbors.ids[:, :kept],
            similarities=neighbors.similarities[:, :kept],
            unlike_references=self._calibration.unlike_references(top1) if self._calibration.tells_unlike else None,
            too_low=self._too_low(scores),
            places=None if self.places is None else self.places.names(answers),
            probabilities=probabilities,
        )

    def radius_km(self, located: Located, coverage: float) -> NDArray[np.float64]:
        """The radii that hold the true places of some answers with another probability than 90%.

        Args:
            located: of `locate_embeddings`.
            coverage: the probability, more than 0 and less than 1.

        Returns:
            (q,) km.

        Raises:
            ValueError: `coverage` is out of range.
        """
        top1 = located.similarities[:, 0].astype(np.float64)
        return self._calibration.radius_km(located.spread_km, top1, coverage)

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

    def _too_low(self, scores: NDArray[np.float64]) -> dict[int, ImageError]:
        if self.min_score is None:
            return {}
        # As it is written, so that nobody finds a row on the wrong side of the limit.
        written = np.round(scores, SCORE_DECIMALS)
        return {
            row: ImageError(
                "answer", "low_score", f"the score {written[row]:.6g} is below {self.min_score:g}", status="skipped"
            )
            for row in np.flatnonzero(written < self.min_score).tolist()
        }

    @property
    def k(self) -> int:
        """How many neighbours make an answer."""
        return self.answer.k

    @property
    def method(self) -> Method:
        """How they become a place."""
        return self.answer.aggregate

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
        """Frees the model, and what an index holds on a GPU."""
        self.embedder.close()
        if self.index_device.name != "cpu":
            self.index.index.close()  # type: ignore[attr-defined]  # what `to_gpu` gives has it

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
                predictions.append(self._prediction(name, located, next(answers), top))
        return predictions

    def _prediction(self, name: str, located: Located, row: int, top: int) -> Prediction:
        known = Prediction(
            source=name,
            status="ok",
            score=float(located.scores[row]),
            top1_similarity=float(located.similarities[row, 0]),
            unlike_references=located.unlike(row),
        )
        if (failure := located.too_low.get(row)) is not None:
            return replace(known, status=failure.status, error=str(failure), error_code=failure.code)
        return replace(
            known,
            latitude=float(located.coordinates[row, 0]),
            longitude=float(located.coordinates[row, 1]),
            radius_km=float(located.radius_km[row]),
            place=None if located.places is None else located.places[row],
            candidates=self.candidates(located, row, top),
        )


def check_min_score(value: float | None) -> None:
    """Raises UsageError for a lowest score outside 0 to 1; None stands for no limit."""
    if value is not None and not 0 <= value <= 1:
        raise UsageError(f"--min-score {value:g}: expected 0 to 1")


def check_match(embedder: Embedder, index: StoredIndex) -> None:
    """Raises MismatchError, naming both, unless the index was made by this embedder with this preprocessing."""
    made_by = index.manifest.embedder
    if made_by != embedder.identity:
        raise MismatchError(
            f"the index {index.folder} was made by {made_by}, but the model is {embedder.identity}",
            hint="use the model that made the index, or build the index again with `geoinfer index build --engine …`",
        )
