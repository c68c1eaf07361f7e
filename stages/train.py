"""Stage 3: train the network and keep its weights and learning curves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tqdm import tqdm

from stages.core import training as textbook
from stages.core.augmentation import Augmentation
from stages.core.config import TrainConfig
from stages.core.data import LabelledImages, joined
from stages.core.exact import ExactnessError
from stages.core.network import Layer
from stages.core.rounding import RoundingError
from stages.core.state import State
from stages.core.training import DivergedError, Epoch
from stages.pipeline import threads
from stages.pipeline.checkpoint import CHECKPOINT, fingerprint_of, load_checkpoint, save_checkpoint
from stages.pipeline.command import InputError, ending_at_once, run
from stages.pipeline.datasets import load_processed
from stages.pipeline.files import replaced_together, save_csv
from stages.pipeline.interrupts import raise_lost_interrupt
from stages.pipeline.model_file import MODEL, save_model
from stages.pipeline.params import PARAMS, TrainParams, load_params
from stages.pipeline.schemas import CURVES
from stages.pipeline.under_dvc import ancestors, ended


def load_engine() -> ModuleType | None:
    """Return the module that trains fast, or None where the textbook loop is to train.

    The environment variable `ENGINE` chooses: `compiled`, the default, or `textbook`. Where the
    engine cannot run, whatever the reason, the textbook does: the same bytes, later.

    Raises:
        InputError: the variable is neither.
    """
    chosen = os.environ.get("ENGINE") or "compiled"
    if chosen not in ("compiled", "textbook"):
        raise InputError(f"ENGINE: {chosen}: must be compiled or textbook")
    if chosen == "textbook":
        return None
    try:
        with ending_at_once():  # the first time, kernels are compiled for many seconds
            from stages.engine import training
            from stages.engine.trial import trial

            trial()
    except (MemoryError, RoundingError):
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"the engine cannot run here ({why}): the textbook loop trains, slower", flush=True)
        return None
    return training


class Trained(NamedTuple):
    """The parameters to keep, what each epoch showed, and whether a checkpoint held the first."""

    parameters: list[Layer]
    curves: list[Epoch]
    resumed: bool


def main(loop: Callable[..., list[Layer]] | None = None) -> None:
    """Write models/model.npz and reports/learning_curves.csv; go on from a checkpoint, if any."""
    params = load_params().train
    sets = load_processed("train"), load_processed("validation")
    trained = train(params, *sets, CHECKPOINT, f"{PARAMS}: train", loop)
    rows = [
        (
            epoch.epoch,
            f"{epoch.train_loss:.6f}",
            f"{epoch.validation_loss:.6f}",
            f"{epoch.validation_accuracy:.6f}",
        )
        for epoch in trained.curves
    ]
    with replaced_together():
        save_csv(CURVES, Epoch._fields, rows)
        save_model(MODEL, trained.parameters)
    CHECKPOINT.unlink(missing_ok=True)


def train(
    params: TrainParams,
    training_set: LabelledImages,
    validation_set: LabelledImages,
    checkpoint: Path,
    section: str,
    loop: Callable[..., list[Layer]] | None = None,
    check: Callable[[], None] = raise_lost_interrupt,
) -> Trained:
    """Train a network, telling its progress.

    Args:
        params: how.
        training_set: images and labels.
        validation_set: the same, trained on too if the parameters say so.
        checkpoint: where an interrupted training of the same parameters, data and code goes on
            from, and where its state is saved now and then; the caller removes it, once the result
            is safe.
        section: the file and section of the parameters, for a refusal to name.
        loop: trains instead of the engine, called as `stages.core.training.train`.
        check: called after every epoch; what it raises ends the training.

    Raises:
        InputError: the initial weights are too large, the training diverged, or the DVC that
            started it has ended.
    """
    # Before the fingerprint, which covers the code that is loaded.
    engine = None if loop else load_engine()
    settings = params.model_dump()
    fingerprint = fingerprint_of(settings, [*training_set, *validation_set])
    if settings.pop("include_validation"):
        training_set = joined(training_set, validation_set)
    augmentation = Augmentation(**settings.pop("augmentation"))
    config = TrainConfig(**settings, augmentation=augmentation)
    started_by = ancestors()
    curves: list[Epoch] = []
    resume: State | None = None
    match load_checkpoint(fingerprint, checkpoint):
        case str(reason):
            print(reason, flush=True)
        case (state, curves):
            resume = state
            print(f"{checkpoint}: going on after epoch {state.epoch}", flush=True)
    saved = time.monotonic()

    def save_due() -> bool:
        return time.monotonic() - saved >= threads.checkpoint_seconds()

    def on_state(state: State) -> None:
        nonlocal saved
        save_checkpoint(fingerprint, state, curves, checkpoint)
        saved = time.monotonic()

    with progress_bar(params.epochs, len(curves)) as show:

        def on_epoch(epoch: Epoch) -> None:
            check()
            if gone := ended(started_by):
                raise InputError(
                    f"DVC: its process {gone[0]}, which started this training, has ended, so "
                    "nobody would take the result; the training ends, too"
                )
            curves.append(epoch)
            show(epoch)

        try:
            if engine:
                training = engine.Training(
                    training_set, validation_set, config, threads.worker_count()
                )
                parameters = training.run(on_epoch, save_due, on_state, resume)
            else:
                parameters = (loop or textbook.train)(
                    training_set,
                    validation_set,
                    config,
                    on_epoch,
                    resume=resume,
                    on_state=lambda state: on_state(state) if save_due() else None,
                )
        except DivergedError as error:
            raise InputError(
                f"{section}.learning_rate: {params.learning_rate:g}: must be smaller: {error}"
            ) from None
        except ExactnessError as error:
            raise InputError(
                f"{section}.initialisation: {params.initialisation}: must be he or glorot with so "
                f"many hidden units ({error})"
            ) from None
    return Trained(parameters, curves, resumed=resume is not None)


@contextmanager
def progress_bar(epochs: int, done: int) -> Iterator[Callable[[Epoch], None]]:
    """Show a bar on a terminal, or else about ten lines in all; yield what is told each epoch."""
    with tqdm(
        total=epochs,
        initial=done,
        disable=None,
        dynamic_ncols=True,
        bar_format="epoch {n}/{total} {bar} {remaining} left{postfix}",
    ) as progress:

        def show(epoch: Epoch) -> None:
            summary = (
                f"train loss {epoch.train_loss:.4f}, validation loss {epoch.validation_loss:.4f}, "
                f"accuracy {epoch.validation_accuracy:.2%}"
            )
            progress.set_postfix_str(summary.partition(", ")[2], refresh=False)
            progress.update()
            every = -(-epochs // 10)
            if progress.disable and (epoch.epoch % every == 0 or epoch.epoch == epochs):
                print(f"epoch {epoch.epoch:4d}/{epochs}  {summary}", flush=True)

        yield show


if __name__ == "__main__":
    run(main, no_arguments=True)
