# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Small files of strangers are read within bounds, in our own words."""

import json
import os
from pathlib import Path
from typing import Callable

import pytest
import torch
from _hostile import ESCAPE, IN_PLACE, JSON_FILES, judged, put
from torch import Tensor, nn

from vim_mm.utils import tensor_files
from vim_mm.utils.messages import MESSAGE, InputError, cut, printable, short
from vim_mm.utils.meta import PARTS, check_shapes, most_parts, without_memory
from vim_mm.utils.reading import (DEPTH, OpenFolder, ReadError, check_plain,
                                  open_regular, parse_json, read_json,
                                  read_regular)


@pytest.mark.parametrize('what', IN_PLACE)
def test_only_regular_files_are_read(tmp_path: Path, what: str) -> None:
    path = tmp_path / 'file'
    put(path, what)
    with judged() as verdict:
        read_regular(path, 1 << 20)
    assert verdict.error and not verdict.problem
    missing = what in ('nothing', 'nowhere')
    assert isinstance(verdict.error, FileNotFoundError) == missing


def test_a_link_to_a_file_is_one(tmp_path: Path) -> None:
    (tmp_path / 'a').write_bytes(b'abc')
    (tmp_path / 'b').symlink_to('a')
    assert read_regular(tmp_path / 'b', 3) == b'abc'
    with pytest.raises(ReadError, match='3 bytes, and 2 are the most'):
        read_regular(tmp_path / 'b', 2)
    with pytest.raises(ReadError, match='no valid name'):
        read_regular(tmp_path / 'a\0', 2)
    with pytest.raises(ReadError, match='Not a directory'):
        read_regular(tmp_path / 'a' / 'b', 2)
    with open_regular(tmp_path / 'b') as file:
        assert file.read() == b'abc'


def test_an_open_folder_stays_the_same(tmp_path: Path) -> None:
    for name in 'ab':
        (tmp_path / name).mkdir()
        (tmp_path / name / 'file').write_text(name)
    with OpenFolder(tmp_path / 'a') as folder:
        assert folder.is_at(tmp_path / 'a')
        (tmp_path / 'a').rename(tmp_path / 'c')
        (tmp_path / 'b').rename(tmp_path / 'a')
        assert folder.read('file', 9) == b'a'
        assert not folder.is_at(tmp_path / 'a')
        assert folder.is_at(tmp_path / 'c')
        assert not folder.is_at(tmp_path / 'none')
    for what in IN_PLACE:
        if 'folder' not in what:
            put(tmp_path / 'x', what)
            with pytest.raises(OSError):
                OpenFolder(tmp_path / 'x')


def test_folders_without_open_folders(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, 'supports_dir_fd', set())
    (tmp_path / 'file').write_text('a')
    with OpenFolder(tmp_path) as folder:
        assert folder.read('file', 9) == b'a' and folder.is_at(tmp_path)
        with pytest.raises(FileNotFoundError):
            folder.read('none', 9)


@pytest.mark.parametrize('what', JSON_FILES)
def test_json_is_plain_or_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / 'x.json').write_bytes(JSON_FILES[what])
    fine = what in ('list', 'number', 'text', 'null', 'empty', 'surrogate',
                    'escape')
    with judged() as verdict:
        read_json(tmp_path / 'x.json')
    assert not verdict.problem
    assert isinstance(verdict.error, ReadError) != fine


def test_bounds_of_json() -> None:
    nested: list = []
    for _ in range(DEPTH - 1):
        nested = [nested]
    check_plain(nested)
    with pytest.raises(ReadError, match='deeper than 32'):
        check_plain([nested])
    with pytest.raises(ReadError, match='more than 3 values'):
        check_plain(dict(a=1, b=2), values=3)
    assert parse_json('[NaN, -1e999]', finite=False)[1] == -float('inf')
    for text in ('NaN', '[1e999]', '1' + 301 * '0', '{"a": -1' + 301 * '0}'):
        with pytest.raises(ReadError):
            parse_json(text)
    assert parse_json('1' + 300 * '0') == 10**300


