# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Exported files are whole or not there, and every changed bit is noticed."""

import errno
import os
import random
from pathlib import Path
from typing import Any

import onnx
import pytest
from _export import build, classifier
from _states import states_of

from vim_mm.apis import export_model
from vim_mm.models.export import OnnxModel
from vim_mm.models.export.about import OnnxFileError
from vim_mm.utils.checksum import NAME, is_intact
from vim_mm.utils.cli import is_user_error, run_cli


@pytest.fixture(scope='module')
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A model, its config, and its file."""
    model, cfg = build('cls', classifier(), size=64)
    file = tmp_path_factory.mktemp('exported') / 'model.onnx'
    export_model(model, cfg, file)
    return model, cfg, file


def test_killed_at_every_change(exported: tuple, tmp_path: Path) -> None:
    model, cfg, file = exported
    folder = tmp_path / 'out'
    folder.mkdir()
    (folder / 'model.onnx').write_bytes(b'older')
    states = states_of(
        folder, lambda: export_model(model, cfg, folder / 'model.onnx'))
    whole = {b'older', file.read_bytes()}
    assert len(states) > 1
    assert all((state / 'model.onnx').read_bytes() in whole
               for state in states)
    assert (folder / 'model.onnx').read_bytes() == file.read_bytes()
    assert [each.name for each in folder.iterdir()] == ['model.onnx']


@pytest.mark.parametrize('number', [
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_place_that_takes_no_more(number: int, exported: tuple,
                                    tmp_path: Path, capsys: Any,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    model, cfg, _ = exported
    file = tmp_path / 'model.onnx'
    file.write_bytes(b'older')

    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: export_model(model, cfg, file) and 0)
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"Error: '{file}' cannot be read or written: ")
    assert os.strerror(number) in said
    assert file.read_bytes() == b'older' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('name', ['there.onnx', 'nowhere/x.onnx', 'x.pt',
                                  'file/x.onnx'])
def test_a_target_that_cannot_be(name: str, exported: tuple,
                                 tmp_path: Path) -> None:
    model, cfg, _ = exported
    (tmp_path / 'there.onnx').mkdir()
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='cannot be written: name a file'):
        export_model(model, cfg, tmp_path / name)


@pytest.mark.parametrize('size', [(0, 64), (-4, 64), (64, 0)])
def test_sizes_that_there_are_not(size: tuple, exported: tuple,
                                  tmp_path: Path) -> None:
    model, cfg, _ = exported
    with pytest.raises(ValueError, match='reads no images of .* give another'):
        export_model(model, cfg, tmp_path / 'x.onnx', size=size)
    assert not list(tmp_path.iterdir())


def test_a_changed_bit_is_named(exported: tuple, tmp_path: Path) -> None:
    blob = exported[2].read_bytes()
    file, rng = tmp_path / 'model.onnx', random.Random(0)
    file.write_bytes(blob)
    assert is_intact(file) and OnnxModel(file).kind == 'cls'
    mark = blob.rindex(NAME.encode())
    for place in rng.sample(range(len(blob)), 200):
        if mark <= place < mark + len(NAME) + 2:
            continue  # then it is a file without a checksum
        changed = bytearray(blob)
        changed[place] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        assert is_intact(file) is False
    with pytest.raises(OnnxFileError, match='model.onnx. is damaged') as said:
        OnnxModel(file)
    assert is_user_error(said.value)
    for end in (0, 1, 99, len(blob) // 2, len(blob) - 1):
        file.write_bytes(blob[:end])
        with pytest.raises(ValueError, match='model.onnx'):
            OnnxModel(file)


def test_a_file_without_a_checksum_is_read(exported: tuple,
                                           tmp_path: Path) -> None:
    model = onnx.load(exported[2])
    kept = [each for each in model.metadata_props if each.key != NAME]
    assert len(kept) == len(model.metadata_props) - 1
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / 'model.onnx')
    assert is_intact(tmp_path / 'model.onnx') is None
    assert OnnxModel(tmp_path / 'model.onnx').kind == 'cls'
