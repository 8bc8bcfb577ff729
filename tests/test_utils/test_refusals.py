# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Errors of libraries are told from those of files of one's own."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

from vim_mm.utils.refusals import refused_by_library


@pytest.mark.parametrize(('name', 'refused'), [
    ('mmdet.not_installed_here', True), ('mmseg_of_mine', False),
    ('my_project', False), ('vim_mm.own', False)])
def test_a_library_is_one_wherever_it_lies(
        name: str, refused: bool, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone of a library is not in site-packages."""
    leaf = name.rpartition('.')[2]
    (tmp_path / f'{leaf}.py').write_text("def look():\n    {}['key']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = import_module(leaf)
    monkeypatch.delitem(sys.modules, leaf)
    module.__dict__['__name__'] = name
    with pytest.raises(KeyError) as caught:
        module.look()
    assert refused_by_library(caught.value) is refused
