"""What `params.yaml` may hold: good files are read as meant, bad ones give one clear line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from operator import attrgetter, getitem
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.pipeline.command import LOCKS, InputError
from stages.pipeline.params import FetchParams, Params, TrainParams, load_params
from stages.pipeline.sources import SOURCES
from tests.checks import small_project
from tests.checks.small_project import ROOT, fresh_parameters

COMMITTED = fresh_parameters()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a test writes its parameters."""
    return tmp_path_factory.mktemp("params") / "params.yaml"


def changed(key: str, value: Any) -> str:
    """Return the committed parameters as YAML, one of them changed: `train.epochs`, 3."""
    document = yaml.safe_load(COMMITTED)
    *sections, name = key.split(".")
    reduce(getitem, sections, document)[name] = value
    return yaml.safe_dump(document)


def load(file: Path, content: str | bytes) -> Params:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_params(file)


def refusal(file: Path, content: str | bytes) -> str:
    """Return the line that refuses the content, without the file's name in front."""
    with pytest.raises(InputError) as refused:
        load(file, content)
    line = str(refused.value)
    assert line.splitlines() == [line]
    assert line.isprintable()
    assert line.startswith(f"{file}: ")
    return line.removeprefix(f"{file}: ").removesuffix(remedy(file))


def remedy(file: Path) -> str:
    """Return how a line ends that refuses a value: `dvc exp run -S` leaves it in the file."""
    return f"; {file} stays so until you edit it, or 'git restore {file}'"


def test_committed_file_means_what_a_yaml_reader_sees(file: Path) -> None:
    params = load(file, COMMITTED)
    assert params.model_dump() == yaml.safe_load(COMMITTED)


def test_file_in_current_directory_is_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(changed("train.epochs", 3))
    monkeypatch.chdir(file.parent)
    assert load_params().train.epochs == 3


def test_source_names_are_those_that_fetch_knows() -> None:
    (names,) = get_args(FetchParams.model_fields["sources"].annotation)
    assert set(get_args(names)) == set(SOURCES)


@pytest.mark.parametrize("spelling", ["1e-05", "1E-05", "0.00001", ".00001", "1.0e-5", "+1e-5"])
def test_spellings_of_a_number(file: Path, spelling: str) -> None:
    text = re.sub(r"learning_rate: \S+", f"learning_rate: {spelling}", COMMITTED, count=1)
    assert text != COMMITTED
    assert load(file, text).train.learning_rate == 0.00001


@pytest.mark.parametrize(
    ("spelling", "number"), [("1e3", 1000), ("1000.0", 1000), ("0100", 100), ('"30"', 30)]
)
def test_spellings_of_a_whole_number(file: Path, spelling: str, number: int) -> None:
    params = load(file, changed("train.epochs", 77).replace("77", spelling))
    assert params.train.epochs == number
    assert type(params.train.epochs) is int


@settings(deadline=None)
@given(st.floats())
@example(100.0)
@example(5e-324)
@example(0.0)
@example(-0.0)
def test_every_float_that_is_written_is_read_back_or_refused(file: Path, number: float) -> None:
    text = changed("train.learning_rate", 77).replace("77", repr(number))
    if 0 < number <= 100:
        assert load(file, text).train.learning_rate == number
    else:
        wanted = f"train.learning_rate: {number!r}: must be a number greater than 0 and at most 100"
        assert refusal(file, text) == wanted


