# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A config that cannot be read is named, with what is wrong in it."""

import errno
import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, Callable

import pytest
from mmengine.config import Config

from vim_mm.apis import ViMInferencer, export_onnx, generate, rank_modules
from vim_mm.apis.experts import extract_moe, save_adapted
from vim_mm.apis.release import publish_upstream
from vim_mm.apis.split import save_task
from vim_mm.utils.config import add_cfg_options, read_config


@pytest.mark.parametrize(('name', 'text', 'sentence'), [
    ('a.py', 'model = dict(', 'a.py, or a `_base_` of it, is not valid'),
    ('a.yml', 'a: [', 'a.yml, or a `_base_` of it, is not valid'),
    ('a.json', '{', 'a.json, or a `_base_` of it, is not valid'),
    ('a.py', '_base_ = "mmdet::nope.py"', 'a.py, .* is not valid'),
    ('a.py', 'assert 1 > 2, "It is less."', r'not valid: It is less\.$'),
    ('a.py', 'a = 1', 'a.py has no `model`'),
])
def test_broken_configs(name: str, text: str, sentence: str,
                        tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_config(str(tmp_path / name))


@pytest.mark.parametrize(
    'base', ['nope.py', 'nope.yml', 'mmdet::_base_/nope.py'])
def test_a_missing_base_is_named(base: str, tmp_path: Path) -> None:
    path = tmp_path / 'child.py'
    path.write_text(f'_base_ = {base!r}')
    with pytest.raises(
            FileNotFoundError, match='child.py needs .*nope.*`_base_`'):
        read_config(str(path))


def parse(*settings: str) -> dict:
    parser = ArgumentParser()
    add_cfg_options(parser)
    return parser.parse_args(['--cfg-options', *settings]).cfg_options


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_no_temporary_folder(number: int, tmp_path: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine copies a config into one, and forgets that there is none."""
    path = tmp_path / 'a.py'
    path.write_text('model = dict()')
    read_config(str(path))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr('tempfile.mkdtemp', full)
    with pytest.raises(ValueError, match='a.py cannot be read, as no temp.*'
                       f'{os.strerror(number)}.*set TMPDIR'):
        read_config(str(path))
    monkeypatch.undo()
    monkeypatch.setattr('tempfile.NamedTemporaryFile', full)
    with pytest.raises(OSError, match=f'{os.strerror(number)}.*a.py'):
        read_config(str(path))


def test_cfg_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / 'a.py'
    path.write_text('model = dict(width=1, necks=[dict(a=1), dict(a=2)])\n')
    options = parse('model.width=[3,4]', 'model.necks.1.a=b=c', 'lr=1e-3')
    cfg = read_config(str(path), options)
    assert cfg.model.to_dict() == dict(
        width=[3, 4], necks=[dict(a=1), dict(a='b=c')])
    assert cfg.lr == 1e-3
    assert read_config(str(path)).model.width == 1


def test_what_is_no_option(tmp_path: Path,
                           capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse('a=1', 'foo')
    assert "'foo' is no key=value" in capsys.readouterr().err
    for setting, words in (
            ('model.head=dict(a=1)', 'a dict, which would be taken for a text'
             '; give each of its keys by itself, model.head.KEY=VALUE'),
            ('a={b:1}', 'a dict'), ('a=[b,c', 'a bracket that is not closed'),
            ('a=[(1,2],[3]', 'a bracket that is not closed')):
        with pytest.raises(SystemExit):
            parse(setting)
        assert words in capsys.readouterr().err
    path = tmp_path / 'a.py'
    path.write_text('model = dict(necks=[dict(a=1)], name="x")\n')
    for setting in ('model.necks.7.a=1', 'model.name.a=1'):
        with pytest.raises(ValueError, match='do not fit the config'):
            read_config(str(path), parse(setting))


def test_whatever_holds_a_config(tmp_path: Path) -> None:
    path = tmp_path / 'a.py'
    path.write_text("model = dict(type='x')")
    for config in (path, str(path), Config.fromfile(str(path)),
                   dict(model=dict(type='x'))):
        assert read_config(config).model.type == 'x'
    for wrong in (None, 3, ['a.py']):
        with pytest.raises(ValueError, match='is no config: give the path'):
            read_config(wrong)


@pytest.mark.parametrize('take', [
    lambda path: rank_modules(path, 'zoo'),
    lambda path: extract_moe(path, 'x.pth', 'x.safetensors'),
    lambda path: save_adapted(path, 'x.pth', 'zoo'),
    lambda path: publish_upstream(path, 'folder'),
    lambda path: generate(path, 'x.pth', 'folder'),
    lambda path: export_onnx(path, 'x.pth', 'x.onnx'),
    lambda path: save_task(path, 'x.pth', 'cls', 'folder'),
    lambda path: ViMInferencer(path, 'x.pth')])
@pytest.mark.parametrize('kind', [str, Path])
def test_what_is_called_takes_paths(take: Callable, kind: type,
                                    tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no config file .*gone.py'):
        take(kind(tmp_path / 'gone.py'))
