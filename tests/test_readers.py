# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Every reader ends in one of our errors, soon, and in little memory."""

import json
import warnings
from pathlib import Path
from typing import Iterator

import pytest
from _hostile import JSON_FILES, TENSOR_FILES, judged, odd_json
from _readers import NOTES, TENSORS, Reader


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Fields that are not known are ignored with one."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def read(reader: Reader, content: bytes) -> str:
    """What is wrong with how a reader ended."""
    reader.write(content)
    with judged(len(content)) as verdict:
        reader.read()
    return verdict.problem


@pytest.mark.parametrize('name', [*TENSORS, *NOTES])
def test_what_is_good_is_read(name: str, tmp_path: Path) -> None:
    reader = {**TENSORS, **NOTES}[name](tmp_path)
    reader.read()
    reader.write(reader.good)
    reader.read()


@pytest.mark.parametrize('name', TENSORS)
def test_any_tensor_file_ends_in_our_error(name: str, tmp_path: Path) -> None:
    reader = TENSORS[name](tmp_path)
    problems = {
        what: read(reader, change(reader.good))
        for what, change in TENSOR_FILES.items()
    }
    assert not any(problems.values()), {k: v for k, v in problems.items() if v}
    reader.write(reader.good)
    reader.read()


@pytest.mark.parametrize('name', NOTES)
def test_any_notes_end_in_our_error(name: str, tmp_path: Path) -> None:
    reader = NOTES[name](tmp_path)
    contents = dict(JSON_FILES)
    # `make reliability` takes all of them
    some = list(odd_json(json.loads(reader.good)))[::3]
    contents.update(
        (what, json.dumps(content).encode()) for what, content in some)
    problems = {
        what: read(reader, content)
        for what, content in contents.items()
    }
    assert not any(problems.values()), {k: v for k, v in problems.items() if v}
    reader.write(reader.good)
    reader.read()