@pytest.mark.parametrize(
    ("key", "accepted"),
    [
        ("fetch.sources", [["keras"], ["pypi"], ["pypi", "keras"]]),
        ("preprocess.validation_size", [1000, 30000]),
        ("preprocess.seed", [0, 2**32 - 1]),
        ("train.hidden_sizes", [[1], [8192] * 8]),
        ("train.initialisation", ["he", "glorot", "uniform"]),
        ("train.optimizer", ["sgd", "nesterov", "adam"]),
        ("train.learning_rate", [1e-300, 1, 100, 0.5]),
        ("train.schedule", ["constant", "cosine", "step", "one_cycle"]),
        ("train.momentum", [0, 0.0, 0.999]),
        ("train.batch_size", [1, 60000, "all"]),
        ("train.epochs", [1, 10000]),
        ("train.l2", [0, 1, 1e-9]),
        ("train.weight_decay", [0, 1]),
        ("train.dropout", [0, 0.999]),
        ("train.label_smoothing", [0, 0.999]),
        ("train.ema_decay", [0, 0.9999]),
        ("train.augmentation.rotation", [0, 180]),
        ("train.augmentation.scale", [0, 0.999]),
        ("train.augmentation.shear", [0, 1]),
        ("train.augmentation.shift", [0, 14]),
        ("train.augmentation.elastic", [0, 100]),
        ("train.augmentation.smoothness", [1, 14]),
        ("train.augmentation.thickness", [0, 10]),
        ("fetch.dataset", ["mnist", "fashion_mnist", "files"]),
        ("fetch.files.test_fraction", [0.001, 0.999]),
        ("train.include_validation", [True, False]),
        ("train.seed", [0, 2**32 - 1]),
        ("train.keep", ["best", "last"]),
        ("visualize.rows", [1, 20]),
        ("visualize.columns", [1, 20]),
        ("visualize.mistakes", [1, 50]),
    ],
)
def test_values_up_to_the_bounds_are_accepted(file: Path, key: str, accepted: list[Any]) -> None:
    for value in accepted:
        assert attrgetter(key)(load(file, changed(key, value))) == value


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("fetch.sources", ["kers"], "[0]: kers: must be one of keras, pypi"),
        ("fetch.sources", [], ": []: must be a list of 1 or more items, each one of keras, pypi"),
        ("preprocess.validation_size", 9, ": 9: must be a whole number from 10 to 30000"),
        ("train.hidden_sizes", [64, 0], "[1]: 0: must be a whole number from 1 to 8192"),
        (
            "train.hidden_sizes",
            64,
            ": 64: must be a list of 1 to 8 items, each a whole number from 1 to 8192",
        ),
        ("train.initialisation", "xavier", ": xavier: must be one of he, glorot, uniform"),
        (
            "train.learning_rate",
            -1,
            ": -1: must be a number greater than 0 and at most 100",
        ),
        ("train.momentum", 1, ": 1: must be a number at least 0 and less than 1"),
        ("train.batch_size", "al", ": al: must be a whole number from 1 to 60000 or all"),
        ("train.batch_size", 0, ": 0: must be a whole number from 1 to 60000 or all"),
        ("train.batch_size", ["all"], ": ['all']: must be a whole number from 1 to 60000 or all"),
        ("train.epochs", "ten", ": ten: must be a whole number from 1 to 10000"),
        ("train.epochs", 2.5, ": 2.5: must be a whole number from 1 to 10000"),
        ("train.epochs", True, ": true: must be a whole number from 1 to 10000"),
        ("train.epochs", None, ": null: must be a whole number from 1 to 10000"),
        ("train.epochs", "", ": '': must be a whole number from 1 to 10000"),
        ("train.epochs", "3\n4", ": '3\\n4': must be a whole number from 1 to 10000"),
        ("train.epochs", {"a": 1}, ": {'a': '1'}: must be a whole number from 1 to 10000"),
        ("train.l2", False, ": false: must be a number at least 0 and at most 1"),
        ("train.l2", float("nan"), ": .nan: must be a number at least 0 and at most 1"),
        ("train.l2", float("inf"), ": .inf: must be a number at least 0 and at most 1"),
        ("train.l2", "1e999", ": 1e999: must be a number at least 0 and at most 1"),
        ("train.seed", 2**32, ": 4294967296: must be a whole number from 0 to 4294967295"),
        ("train.seed", "0x10", ": 0x10: must be a whole number from 0 to 4294967295"),
        ("train.seed", "1:30", ": 1:30: must be a whole number from 0 to 4294967295"),
        ("train.seed", "1_0", ": 1_0: must be a whole number from 0 to 4294967295"),
        ("train.seed", "\u0663", ": \u0663: must be a whole number from 0 to 4294967295"),
        ("train.keep", "Best", ": Best: must be one of best, last"),
        ("train.dropout", 1, ": 1: must be a number at least 0 and less than 1"),
        ("train.ema_decay", 1, ": 1: must be a number at least 0 and less than 1"),
        *(
            (f"train.augmentation.{name}", value, f": {value}: must be a number at least {allowed}")
            for name, values, allowed in (
                ("rotation", (-1, 180.5), "0 and at most 180"),
                ("scale", (-0.1, 1), "0 and less than 1"),
                ("shear", (-0.1, 1.5), "0 and at most 1"),
                ("shift", (-1, 14.5), "0 and at most 14"),
                ("elastic", (-1, 100.5), "0 and at most 100"),
                ("smoothness", (0.5, 14.5), "1 and at most 14"),
                ("thickness", (-1, 10.5), "0 and at most 10"),
            )
            for value in values
        ),
        ("fetch.dataset", "emnist", ": emnist: must be one of mnist, fashion_mnist, files"),
        *(
            (
                "fetch.files.test_fraction",
                value,
                f": {value}: must be a number greater than 0 and less than 1",
            )
            for value in (0, 1)
        ),
        ("train.include_validation", "yes", ": yes: must be true or false"),
        ("train.include_validation", 1, ": 1: must be true or false"),
    ],
)
def test_refused_value_is_named_with_what_is_allowed(
    file: Path, key: str, value: Any, line: str
) -> None:
    assert refusal(file, changed(key, value)) == key + line


