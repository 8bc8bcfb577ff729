# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""`import vim_mm` costs little, and loading is safe whatever comes first."""

import subprocess
import sys
from pathlib import Path

import pytest

from _tiny import first_of
from vim_mm.utils.import_hooks import when_imported

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, *args: str) -> None:
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *args],
                   check=True,
                   cwd=ROOT)


def test_the_package_imports_no_torch_and_nothing_else_of_the_stack() -> None:
    run('import sys, mmengine; before = set(sys.modules); import vim_mm, '
        'vim_mm.registry; new = set(sys.modules) - before; '
        'assert not {"torch", "transformers", "mmengine.runner", "mmcv"} & '
        'new, new')


@pytest.mark.parametrize('statements', first_of([
    'import vim_mm; import mmengine.runner',
    'import mmengine.runner; import vim_mm',
    'import vim_mm; import mmengine._strategy',
    'import vim_mm; import mmengine.runner.checkpoint',
    'import vim_mm; import mmengine.model',
    'import vim_mm; import mmengine.hooks',
    'import vim_mm; import vim_mm.utils.checkpoint',
    'import vim_mm.zoo.interchange',
    'import vim_mm.engine.stopping',
    'import vim_mm.engine.resume',
    'import vim_mm.utils.keys',
    'import vim_mm; from importlib.util import find_spec; '
    'find_spec("mmengine.runner.checkpoint")',
]))
def test_loaders_are_safe_in_every_order(statements: str) -> None:
    run(f'{statements}; '
        'from mmengine.runner import CheckpointLoader, checkpoint; '
        'homes = {CheckpointLoader._schemes[s].__module__ '
        'for s in ("", "http://", "https://")}; '
        'assert homes == {"vim_mm.utils.checkpoint"}, homes; '
        'assert checkpoint.load_from_http.__module__ in homes')


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / 'watched_module.py').write_text('value = 1')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    yield 'watched_module'
    sys.modules.pop('watched_module', None)


def test_acts_once_the_module_has_run(watched: str) -> None:
    seen = []
    for name in ('first', 'second'):
        when_imported(
            watched, lambda name=name: seen.append(
                (name, sys.modules[watched].value)))
    assert not seen
    import watched_module
    assert watched_module.value == 1
    assert seen == [('first', 1)]
    when_imported(watched, lambda: seen.append('at once'))
    assert seen[1:] == ['at once']


def test_a_module_that_is_absent_stays_absent(
        watched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    when_imported('no_such_module_at_all', lambda: pytest.fail('imported'))
    with pytest.raises(ModuleNotFoundError):
        __import__('no_such_module_at_all')
