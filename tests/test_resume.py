"""Any training, resumed after any epoch, is the whole one: in result, curves and message."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import NO_AUGMENTATION, SIMPLE, digest, digits

from stages.core import training as textbook
from stages.core.augmentation import Augmentation
from stages.core.config import TrainConfig
from stages.core.exact import Exact, ExactnessError
from stages.core.network import Layer
from stages.core.state import State
from stages.core.training import DivergedError, Epoch
from stages.engine.training import Training

DATA = digits(70, 1, (6, 5), 3), digits(21, 2, (6, 5), 3)
SLIGHT = Augmentation(10.0, 0.1, 0.1, 1.0, 5.0, smoothness=1.0, thickness=0.5)
Outcome = tuple[str, list[Epoch]]

configs = st.builds(
    TrainConfig,
    hidden_sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    initialisation=st.sampled_from(["he", "glorot", "uniform"]),
    optimizer=st.sampled_from(["sgd", "nesterov", "adam"]),
    learning_rate=st.floats(-3.0, 3.0).map(lambda power: 10.0**power),
    schedule=st.sampled_from(["constant", "cosine", "step", "one_cycle"]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    batch_size=st.sampled_from([1, 16, 35, "all"]),
    epochs=st.integers(1, 4),
    l2=st.sampled_from([0.0, 0.01]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    dropout=st.sampled_from([0.0, 0.3]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    ema_decay=st.sampled_from([0.0, 0.5, 0.99]),
    augmentation=st.sampled_from([NO_AUGMENTATION, SLIGHT]),
    seed=st.integers(0, 100),
    keep=st.sampled_from(["best", "last"]),
)


def outcome(train: Callable[[Callable[[Epoch], None]], list[Layer]], done: list[Epoch]) -> Outcome:
    """Return the digest of what a training returns, or its message, and its learning curves."""
    epochs = list(done)
    try:
        return digest(train(epochs.append)), epochs
    except DivergedError as error:
        return str(error), epochs
    except ExactnessError:
        return "the initial weights are too large", epochs


def engine(config: TrainConfig, threads: int = 1) -> tuple[Outcome, list[State]]:
    """Return what a training comes to, and its state after each epoch."""
    states: list[State] = []
    run = partial(
        Training(*DATA, config, threads).run,
        save_due=lambda: True,
        on_state=lambda state: states.append(deepcopy(state)),
    )
    return outcome(run, []), states


@settings(max_examples=50)
@given(configs, st.integers(1, 3))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what diverges
def test_any_training_is_the_textbooks_and_can_be_resumed(
    config: TrainConfig, threads: int
) -> None:
    whole, states = engine(config, threads)
    expected = outcome(partial(textbook.train, *DATA, config), [])
    # The sums that grew too large are found in another order.
    assert (whole[0].split("(")[0], whole[1]) == (expected[0].split("(")[0], expected[1])
    for state in states:
        again = Training(*DATA, config, threads % 3 + 1)
        done = whole[1][: state.epoch]
        assert outcome(partial(again.run, resume=state), done) == whole


def too_large(state: State) -> bool:
    """Return whether the next step would refuse the weights."""
    arithmetic = Exact(len(state.kept))
    arithmetic.weight_quanta = list(state.weight_quanta)
    try:
        arithmetic.quantise_weights([W for W, _ in state.networks[0]])
    except ExactnessError:
        return True
    return False


def test_weights_that_only_the_next_epoch_would_refuse_end_the_same_training() -> None:
    """Where the average is scored, an epoch can end well with weights beyond their bound."""
    found = 0
    for learning_rate in np.geomspace(1.0, 1000.0, 100):
        changes: dict[str, Any] = {"learning_rate": float(learning_rate), "ema_decay": 0.9}
        config = replace(SIMPLE, epochs=1, batch_size="all", **changes)
        whole, states = engine(config)
        if not states or not too_large(states[0]):
            continue
        found += 1
        (state,) = states
        assert outcome(partial(Training(*DATA, config).run, resume=state), whole[1]) == whole
        config = replace(config, epochs=2)
        whole, (state,) = engine(config)
        assert whole[0].startswith("training diverged in epoch 2 (")
        assert outcome(partial(Training(*DATA, config).run, resume=state), whole[1]) == whole
    assert found
