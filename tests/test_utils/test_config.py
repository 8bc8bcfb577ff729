# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A config that cannot be read is named, with what is wrong in it."""

from pathlib import Path

import pytest

from vim_mm.utils.config import read_config


@pytest.mark.parametrize(('name', 'text', 'sentence'), [
    ('a.py', 'model = dict(', 'a.py, or a `_base_` of it, is not valid'),
    ('a.yml', 'a: [', 'a.yml, or a `_base_` of it, is not valid'),
    ('a.json', '{', 'a.json, or a `_base_` of it, is not valid'),
    ('a.py', '_base_ = "mmdet::nope.py"', 'a.py, .* is not valid'),
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
