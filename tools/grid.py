"""A grid: every combination of the values that some parameters of a recipe are to take."""

from __future__ import annotations

import json
import re
from itertools import product
from math import prod
from typing import Any

from stages.pipeline.command import InputError
from stages.pipeline.params import Params, validated
from tools.recipe import leaves

MOST_COMBINATIONS = 1000


def combinations(recipe: str, params: Params, setting: str) -> dict[str, Params]:
    """Return a recipe's combinations by name, such as `simard train.epochs=30`.

    A name holds the settings in the order of params.yaml, each value as it is read, so that a
    combination has one name however it was written.

    Args:
        recipe: its name.
        params: its parameters.
        setting: what to change, such as `train.learning_rate=0.1,0.2 train.epochs=30,60`; empty
            for the recipe as it is. A comma in brackets separates the items of a list.

    Raises:
        InputError: a parameter does not exist, is no part of the training or may not have the
            value, or there are too many combinations.
    """
    choices = _choices(setting, params)
    count = prod(map(len, choices.values()))
    if count > MOST_COMBINATIONS:
        raise InputError(f"SET: {count} combinations: must be at most {MOST_COMBINATIONS}")
    found: dict[str, Params] = {}
    for values in product(*choices.values()):
        document = params.model_dump()
        for key, text in zip(choices, values, strict=True):
            *sections, last = key.split(".")
            section: Any = document
            for part in sections:
                section = section[part]
            section[last] = _read(text)
        changed = validated(document, "SET")
        read = dict(leaves(changed.model_dump()))
        found[" ".join([recipe, *(f"{key}={_shown(read[key])}" for key in choices)])] = changed
    return found


def _choices(setting: str, params: Params) -> dict[str, list[str]]:
    """Return the values of each parameter, in the order of params.yaml."""
    training = {"train": params.train.model_dump(exclude={"seed"})}
    known = [key for key, _ in leaves(training)]
    given: dict[str, list[str]] = {}
    for part in setting.split():
        key, equals, text = part.partition("=")
        if key not in known:
            raise InputError(f"SET: {key}: must be one of {', '.join(known)}")
        if not equals or key in given:
            raise InputError(f"SET: {part}: must be {key}=VALUE,VALUE,..., once")
        given[key] = re.split(r",(?![^\[]*\])", text)
    return {key: given[key] for key in known if key in given}


def _read(text: str) -> str | list[str]:
    """Return a list in brackets as such; the schema turns the text of a number into the number."""
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1].split(",")
    return text


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
