# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The doctor sees the good modules of a zoo, and says a line of bad ones."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
from _hostile import ESCAPE, IN_PLACE, JSON_FILES, TENSOR_FILES, judged, put

from vim_mm.utils import doctor
from vim_mm.utils.messages import LINES
from vim_mm.zoo import Zoo, zoo_checks
from vim_mm.zoo.zoo_checks import check_zoos

CARD, MODULE = 'card.json', 'module.safetensors'
ROOT = Path(__file__).resolve().parents[2]
SPOILT = {
    **{f'{file} is {what}': lambda bad, file=file, what=what: put(
        bad / file, what) for file in (CARD, MODULE) for what in IN_PLACE},
    **{f'card {what}': lambda bad, text=text: (bad / CARD).write_bytes(text)
       for what, text in JSON_FILES.items()},
    **{f'module {what}': lambda bad, change=change: (
        bad / MODULE).write_bytes(change((bad / MODULE).read_bytes()))
       for what, change in TENSOR_FILES.items()},
    'renamed': lambda bad: bad.rename(bad.parent / 'other'),
    'escape': lambda bad: bad.rename(bad.parent / f'bad{ESCAPE}'),
    'copy': lambda bad: bad.rename(bad.parent / 'bad (copy)')
}


@pytest.fixture
def pair(tmp_path, make_card, make_tensors):
    """A zoo with the modules 'bad', to be spoilt, and 'good'."""
    zoo = Zoo(tmp_path / 'zoo')
    for name in ('bad', 'good'):
        zoo.save(make_card(name), make_tensors())
    return zoo


@pytest.mark.parametrize('what', SPOILT)
def test_a_bad_module_is_a_line(pair, what):
    first, = check_zoos([pair.root])
    assert first.state == 'ok' and first.detail == '2 modules are whole'
    SPOILT[what](pair.root / 'bad')
    with judged() as verdict:
        first, *rest = check_zoos([pair.root])
    assert not verdict.error and not verdict.problem
    assert first.state == 'broken'
    assert first.detail == '1 modules are whole, 1 are not'
    line, = rest
    assert line.state == 'broken' and len(line.detail) < 1500
    assert all(said.isprintable() for said in (line.name, line.detail))
    assert 'good' not in line.name + line.detail
    assert 'zoo remove' in line.mend or 'Rename its folder' in line.detail


@pytest.mark.parametrize('what', IN_PLACE)
def test_what_is_no_zoo(tmp_path, pair, what):
    put(tmp_path / 'none', what)
    with judged() as verdict:
        checks = check_zoos([tmp_path / 'none', pair.root])
    assert not verdict.error and not verdict.problem
    assert [check.state for check in checks] == [
        'ok' if 'folder' in what else 'broken', 'ok']
    assert all(check.detail.isprintable() for check in checks)


def test_of_many_bad_ones_the_number_is_said(pair, monkeypatch):
    for number in range(LINES + 5):
        shutil.copytree(pair.root / 'good', pair.root / f'copy{number}')
    first, *rest = check_zoos([pair.root])
    assert first.detail == f'2 modules are whole, {LINES + 5} are not'
    assert len(rest) == LINES + 1 and '5 more are not whole' in rest[-1].detail
    monkeypatch.setattr(zoo_checks, 'SECONDS', -1)
    first, left = check_zoos([pair.root])
    assert first.detail == '0 modules are whole' and left.state == 'note'
    assert f'{LINES + 7} more were not looked at' in left.detail


def test_zoos_of_guides_and_demos_are_looked_at(pair, tmp_path, monkeypatch,
                                                capsys):
    monkeypatch.chdir(tmp_path)
    assert check_zoos() == []
    demo = tmp_path / zoo_checks.ZOOS[1]
    shutil.copytree(pair.root, demo)
    assert check_zoos()[0].name == zoo_checks.ZOOS[1]
    (demo / 'bad' / CARD).write_text('{}')
    # what else is examined is the matter of other tests
    for name in vars(doctor).copy():
        if name.startswith('check_'):
            monkeypatch.setattr(doctor, name, list)
    for given, code in (([], 1), (['--zoo', str(pair.root)], 0)):
        monkeypatch.setattr(sys, 'argv', ['doctor.py', *given])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / 'tools' / 'doctor.py'),
                           run_name='__main__')
        out = capsys.readouterr().out
        assert ended.value.code == code
        assert ('zoo remove work_dirs/demo/zoo bad' in out) == bool(code)


def test_the_demos_zoos_are_those():
    from vim_mm.apis.new_task.text import ZOO
    from vim_mm.demo.zoo import DEMO_ZOO
    assert {ZOO, str(DEMO_ZOO)} <= set(zoo_checks.ZOOS)