def test_long_value_is_shortened(file: Path) -> None:
    line = refusal(file, changed("train.seed", "9" * 5000))
    assert line == f"train.seed: {'9' * 37}...: must be a whole number from 0 to 4294967295"


def test_unknown_and_missing_key_in_one_line(file: Path) -> None:
    line = refusal(file, COMMITTED.replace("epochs:", "epoch:"))
    keys = ", ".join(TrainParams.model_fields)
    assert line == (
        "train.epochs: missing: must be a whole number from 1 to 10000; "
        f"train.epoch: unknown key: must be one of {keys}"
    )


def test_unknown_and_missing_section(file: Path) -> None:
    line = refusal(file, COMMITTED.replace("fetch:", "download:"))
    assert line == (
        "fetch: missing: must be a mapping with the keys dataset, sources, files; "
        "download: unknown key: must be one of fetch, preprocess, train, visualize"
    )


def test_section_that_is_no_mapping(file: Path) -> None:
    document = yaml.safe_load(COMMITTED) | {"fetch": [1]}
    line = refusal(file, yaml.safe_dump(document))
    assert line == "fetch: ['1']: must be a mapping with the keys dataset, sources, files"


def test_many_problems_are_counted(file: Path) -> None:
    line = refusal(file, "fetch: {}\npreprocess: {}\ntrain: {}\nvisualize: {}\n")
    assert line.count("missing") == 3
    assert line.endswith("; and 22 more")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "empty: must be a mapping with the keys fetch, preprocess, train, visualize"),
        (b"# only a comment\n", "empty: must be a mapping with the keys fetch, preprocess, train, "
                                "visualize"),
        (b"- 1\n", "['1']: must be a mapping with the keys fetch, preprocess, train, visualize"),
        (b"train", "train: must be a mapping with the keys fetch, preprocess, train, visualize"),
        (b"\xff\xfe", "byte 0 is not UTF-8 text"),
        (b"train: {seed: 1, seed: 2}", "train.seed: given twice, again in line 1"),
        (b"a: 1\nb: 2\na: 3\n", "a: given twice, again in line 3"),
        (b"a: [{b: 1, b: 1}]", "a[0].b: given twice, again in line 1"),
        (b"a: &x 1\n", "line 1: anchors and aliases (& and *) are not allowed"),
        (b"a: 1\nb: *x\n", "line 2: anchors and aliases (& and *) are not allowed"),
        (b"a: !!python/object/apply:os.system [ls]\n",
         "line 1: the tag tag:yaml.org,2002:python/object/apply... is not allowed"),
        (b"a: !!int 5\n", "line 1: the tag tag:yaml.org,2002:int is not allowed"),
        (b"a: " + b"[" * 100_000, "line 1: nested deeper than 10 levels"),
        (b"? [a]\n: 1\n", "line 1: a key must be plain text"),
        (b"a: 1\n---\nb: 1\n", "not YAML at line 2: but found another document"),
        (b"a: b: c\n", "not YAML at line 1: mapping values are not allowed here"),
        (b'a: "cut', "not YAML at line 1: found unexpected end of stream"),
        (b"a: \x00\n", "not YAML: unacceptable character #x0000: special characters are not "
                       "allowed"),
    ],
)  # fmt: skip
def test_file_that_is_no_plain_yaml(file: Path, content: bytes, line: str) -> None:
    assert refusal(file, content) == line


