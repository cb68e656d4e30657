"""A training run: stages, epochs and steps; checkpoints; going on after any interruption as if there had been none."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from geoinfer.errors import DeviceError, InterruptedRunError, UsageError
from trainer.batches import make_batches, taken_in_turn
from trainer.checkpoint import TrainingState, load_training_state, load_weights, save_checkpoint
from trainer.data.loader import BatchLoader
from trainer.data.sampling import CellBatches, positive_share
from trainer.devices import any_rank, from_all_ranks, is_out_of_memory, used_memory_mib
from trainer.errors import TrainingError
from trainer.losses import CrossBatchMemory
from trainer.models.freezing import count_parameters, freeze, training_mode
from trainer.objective import Objective
from trainer.optimisation import make_optimizer, set_rates
from trainer.recorder import Recorder
from trainer.step import DeviceBatch, backward
from trainer.stopping import StopRequest
from trainer.validation import Validator

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from numpy.typing import NDArray

    from trainer.data.examples import Examples
    from trainer.data.loader import PixelBatch
    from trainer.data.sampling import Batches
    from trainer.models import GeoModel
    from trainer.progress import Progress
    from trainer.recipe import Recipe, StageTable
    from trainer.run_folder import RunFolder
    from trainer.step import StepResult

_STAGE_SEEDS: Final = 1_000
_MOST_LEFT_OUT: Final = 20


@dataclass(slots=True)
class Position:
    """Where a run stands; all of it is in each checkpoint.

    Attributes:
        stage: number of the stage, from 0.
        epoch: of the stage, from 0.
        batch: batches of the epoch that are done.
        stage_step: steps of the stage that are done.
        step: steps of the run that are done.
        epochs: epochs of the run that are done, validated and written.
        loss_sum: of the steps of this epoch.
        loss_count: steps that it is the sum of.
        best_median_km: of all epochs so far; infinite before the first.
        finished: nothing is left to do.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    stage_step: int = 0
    step: int = 0
    epochs: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best_median_km: float = math.inf
    finished: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without what JSON does not know."""
        values = {name: getattr(self, name) for name in self.__slots__}
        if math.isinf(self.best_median_km):
            values["best_median_km"] = None
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Position:
        """The inverse of `as_dict`; other keys are passed over."""
        own = {name: values[name] for name in cls.__slots__}
        if own["best_median_km"] is None:
            own["best_median_km"] = math.inf
        return cls(**own)


class Run:
    """One process's part of a run. `go` does it."""

    def __init__(
        self,
        recipe: Recipe,
        model: GeoModel,
        examples: Examples,
        folder: RunFolder,
        fabric: Fabric,
        progress: Progress,
        *,
        fingerprint: dict[str, Any],
        workers: int,
    ) -> None:
        """`fingerprint`: what a run that goes on must agree in, plain values; it is kept in each checkpoint."""
        self._recipe = recipe
        self._raw = model
        self._folder = folder
        self._fabric = fabric
        self._progress = progress
        self._fingerprint = fingerprint
        self._first = fabric.global_rank == 0
        self._training = examples.of_split("train")
        self._validator = Validator(recipe, model, examples, fabric, workers=workers)
        self._workers = workers
        self._position = Position()
        self._recorder = Recorder(recipe, folder, progress, writing=self._first)
        self._wrapped: Any = None
        self._optimizer: Any = None
        self._memory: CrossBatchMemory | None = None
        self._saved = time.monotonic()
        self._left_out = 0

    @property
    def bad_photos(self) -> int:
        """How many photos could not be read so far."""
        return self._recorder.bad_photos

    def go(self) -> Position:
        """Trains to the end, from wherever the folder's last checkpoint stands.

        Raises:
            InterruptedRunError: a signal came, or the disk is full; the same command goes on.
            TrainingError: the loss is no number, or no photo of a batch could be read.
            DeviceError: memory does not suffice; the message says what to try.
            UsageError: the recipe does not fit the photos or the model.
        """
        state = self._resume()
        if self._position.finished:
            self._progress.say("the run is finished; nothing is left to do")
            return self._position
        if self._position.step:
            self._progress.say(f"going on after step {self._position.step:,}")
        with self._recorder, StopRequest() as stop:
            self._check_stages()
            self._recorder.open(steps=self._position.step, epochs=self._position.epochs)
            for number in range(self._position.stage, len(self._recipe.stages)):
                try:
                    self._stage(number, state, stop)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    raise self._too_large(self._recipe.stages[number]) from error
                state = None
            self._position.finished = True
            self._save()
        return self._position

    def _resume(self) -> TrainingState | None:
        if not self._folder.last.exists():
            return None
        load_weights(self._folder.last, self._raw)
        state = load_training_state(self._folder.last)
        self._position = Position.from_dict(state.progress)
        return state

    def _check_stages(self) -> None:
        """Refuses what a later stage could not begin with, before the first one takes its days."""
        ranks = self._fabric.world_size
        if ranks > 1 and self._recipe.model.batch_norm == "train":
            raise UsageError(
                f"model.batch_norm is train: each of {ranks} processes would take the statistics of its own share",
                hint="--set model.batch_norm=frozen, or one process",
            )
        for number, stage in enumerate(self._recipe.stages):
            if stage.batch_size % ranks:
                raise UsageError(
                    f"stages.{number}.batch_size is {stage.batch_size}, and {ranks} processes cannot share it"
                )
            try:
                freeze(self._raw, stage.train.backbone, self._recipe.heads_of(stage))
            except UsageError as error:
                raise UsageError(f"stages.{number}.{error}", hint=error.hint) from error

    def _stage(self, number: int, state: TrainingState | None, stop: StopRequest) -> None:
        stage = self._recipe.stages[number]
        position = self._position
        if position.stage != number:
            position.stage, position.epoch, position.batch, position.stage_step = number, 0, 0, 0
            # Stages are judged each by itself: what a recipe is for is its last one, and errors of embeddings and of
            # coordinates do not compare.
            position.best_median_km = math.inf
        freeze(self._raw, stage.train.backbone, self._recipe.heads_of(stage))
        table = self._recipe.optimiser_of(stage)
        before = sum(s.epochs * s.images for s in self._recipe.stages[:number])
        training = taken_in_turn(self._training, stage.images, self._recipe.data.seed, before)
        batches = make_batches(training, stage, self._recipe.run.seed + _STAGE_SEEDS * number)
        self._memory = (
            CrossBatchMemory(stage.memory, self._raw.dim, device=self._fabric.device) if stage.memory else None
        )
        module: Any = self._raw
        if self._recipe.run.compile:
            # What was compiled for the stage before counts towards a limit, beyond which nothing is compiled any more.
            torch.compiler.reset()
            module = torch.compile(self._raw)
        if self._fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._fabric.device)
        self._wrapped, self._optimizer = self._fabric.setup(module, make_optimizer(self._raw, table))
        if state is not None:
            # Only now, when the weights are where they stay: moments go to the device of theirs.
            self._optimizer.optimizer.load_state_dict(state.optimizer)
            if self._memory is not None:
                self._memory.load_state_dict(state.memory)
            if scaler := state.progress.get("scaler"):
                self._fabric.strategy.precision.load_state_dict(scaler)
        objective = Objective(stage.losses, self._raw)
        self._announce(number, stage, training, batches)
        with BatchLoader(
            training, self._raw.preprocessing, workers=self._workers, pinned=self._fabric.device.type == "cuda"
        ) as loader:
            for epoch in range(position.epoch, stage.epochs):
                position.epoch = epoch
                self._epoch(stage, objective, training, batches, loader, stop)
                self._end_of_epoch(stage, objective)
                if any_rank(self._fabric, stop.requested):
                    self._interrupt()
        kept = self._folder.best_of(stage.name)
        # A run that was killed right here comes by again, and must not take the next stage's weights for this one's.
        if self._first and number + 1 < len(self._recipe.stages) and self._folder.best.exists() and not kept.exists():
            self._folder.best.replace(kept)

    def _announce(self, number: int, stage: StageTable, training: Examples, batches: Batches) -> None:
        of = f" {number + 1} of {len(self._recipe.stages)}," if len(self._recipe.stages) > 1 else ""
        learn, all_ = count_parameters(self._raw, learnable=True), count_parameters(self._raw)
        self._progress.say(
            f"stage{of} {stage.name}: {len(training):,} photos, {len(batches):,} batches of {stage.batch_size} an "
            f"epoch; {learn / 1e6:.1f} of {all_ / 1e6:.1f} million parameters learn"
        )
        cells = stage.sampler.kind == "cells"
        levels = [level for loss in stage.losses for level in loss.levels]
        if not cells and not levels:
            return  # no loss asks for cells
        level = stage.sampler.level if cells else max(levels)
        if isinstance(batches, CellBatches) and batches.left_out:
            self._progress.say(
                f"  {batches.left_out:,} of them are alone in their S2 cell of level {level} and are not drawn"
            )
        share = positive_share(batches, training.cells(level))
        self._progress.say(
            f"  {100 * share:.0f} % of anchors have a positive (another photo of their S2 cell of level {level}) in "
            f"their {'batch of cells' if cells else 'random batch'}"
        )

    def _epoch(
        self,
        stage: StageTable,
        objective: Objective,
        training: Examples,
        batches: Batches,
        loader: BatchLoader,
        stop: StopRequest,
    ) -> None:
        position = self._position
        if position.batch == 0:
            position.loss_sum, position.loss_count = 0.0, 0
            if self._memory is not None:
                self._memory.clear()  # a photo must not meet its own embedding of the epoch before
        training_mode(self._raw, batch_norm=self._recipe.model.batch_norm == "train")
        self._recorder.epoch_started(stage.name, position.epoch + 1, steps=len(batches), done=position.batch)
        table = self._recipe.optimiser_of(stage)
        began = time.perf_counter()
        rows = (self._share(rows) for rows in batches.epoch(position.epoch, start=position.batch))
        for batch in loader.batches(rows):
            rates = set_rates(self._optimizer.optimizer, table, position.stage_step, len(batches) * stage.epochs)
            result, norm = self._step(stage, objective, training, batch, table.clip_norm)
            position.batch += 1
            position.stage_step += 1
            position.step += 1
            position.loss_sum += result.loss
            position.loss_count += 1
            ended = time.perf_counter()
            self._record(stage, batch, result, rates, norm, ended - began)
            began = ended
            if any_rank(self._fabric, stop.requested):  # all must stop after the same step
                self._interrupt()
            if time.monotonic() - self._saved > 60 * self._recipe.run.checkpoint_minutes:
                self._save()

    def _step(
        self, stage: StageTable, objective: Objective, training: Examples, batch: PixelBatch, clip_norm: float
    ) -> tuple[StepResult, float]:
        device = self._fabric.device
        rows = np.maximum(batch.rows, 0)
        on_device = DeviceBatch(
            pixels=batch.pixels.to(device, non_blocking=True),
            valid=batch.valid.to(device, non_blocking=True),
            leaf_cells=torch.from_numpy(training.leaf_cells[rows].view(np.int64)).to(device, non_blocking=True),
            coordinates=torch.from_numpy(training.coordinates[rows]).to(device, non_blocking=True),
        )
        if self._recipe.model.batch_norm == "train" and bool(batch.valid.any()):
            # The empty pictures of photos that could not be read must not be part of the statistics.
            on_device = on_device.rows(on_device.valid)
        result = backward(
            self._fabric,
            self._wrapped,
            objective,
            on_device,
            seed=self._recipe.run.seed * 1_000_003 + self._position.step,
            micro_batch=max(1, stage.micro_batch // self._fabric.world_size) if stage.micro_batch else 0,
            memory=self._memory if self._position.stage_step >= stage.memory_after else None,
            check=lambda loss, photos: self._check(loss, photos, batch, training),
        )
        norm = self._fabric.clip_gradients(
            self._wrapped, self._optimizer, max_norm=clip_norm or math.inf, error_if_nonfinite=False
        )
        # With fp16 gradients overflow now and then, and the scaler leaves out the step; not many in a row.
        spoilt = norm is not None and not math.isfinite(norm)
        self._left_out = self._left_out + 1 if spoilt else 0
        if self._left_out > (_MOST_LEFT_OUT if self._recipe.run.precision == "fp16" else 0):
            raise self._no_number(f"the gradient of step {self._position.step + 1} is no number", batch, training)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._memory is not None:
            embeddings, _ = self._raw.split(result.answers.outputs)
            assert embeddings is not None
            self._memory.add(embeddings, result.answers.leaf_cells, result.answers.coordinates)
        return result, float(norm) if norm is not None else math.nan

    def _check(self, loss: float, photos: int, batch: PixelBatch, training: Examples) -> None:
        if not photos:
            first = f"; {batch.bad[0].id}: {batch.bad[0].message}" if batch.bad else ""
            raise TrainingError(
                f"no photo of step {self._position.step + 1} could be read{first}",
                hint="see that the folder or the archives are where they were; the same command then goes on",
            )
        if not math.isfinite(loss):
            raise self._no_number(f"the loss of step {self._position.step + 1} is {loss}", batch, training)

    def _no_number(self, what: str, batch: PixelBatch, training: Examples) -> TrainingError:
        ids = ", ".join(training.ids[int(row)] for row in batch.rows[:3] if row >= 0)
        return TrainingError(f"{what}; nothing was learnt from it (its batch begins with {ids})", hint=self._calmer())

    def _calmer(self) -> str:
        hint = "begin a run with lower rates (--set optimiser.lr_head=…), --set optimiser.clip_norm=1.0, or bf16 "
        hint += "instead of fp16"
        if self._folder.last.exists():
            hint += f"; --set model.start_from={self._folder.last} begins with what was learnt up to that checkpoint"
        return hint

    def _check_weights(self) -> None:
        """A step can spoil weights without its own loss showing it: they must not take the last good ones' place."""
        if not all(bool(torch.isfinite(weights).all()) for weights in self._raw.parameters()):
            raise TrainingError(
                f"after step {self._position.step} weights are no numbers; they are not saved", hint=self._calmer()
            )

    def _too_large(self, stage: StageTable) -> DeviceError:
        now = stage.micro_batch or stage.batch_size
        less = 1 << max(0, now.bit_length() - 2)  # the largest power of two that is at most a half
        key = f"--set stages.{self._position.stage}"
        hint = f"{key}.micro_batch={less} needs less and learns the same, a little slower"
        if now == 1 or less < self._fabric.world_size:
            hint = "a smaller backbone or preprocessing.size"
        elif self._recipe.model.batch_norm == "train":
            hint = f"{key}.batch_size={max(2, less)}, or a smaller backbone or preprocessing.size"
        return DeviceError(f"memory does not suffice for {now} photos at a time ({stage.name})", hint=hint)

    def _record(
        self,
        stage: StageTable,
        batch: PixelBatch,
        result: StepResult,
        rates: dict[str, float],
        norm: float,
        seconds: float,
    ) -> None:
        position = self._position
        images = len(result.answers)
        bad = from_all_ranks(self._fabric, batch.bad) if any_rank(self._fabric, bool(batch.bad)) else ()
        self._recorder.step(
            {
                "stage": stage.name, "epoch": position.epoch + 1, "step": position.step,
                "loss": result.loss, **result.parts,
                "lr_head": rates.get("head", 0.0), "lr_backbone": rates.get("backbone", 0.0), "gradient_norm": norm,
                "images": images, "bad_images": len(bad), "images_per_second": round(images / seconds, 2),
                "waiting_share": round(min(1.0, batch.waited_seconds / seconds), 4),
                "memory_mib": round(used_memory_mib(self._fabric.device)),
            },
            bad,
        )  # fmt: skip

    def _end_of_epoch(self, stage: StageTable, objective: Objective) -> None:
        position = self._position
        self._check_weights()
        row: dict[str, Any] = {
            "stage": stage.name, "epoch": position.epoch + 1, "step": position.step,
            "loss": position.loss_sum / position.loss_count if position.loss_count else math.nan,
        }  # fmt: skip
        threads = torch.get_num_threads()
        found, bad = self._validator.validate(stage, objective)
        # FAISS sets OpenMP's threads for itself and so for torch, whose sums depend on them in the last digit.
        torch.set_num_threads(threads)
        row |= found
        best = row.get("median_km", math.inf) < position.best_median_km
        if best:
            position.best_median_km = row["median_km"]
        position.epoch += 1
        position.batch = 0
        position.epochs += 1
        # Without validation photos the last weights are the best that is known.
        if self._first and (best or "median_km" not in row):
            save_checkpoint(self._folder.best, self._raw, self._recipe)
        self._recorder.epoch(row, bad, best=best)
        self._save()

    def _share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's rows of a batch; -1 fills up what cannot be shared evenly."""
        ranks = self._fabric.world_size
        share = -(-len(rows) // ranks)
        padded = np.full(share * ranks, -1, dtype=np.int64)
        padded[: len(rows)] = rows
        return padded[self._fabric.global_rank * share : (self._fabric.global_rank + 1) * share]

    def _save(self) -> None:
        """Writes `last`. Every rank knows all of it and the first writes alone, so that none waits for another."""
        self._saved = time.monotonic()
        if not self._first:
            return
        self._check_weights()
        progress = self._position.as_dict() | {
            "fingerprint": self._fingerprint,
            "scaler": self._fabric.strategy.precision.state_dict(),
        }
        state = TrainingState(
            optimizer=self._optimizer.optimizer.state_dict(),
            memory=self._memory.state_dict() if self._memory is not None else {},
            progress=progress,
        )
        save_checkpoint(self._folder.last, self._raw, self._recipe, state)

    def _interrupt(self) -> None:
        self._save()
        self._fabric.barrier()  # torchrun ends all processes as soon as one has ended
        raise InterruptedRunError(
            f"interrupted after step {self._position.step}; {self._folder.last.name} holds everything",
            hint="the same command goes on from there",
        )
