"""Stage 3: train the network and keep its weights and learning curves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from stages.core.augmentation import Augmentation
from stages.core.data import Set, joined
from stages.core.exact import ExactnessError
from stages.core.network import Layer
from stages.engine.crew import CrewError
from stages.engine.training import DivergedError, Epoch, Recipe, State, Training
from stages.pipeline import threads
from stages.pipeline.checkpoint import CHECKPOINT, load_checkpoint, origin_of, save_checkpoint
from stages.pipeline.command import InputError, raise_lost_interrupt, run
from stages.pipeline.datasets import load_processed
from stages.pipeline.files import save_csv
from stages.pipeline.model_file import save_model
from stages.pipeline.params import PARAMS, TrainParams, load_params


class Trained(NamedTuple):
    """The parameters to keep, what each epoch showed, and whether a checkpoint held the first."""

    parameters: list[Layer]
    curves: list[Epoch]
    resumed: bool


def main() -> None:
    """Write models/model.npz and reports/learning_curves.csv; go on from a checkpoint, if any."""
    params = load_params().train
    sets = load_processed("train"), load_processed("validation")
    trained = train(params, *sets, CHECKPOINT, f"{PARAMS}: train")
    save_csv(
        Path("reports/learning_curves.csv"),
        Epoch._fields,
        [
            (
                epoch.epoch,
                f"{epoch.train_loss:.6f}",
                f"{epoch.validation_loss:.6f}",
                f"{epoch.validation_accuracy:.6f}",
            )
            for epoch in trained.curves
        ],
    )
    save_model(Path("models/model.npz"), trained.parameters)
    CHECKPOINT.unlink(missing_ok=True)


def train(
    params: TrainParams, train: Set, validation: Set, checkpoint: Path, section: str
) -> Trained:
    """Train a network, telling its progress.

    Args:
        params: how.
        train: the training set.
        validation: the validation set, which is trained on too if the parameters say so.
        checkpoint: what to go on from, if it is there and of this very training, and what to
            write now and then; the caller removes it, once the result is safe.
        section: where the parameters stand, the file and the section, for a refusal to name.

    Raises:
        InputError: the starting weights are too large, the training diverged, or one of its
            processes ended early.
    """
    settings = params.model_dump()
    origin = origin_of(settings, [*train, *validation])
    if settings.pop("include_validation"):
        train = joined(train, validation)
    augmentation = Augmentation(**settings.pop("augmentation"))
    recipe = Recipe(**settings, augmentation=augmentation)
    try:
        training = Training(train, validation, recipe, workers=threads.worker_count())
    except ExactnessError as error:
        raise InputError(
            f"{section}.initialisation: {recipe.initialisation}: must be he or glorot with so "
            f"many hidden units ({error})"
        ) from None
    curves: list[Epoch] = []
    resume = None
    match load_checkpoint(origin, checkpoint):
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
        save_checkpoint(origin, state, curves, checkpoint)
        saved = time.monotonic()

    with tqdm(
        total=params.epochs,
        initial=len(curves),
        disable=None,
        dynamic_ncols=True,
        bar_format="epoch {n}/{total} {bar} {remaining} left{postfix}",
    ) as progress:

        def on_epoch(epoch: Epoch) -> None:
            raise_lost_interrupt()
            curves.append(epoch)
            summary = (
                f"train loss {epoch.train_loss:.4f}, validation loss {epoch.validation_loss:.4f}, "
                f"accuracy {epoch.validation_accuracy:.2%}"
            )
            progress.set_postfix_str(summary.partition(", ")[2], refresh=False)
            progress.update()
            # Without a terminal there is no bar: about ten plain lines tell the story instead.
            every = -(-params.epochs // 10)
            if progress.disable and (epoch.epoch % every == 0 or epoch.epoch == params.epochs):
                print(f"epoch {epoch.epoch:4d}/{params.epochs}  {summary}", flush=True)

        try:
            parameters = training.run(on_epoch, save_due, on_state, resume)
        except DivergedError as error:
            raise InputError(
                f"{section}.learning_rate: {params.learning_rate:g}: must be smaller: {error}"
            ) from None
        except CrewError as error:
            raise InputError(str(error)) from None
    return Trained(parameters, curves, resumed=resume is not None)


if __name__ == "__main__":
    run(main, no_arguments=True)