def test_messages_are_short_and_printable() -> None:
    said = str(InputError(f'{ESCAPE} ' + 9 * MESSAGE * 'x' + ' the fix'))
    assert said.isprintable() and len(said) == MESSAGE
    assert said.endswith(' the fix') and '\\x1b[31mred' in said
    assert printable('a\nb\tc\u202e') == 'a\nb\\tc\\u202e'
    assert printable('Zürich → ok') == 'Zürich → ok'
    assert len(short(['x' * 999])) == 80 and cut('abc', 3) == 'abc'


# --------------------------------------------------------------- tensor files


def header(**shapes: tuple) -> bytes:
    from safetensors.torch import save
    return save({name: torch.ones(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize('limit, data, reason', [
    ('TENSORS', header(a=(1, ), b=(2, )), 'more than 1 tensors'),
    ('AXES', header(a=(2, 1)), 'has 2 axes'),
    ('NAME', header(ab=(2, )), 'name of 2 characters'),
    ('EMPTY', header(a=(0, 2)), 'no such data'),
])
def test_bounds_of_tensor_files(tmp_path: Path, monkeypatch, limit: str,
                                data: bytes, reason: str) -> None:
    path = tmp_path / 'x.safetensors'
    path.write_bytes(data)
    assert tensor_files.load_tensors(path)
    monkeypatch.setattr(tensor_files, limit, 1)
    for read in (lambda: tensor_files.load_tensors(path),
                 lambda: tensor_files.unpack(data),
                 lambda: tensor_files.read_header(path)):
        with pytest.raises(tensor_files.TensorFileError, match=reason):
            read()
    with pytest.raises(tensor_files.TensorFileError, match='header has'):
        tensor_files.read_header(path, 9)


def test_a_pickle_under_another_name_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / 'x.safetensors'
    torch.save(dict(a=1), path)
    with pytest.raises(tensor_files.TensorFileError, match='is a pickle'):
        tensor_files.load_tensors(path)


def test_a_header_says_what_is_in_the_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    path = tmp_path / 'x.safetensors'
    save_file(
        dict(a=torch.ones(2, 3), b=torch.ones(4).half()), path,
        dict(note='text'))
    found = tensor_files.read_header(path)
    assert found.metadata == dict(note='text')
    assert found.shapes == dict(a=(2, 3), b=(4, ))
    assert found.dtypes == dict(a='F32', b='F16')


# --------------------------------------------------------------- models


def test_models_without_memory() -> None:
    with without_memory(3):
        model = nn.Sequential(nn.Linear(1 << 20, 1 << 20), nn.Linear(2, 2))
        assert torch.linspace(0, 1, 2)[1].item() == 1
    assert model[0].weight.is_meta
    with pytest.raises(ValueError, match='more than 3 parts'):
        with without_memory(3):
            nn.Sequential(*(nn.Identity() for _ in range(4)))
    nn.Sequential(*(nn.Identity() for _ in range(9)))  # the limit is gone
    assert most_parts(1) < most_parts(10) < most_parts(10**6) == PARTS


@pytest.mark.parametrize('fill', [
    Tensor.zero_, lambda tensor: tensor.normal_(std=.1),
    lambda tensor: nn.init.trunc_normal_(tensor, std=.02),
    nn.init.kaiming_uniform_, nn.init.orthogonal_])
def test_tensors_without_memory_take_no_values(fill: Callable) -> None:
    with without_memory():
        empty = torch.ones(2, 3)
        assert fill(empty) is empty and empty.is_meta
        there = torch.full((2, 3), 7., device='cpu')
        assert fill(there) is there and (there != 7).all()


def test_shapes_are_compared() -> None:
    own = dict(a=(2, ), b=(3, 4))
    check_shapes(own, dict(own))
    for given, reason in ((dict(a=(2, )), "lacks 1 tensors, such as 'b'"),
                          (dict(own, c=()), "excess 1 tensors, such as 'c'"),
                          (dict(own, b=(4, 3)), "'b' has the shape \\(4, 3")):
        with pytest.raises(ValueError, match=reason):
            check_shapes(own, given)


def test_json_of_a_card_keeps_its_text() -> None:
    assert parse_json(json.dumps(dict(a=ESCAPE))) == dict(a=ESCAPE)
