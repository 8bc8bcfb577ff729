# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Paths of 0.1.0 still lead somewhere, and say where."""

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

from vim_mm._moved import MODULES, NAMES

#: A module inside an old package, and its new place.
INSIDE = [
    ('utils.trunk_weights.clip', 'interchange.trunks.clip'),
    ('utils.trunk_weights.sources', 'interchange.trunks.sources'),
    ('zoo.interchange.peft_adapter', 'interchange.peft_adapter'),
    ('zoo.interchange.vim_release', 'interchange.vim_release'),
    ('datasets.prepare.digits', 'demo.data.digits'),
    ('datasets.prepare.tree_crowns', 'demo.data.tree_crowns'),
]
#: Names that users or docs of 0.1.0 imported.
USED = [
    ('apis.comparison', 'Variant'), ('apis.demo', 'PREPARE'),
    ('apis.evidence', 'agreement'), ('apis.evidence', 'usefulness'),
    ('apis.report', 'write_report'),
    ('datasets.prepare', 'digits_recipe'),
    ('datasets.prepare.common', 'run_recipe'),
    ('engine.feature_cache', 'cache_features'),
    ('engine.feature_cache', 'unwrap'), ('engine.hold_out', 'held_out_loss'),
    ('engine.module_rows', 'TRUNK'),
    ('engine.transfer_score', 'held_out_scores'),
    ('engine.transfer_score', 'rows_of'), ('engine.transfer_score', 'ridge'),
    ('engine.transfer_score', 'IGNORED'),
    ('engine.transferability', 'log_me'), ('engine.transferability', 'leep'),
    ('engine.unlike_halves', 'unlike_halves'),
    ('utils.trunk_weights', 'convert_trunk'),
    ('utils.trunk_weights', 'FAMILIES'),
    ('utils.trunk_weights.family', 'PackagedFile'),
    ('utils.trunk_weights.sources', 'ConversionError'),
    ('zoo.interchange', 'convert_release'),
    ('zoo.interchange', 'export_adapter'),
    ('zoo.interchange.folders', 'new_folder')
]


def import_anew(monkeypatch, module: str):
    """Import an old path as if for the first time."""
    monkeypatch.delitem(sys.modules, f'vim_mm.{module}', raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import_module(f'vim_mm.{module.rpartition(".")[0]}')
    return import_module(f'vim_mm.{module}')


@pytest.mark.parametrize('old', sorted(MODULES))
def test_old_modules_hold_what_the_new_ones_hold(old, monkeypatch):
    with pytest.warns(DeprecationWarning) as caught:
        module = import_anew(monkeypatch, old)
    text, = {str(w.message) for w in caught}
    assert text.startswith(f'vim_mm.{old} is now vim_mm.{MODULES[old][0]}')
    for new in MODULES[old]:
        assert f'vim_mm.{new}' in text
        theirs = vars(import_module(f'vim_mm.{new}'))
        names = {name for name in theirs if name[:2] != '__'}
        assert names and names <= vars(module).keys()
    assert caught[0].filename != sys.modules['vim_mm._moved'].__file__


@pytest.mark.parametrize('old, new', INSIDE)
def test_what_is_inside_an_old_package_is_found(old, new, monkeypatch):
    with pytest.warns(DeprecationWarning, match=f'is now vim_mm.{new};'):
        module = import_anew(monkeypatch, old)
    found = import_module(f'vim_mm.{new}')
    assert all(getattr(module, name) is value
               for name, value in vars(found).items() if name[:2] != '__')
    # importing the old one leaves the new one as it is
    assert found.__spec__.name == found.__name__ == f'vim_mm.{new}'


@pytest.mark.parametrize('old, name', USED)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_names_of_0_1_0_are_there(old, name):
    assert getattr(import_module(f'vim_mm.{old}'), name) is not None


@pytest.mark.parametrize('module, name, new', [
    (module, name, new) for module, names in NAMES.items()
    for name, new in names.items()
])
def test_moved_names(module, name, new):
    source = import_module(f'vim_mm.{module}')
    with pytest.warns(DeprecationWarning,
                      match=f'vim_mm.{module}.{name} is now vim_mm.{new}'
                      ) as caught:
        value = getattr(source, name)
    assert value is getattr(import_module(f'vim_mm.{new}'), name)
    assert caught[0].filename == __file__


@pytest.mark.parametrize('path', [
    'vim_mm.engine.nothing', 'vim_mm.zoo.interchange.nothing',
    'vim_mm.utils.trunk_weights.clip.nothing', 'vim_mm.apis.reports'
])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_what_never_was_is_not_found(path):
    with pytest.raises(ModuleNotFoundError, match=path):
        import_module(path)
    with pytest.raises(AttributeError, match="'nothing'"):
        import_module('vim_mm.apis').nothing


def test_the_warning_points_at_the_import(tmp_path):
    """Python shows a deprecation only in the file that a user runs."""
    script = tmp_path / 'mine.py'
    script.write_text('import vim_mm\n'
                      'from vim_mm.engine.transferability import log_me\n')
    run = subprocess.run([sys.executable, str(script)], capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stderr
    assert (f'{script}:2: DeprecationWarning: vim_mm.engine.transferability '
            'is now vim_mm.evaluation.transferability') in run.stderr