def test_anchor_bomb_is_refused(file: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert refusal(file, "\n".join(lines)).startswith("line 1: anchors and aliases")


def test_merge_key_is_an_unknown_key(file: Path) -> None:
    assert "<<: unknown key" in refusal(file, COMMITTED + "<<: {seed: 1}\n")


def test_byte_order_mark_is_harmless(file: Path) -> None:
    assert load(file, b"\xef\xbb\xbf" + COMMITTED.encode()) == load(file, COMMITTED)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_params(tmp_path / "params.yaml")


def test_every_cut_of_the_file_is_refused(file: Path) -> None:
    meaningful = COMMITTED.rstrip()
    ends = range(0, meaningful.rindex("\n"), 7)
    for end in ends:
        refusal(file, meaningful[:end])
    assert len(ends) > 200


def test_params_cannot_be_changed(file: Path) -> None:
    params, name = load(file, COMMITTED), "epochs"
    with pytest.raises(ValidationError):
        setattr(params.train, name, 3)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value at every depth."""
    yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from leaves(inner, (*path, key))


ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.sampled_from(list(leaves(yaml.safe_load(COMMITTED)))), ANY_VALUE)
def test_anything_anywhere_is_read_or_refused_in_one_line(
    file: Path, path: tuple[Any, ...], value: Any
) -> None:
    document: Any = {"": yaml.safe_load(COMMITTED)}
    place = document
    for part in ("", *path)[:-1]:
        place = place[part]
    place[("", *path)[-1]] = value
    read_or_refused(file, json.dumps(document[""]))


@settings(deadline=None)
@given(st.binary())
@example(b'a: "\\UFFFFFFFF"')
@example(b'"\\ud800": 1')
@example(b"%YAML " + b"1" * 5000 + b".1\n---\n")
@example(b"%TAG ! tag:\n---\n!a b")
def test_any_bytes_are_refused_in_one_line(file: Path, content: bytes) -> None:
    refusal(file, content)


@settings(deadline=None)
@given(st.data())
def test_damaged_file_is_read_or_refused_in_one_line(file: Path, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(COMMITTED)))
    end = data.draw(st.integers(start, min(start + 20, len(COMMITTED))))
    inserted = data.draw(st.text("&*!{}[]:,#|>%@`\"'-?<~ \t\n\r\x85\u2028019eE.ax", max_size=6))
    read_or_refused(file, COMMITTED[:start] + inserted + COMMITTED[end:])


def read_or_refused(file: Path, content: str) -> None:
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        params = load_params(file)
    except InputError:
        refusal(file, content.encode("utf-8", "surrogatepass"))
    else:
        assert load(file, json.dumps(params.model_dump())) == params


def test_stage_ends_with_one_line_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(changed("train.learning_rate", -1))
    ended = subprocess.run(
        [sys.executable, "-m", "stages.fetch"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == (
        "error: params.yaml: train.learning_rate: -1: "
        f"must be a number greater than 0 and at most 100{remedy(Path('params.yaml'))}\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"params.yaml", LOCKS.parts[0]}


def test_the_tests_do_not_see_the_users_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = re.sub(r"learning_rate: \S+", "learning_rate: 1e-05", COMMITTED, count=1)
    used = used.replace("  - 64\n", "  - 800\n  - 400\n")
    assert len(used.splitlines()) == len(COMMITTED.splitlines()) + 1
    (tmp_path / "params.yaml").write_text(used)
    monkeypatch.setattr(small_project, "ROOT", tmp_path)
    assert fresh_parameters() == COMMITTED
