# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A zoo that lies among much else, or holds much that is bad."""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any, Callable

import pytest
from _crowd import BAD, MISNAMED, crowd, spoil
from _hostile import judged

from vim_mm.utils.cli import run_cli
from vim_mm.utils.messages import LINES
from vim_mm.zoo import Zoo, ZooError

SCRIPT = Path(__file__).parents[2] / 'tools' / 'zoo.py'
MANY = 100_000


@pytest.fixture(scope='module')
def cli() -> Callable:
    spec = importlib.util.spec_from_file_location('zoo_cli', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*argv: Any) -> int:
        with pytest.raises(SystemExit) as caught:
            run_cli(lambda: module.main(list(map(str, argv))))
        return caught.value.code or 0

    return call


def test_of_files_nothing_more_is_asked(zoo, monkeypatch):
    """The time for what is no module is that of a listing."""
    for index in range(300):
        (zoo.root / f'picture{index}').touch()
    asked = []
    for name in ('stat', 'lstat', 'open', 'listdir'):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, *args, real=real, **kwargs: asked.append(
                str(path)) or real(path, *args, **kwargs))
    assert zoo.names() == ['m'] and zoo.misnamed() == {}
    assert len(zoo.cards({})) == 1 and zoo.verify() == []
    assert not [path for path in asked if 'picture' in path]


def test_folders_are_asked_a_few_times(zoo, monkeypatch):
    for index in range(300):
        (zoo.root / f'folder{index}').mkdir()
    asked = []
    real = os.lstat
    monkeypatch.setattr(os, 'lstat',
                        lambda path: asked.append(path) or real(path))
    assert zoo.names() == ['m']
    assert len(asked) < 7 * 301


@pytest.mark.parametrize('command', ['list', 'verify', 'add'])
def test_a_line_for_each_bad_one_but_not_for_all(zoo, tmp_path, cli, capsys,
                                                 command):
    number = spoil(zoo.root)
    assert number > LINES
    add = [tmp_path / 'other', zoo.root]
    with judged() as verdict:
        code = cli(command, *(add if command == 'add' else [zoo.root]))
    assert not verdict.error and not verdict.problem
    assert code == (command != 'list')
    out, err = capsys.readouterr()
    said = [line for line in out.splitlines() if 'card' in line and ': ' in
            line]
    assert len(said) <= LINES and f'… and {number - LINES} more' in out
    assert not set(out + err) & set('\x1b\x9b\x07') and len(out) < 60_000
    assert command == 'list' or f'{number} of {number + 1} modules' in err
    if command == 'add':
        assert Zoo(tmp_path / 'other').names() == ['m']


def test_each_bad_one_has_a_line(zoo):
    """And is told of by what can be printed, in all that is handed on."""
    number, bad = spoil(zoo.root), {}
    assert [card.name for card in zoo.cards(bad)] == ['m']
    assert len(bad) == number == len(BAD) + len(MISNAMED)
    problems = zoo.verify()
    assert len(problems) == number
    for said in (*bad, *bad.values(), *problems):
        assert said.isprintable() and len(said) < 1500
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        zoo.cards()
    assert len(caught) == LINES + 1
    assert f'{number - LINES} more' in str(caught[-1].message)


def test_bad_ones_alone(tmp_path):
    (tmp_path / 'bad').mkdir()
    spoil(tmp_path / 'bad')
    with pytest.raises(ZooError) as caught:
        Zoo(tmp_path / 'zoo').add(tmp_path / 'bad')
    assert len(str(caught.value)) < 1500 and str(caught.value).isprintable()


@pytest.mark.slow
def test_a_hundred_thousand_others(zoo, tmp_path, cli, capsys, make_card,
                                   make_tensors):
    crowd(zoo.root, MANY)
    other = tmp_path / 'other'
    for command, code in ((('list', zoo.root), 0), (('verify', zoo.root), 0),
                          (('show', zoo.root, 'm'), 0),
                          (('show', zoo.root, 'nothing'), 1),
                          (('add', other, zoo.root), 0),
                          (('push', zoo.root, 'm', tmp_path / 'm.tar'), 0),
                          (('pull', zoo.root, tmp_path / 'm.tar', '--name',
                            'n'), 0), (('remove', zoo.root, 'n', '--yes'), 0)):
        with judged() as verdict:
            assert cli(*command) == code, command
        assert not verdict.error and not verdict.problem, command
        out, err = capsys.readouterr()
        assert len(out + err) < 3000
    with judged() as verdict:
        assert zoo.names() == ['m']
        zoo.save(make_card('x'), make_tensors())
    assert not verdict.error and not verdict.problem
