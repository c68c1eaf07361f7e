"""The trial of the engine, after which no kernel is compiled and whatever is wrong is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest
from test_training import SIMPLE, digits

from stages.core.augmentation import Augmentation
from stages.core.config import TrainConfig
from stages.core.network import Layer
from stages.engine import deformation, kernels, trial
from stages.engine.training import Training
from stages.train import load_engine

AUGMENTED = Augmentation(10.0, 0.1, 0.1, 1.0, 20.0, smoothness=4.0, thickness=1.0)
FAILS = "the engine cannot run here ({}): the textbook loop trains, slower\n"


def signatures() -> list[int]:
    entries: list[Any] = [
        deformation.deform_groups, kernels.compress_images, kernels.learn,
        kernels.quantise, kernels.score,
    ]  # fmt: skip
    return [len(kernel.signatures) for kernel in entries]


@pytest.mark.parametrize(
    "config",
    [
        replace(SIMPLE, epochs=1, augmentation=AUGMENTED),
        replace(SIMPLE, epochs=1, optimizer="adam", dropout=0.1, ema_decay=0.9, l2=0.1),
        replace(SIMPLE, epochs=1, hidden_sizes=[20, 10, 8], batch_size="all", weight_decay=0.1),
    ],
)
def test_nothing_is_compiled_after_the_trial(config: TrainConfig) -> None:
    trial.trial()
    before = signatures()
    Training(digits(300, 1), digits(50, 2), config, threads=2).run()
    assert signatures() == before


def test_an_engine_that_computes_other_bytes_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = trial.textbook.train

    def wrong(*arguments: Any) -> list[Layer]:
        *layers, last = right(*arguments)
        return [*layers, Layer(last.W, np.nextafter(last.b, np.float32(1.0)))]

    monkeypatch.setattr(trial, "trial", trial.trial.__wrapped__)
    monkeypatch.setattr(trial.textbook, "train", wrong)
    assert load_engine() is None
    assert capsys.readouterr().out == FAILS.format("it computes other bytes than the textbook")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (AttributeError("no such part of Numba"), "no such part of Numba"),
        (RuntimeError("first line\nsecond"), "first line"),
        (OSError(13, "not allowed"), "[Errno 13] not allowed"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_whatever_the_engine_lacks_the_textbook_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, why: str
) -> None:
    def fail() -> NoReturn:
        raise error

    monkeypatch.setattr(trial, "trial", fail)
    assert load_engine() is None
    assert capsys.readouterr().out == FAILS.format(why)


def test_too_little_memory_is_no_reason_to_train_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(trial, "trial", fail)
    with pytest.raises(MemoryError):
        load_engine()
