# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One bad folder never blinds the zoo."""

import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from _hostile import (ESCAPE, IN_PLACE, JSON_FILES, TENSOR_FILES, exchange,
                      judged, odd_json, put)

from vim_mm.utils.cli import run_cli
from vim_mm.utils.reading import JSON_BYTES
from vim_mm.zoo import ModuleCard, Zoo, ZooError

CARD, MODULE, HEAD = 'card.json', 'module.safetensors', 'head.safetensors'
SCRIPT = Path(__file__).parents[2] / 'tools' / 'zoo.py'


@pytest.fixture
def pair(tmp_path, make_card, make_tensors):
    """A zoo with the modules 'bad', to be spoilt, and 'good'."""
    zoo = Zoo(tmp_path / 'zoo')
    for name in ('bad', 'good'):
        zoo.save(make_card(name), make_tensors(), dict(w=torch.ones(2)))
    return zoo


@pytest.fixture(scope='module')
def cli():
    spec = importlib.util.spec_from_file_location('zoo_cli', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*argv):
        with pytest.raises(SystemExit) as caught:
            run_cli(lambda: module.main(list(map(str, argv))))
        return caught.value.code or 0

    return call


def check_good(zoo, tmp_path, named=True, head=False):
    """Everything sees the good one, and says one thing of the bad one.

    Where its head is what is bad, its adapters can be loaded.
    """
    other, bad = Zoo(tmp_path / 'other'), {}
    assert zoo.names() == (['bad', 'good'] if named else ['good'])
    assert 'good' in zoo and zoo.load('good')[0].name == 'good'
    cards = zoo.cards(bad)
    assert cards[-1].name == 'good' and len(cards) + len(bad) == 1 + named
    problems = zoo.verify()
    assert bool(problems) == named
    assert not any('good' in problem for problem in problems)
    bad = {}
    assert other.add(zoo.root, problems=bad) == ['good']
    assert list(bad) == ['bad'] * named and other.verify() == []
    for said in (*problems, *bad.values()):
        assert len(said) < 1500 and said.isprintable()
    if named:
        with pytest.raises(ZooError):
            (zoo.load_head if head else zoo.load)('bad')
        with pytest.raises(ZooError):
            other.add(zoo.root / 'bad')


@pytest.mark.parametrize('file', [CARD, MODULE, HEAD])
@pytest.mark.parametrize('what', IN_PLACE)
def test_what_is_no_file_is_told_of(pair, tmp_path, file, what):
    put(pair.root / 'bad' / file, what)
    with judged() as verdict:
        check_good(pair, tmp_path, head=file == HEAD)
    assert not verdict.error and not verdict.problem


@pytest.mark.parametrize('what', IN_PLACE)
def test_what_is_no_folder_is_passed_over_or_told_of(pair, tmp_path, what):
    put(pair.root / 'bad', what)
    with judged() as verdict:
        check_good(pair, tmp_path, named=what == 'loop')
    assert not verdict.error and not verdict.problem
    assert all('remove the link' in problem for problem in pair.verify())
    if what in ('folder', 'full_folder'):
        pair.remove('bad')
    for name in ('bad', 'good'):
        if name in pair:
            pair.remove(name)
    assert pair.names() == []


@pytest.mark.parametrize('what', ['fifo', 'nowhere', 'device', 'terabyte'])
def test_nothing_is_put_in_the_place_of_a_file(pair, make_card, make_tensors,
                                               what):
    put(pair.root / 'bad', what)
    for overwrite in (False, True):
        with pytest.raises(ZooError, match='is no folder'):
            pair.save(make_card('bad'), make_tensors(), overwrite=overwrite)
    assert os.path.lexists(pair.root / 'bad')


@pytest.mark.parametrize('what', JSON_FILES)
def test_any_card_ends_in_one_line(pair, tmp_path, what):
    (pair.root / 'bad' / CARD).write_bytes(JSON_FILES[what])
    with judged() as verdict:
        check_good(pair, tmp_path)
    assert not verdict.error and not verdict.problem


@pytest.mark.parametrize('what', TENSOR_FILES)
@pytest.mark.parametrize('file, key', [(MODULE, 'sha256'),
                                       (HEAD, 'head_sha256')])
def test_any_tensor_file_ends_in_one_line(pair, tmp_path, what, file, key):
    path = pair.root / 'bad' / file
    exchange(pair.root / 'bad', file, TENSOR_FILES[what](path.read_bytes()),
             key)
    with judged() as verdict:
        problems = pair.verify('bad')
    assert not verdict.error and not verdict.problem
    allowed = ('scalar', 'empty_tensor', 'no_tensor', 'half', 'name_escape',
               'name_empty')
    if file == HEAD and what in allowed:
        assert not problems
    else:
        assert len(problems) == 1
        check_good(pair, tmp_path, head=file == HEAD)


def test_any_value_on_a_card_is_shown_or_refused(pair, cli, capsys):
    path, count = pair.root / 'bad' / CARD, 0
    for what, content in odd_json(json.loads(path.read_text())):
        path.write_text(json.dumps(content))
        with judged() as verdict:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                refused = pair.verify('bad')
                assert pair.verify('good') == []
                # tables take a while; what is refused is in none
                if not refused or not count % 9:
                    assert cli('list', pair.root) == 0, what
        assert not verdict.error and not verdict.problem, what
        out, err = capsys.readouterr()
        assert not set(out + err) & set('\x1b\x9b\x07'), what
        count += 1
    assert count > 300


def test_cli_says_one_line_of_each_bad_module(pair, tmp_path, cli, capsys):
    (pair.root / 'bad' / CARD).write_text('{"name": 3')
    other = tmp_path / 'other'
    for argv, code in ((('list', pair.root), 0), (('verify', pair.root), 1),
                       (('add', other, pair.root), 1)):
        assert cli(*argv) == code
        out = capsys.readouterr().out
        assert 'good' in out, argv
        assert sum(line.startswith('bad: ') for line in out.splitlines()) == 1
    assert Zoo(other).names() == ['good']
    assert cli('list', pair.root, '--json') == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row['name'] for row in rows] == ['bad', 'good']
    assert 'error' in rows[0] and 'error' not in rows[1]


def test_control_characters_reach_no_terminal(pair, cli, capsys, make_card,
                                              make_tensors):
    fields = dict(
        dataset=ESCAPE,
        licence=ESCAPE,
        training={ESCAPE: ESCAPE},
        metrics=[dict(name=ESCAPE, value=1, n=1)])
    pair.save(make_card('odd', **fields), make_tensors())
    for argv in (('list', ), ('list', '--json'), ('show', 'odd'),
                 ('show', 'odd', '--json')):
        assert cli(argv[0], pair.root, *argv[1:]) == 0
        out = capsys.readouterr().out
        assert out.replace('\n', '').isprintable(), argv
        if '--json' in argv and 'odd' in argv:
            assert ModuleCard.from_json(out) == pair.card('odd')


def test_a_card_that_is_too_long_is_not_read_and_not_written(
        pair, make_card, make_tensors):
    text = (pair.root / 'bad' / CARD).read_text()
    (pair.root / 'bad' / CARD).write_text(text + ' ' * JSON_BYTES)
    with pytest.raises(ZooError, match='are the most that is read'):
        pair.card('bad')
    before = pair.load('good')[0]
    with pytest.raises(ZooError, match='cannot be read again'):
        pair.save(
            make_card('good', dataset='x' * JSON_BYTES),
            make_tensors(),
            overwrite=True)
    assert pair.load('good')[0] == before


def test_a_tensor_file_beyond_its_card_is_not_read(pair, monkeypatch):
    monkeypatch.setattr('vim_mm.zoo.folder.EXTRA_BYTES', 0)
    with (pair.root / 'bad' / MODULE).open('ab') as file:
        file.write(b'\0' * 8 * pair.card('bad').num_params)
    with pytest.raises(ZooError, match='are the most that is read'):
        pair.load('bad')


# ----------------------------------------------------------------------- names


@pytest.mark.parametrize('name', [
    'bad (copy)', 'bad.bak', 'a\nb', 'm\u202egpj', '\U0001f986', 'a' * 101,
    'a' * 255, '-bad', b'\xff\xfe', '[red]', ESCAPE.replace('/', '')
], ids=ascii)
def test_a_module_that_nothing_can_name_is_told_of(pair, tmp_path, cli, capsys,
                                                   name):
    os.rename(os.fsencode(pair.root / 'bad'),
              os.path.join(os.fsencode(pair.root), os.fsencode(name)))
    bad = {}
    assert pair.names() == ['good'] and 'good' in pair
    assert [card.name for card in pair.cards(bad)] == ['good']
    said, = bad.values()
    assert 'cannot name a module' in said and said.endswith('its folder.')
    assert pair.verify() == [said] and pair.verify('good') == []
    for argv, code in ((('list', pair.root), 0), (('verify', pair.root), 1),
                       (('add', tmp_path / 'other', pair.root), 1)):
        assert cli(*argv) == code
        out = capsys.readouterr().out
        assert 'good' in out and 'cannot name a module' in out
        assert out.replace('\n', '').isprintable()
    assert cli('list', pair.root, '--json') == 0
    rows = json.loads(capsys.readouterr().out)
    assert sorted('error' in row for row in rows) == [False, True]
    shutil.rmtree(pair.root / 'good')
    assert cli('verify', pair.root) == cli('add', tmp_path / 'other',
                                           pair.root) == 1


def test_hidden_folders_are_nobodys(pair):
    for name in ('.git', '.ipynb_checkpoints', '..', '.x (copy)'):
        if name != '..':
            shutil.copytree(pair.root / 'bad', pair.root / name)
    assert pair.verify() == [] and pair.names() == ['bad', 'good']


@pytest.mark.parametrize('name', ['aaa', 'GOOD', 'zzz'])
def test_a_folder_with_the_card_of_another(pair, tmp_path, make_card,
                                           make_tensors, name):
    """Whatever it holds, the module of that name is the one in its folder."""
    shutil.rmtree(pair.root / 'bad')
    before = pair.load('good')
    shutil.copytree(pair.root / 'good', pair.root / name)
    older = Zoo(tmp_path / 'older')
    older.save(make_card('good', version='old'), make_tensors(5))
    for source in (pair.root, older.root):
        shutil.rmtree(pair.root / name)
        shutil.copytree(source / 'good', pair.root / name)
        other, bad = Zoo(tmp_path / f'to_{source.name}'), {}
        assert other.add(pair.root, problems=bad) == ['good']
        assert list(bad) == [name] and "the card of 'good'" in bad[name]
        assert other.card('good') == before[0] and len(pair.verify()) == 1
    # by its own path it is what its card says
    assert Zoo(tmp_path / 'single').add(pair.root / name) == ['good']


def test_a_card_that_says_something_twice_is_refused(pair):
    path = pair.root / 'bad' / CARD
    for key in ('licence', 'sha256', 'name'):
        text = path.read_text()
        path.write_text(text.replace('{', f'{{"{key}": "good",', 1))
        problem, = pair.verify('bad')
        assert 'says something twice' in problem
        path.write_text(text)
    assert pair.verify() == []


def test_what_an_overwrite_left_may_be_bad(pair):
    """It is what is read of that name, and no reader tries for ever."""
    (pair.root / 'bad' / CARD).write_text('{')
    (pair.root / 'bad').rename(pair.root / '.bad.old')
    with judged() as verdict:
        assert pair.names() == ['bad', 'good']
        problem, = pair.verify()
    assert 'not valid JSON' in problem
    assert not verdict.error and not verdict.problem
    (pair.root / 'bad').write_text('a file in its place')
    assert pair.verify() == [problem]


def test_a_long_card_can_be_copied(pair, tmp_path):
    path = pair.root / 'bad' / CARD
    metrics = [dict(name='m', value=1, n=1)] * 20_000
    card = dict(json.loads(path.read_text()), metrics=metrics)
    path.write_text(json.dumps(card))
    assert pair.verify() == []
    other = Zoo(tmp_path / 'other')
    assert other.add(pair.root) == ['bad', 'good']
    assert other.card('bad') == pair.card('bad')


def test_large_files_are_looked_at_before_they_are_read(pair, monkeypatch):
    path = pair.root / 'bad' / CARD
    card = dict(json.loads(path.read_text()), num_params=10**299)
    path.write_text(json.dumps(card))
    with (pair.root / 'bad' / MODULE).open('wb') as file:
        file.truncate(1 << 31)
    with judged() as verdict:
        problem, = pair.verify('bad')
    assert 'truncated or no safetensors file' in problem
    assert not verdict.error and not verdict.problem


# ------------------------------------------------------------------ colleagues


def as_nobody(action):
    """Run something in a child that is not root; its exit code."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            code = action() or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def shared():
    """A folder that everybody may reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


posix = pytest.mark.skipif(os.name != 'posix', reason='needs permissions')


@posix
@pytest.mark.parametrize('path', ['bad', 'bad/card.json',
                                  'bad/module.safetensors'])
def test_what_may_not_be_read_is_told_of(shared, make_card, make_tensors,
                                         path):
    zoo = Zoo(shared / 'zoo')
    for name in ('bad', 'good'):
        zoo.save(make_card(name), make_tensors())
    (zoo.root / path).chmod(0)

    def look():
        bad = {}
        assert zoo.names() == ['bad', 'good']
        assert 'good' in [card.name for card in zoo.cards(bad)]
        assert len(zoo.verify()) == 1 and zoo.load('good')
        assert 'Permission denied' in zoo.verify('bad')[0]

    assert as_nobody(look) == 0


@posix
@pytest.mark.parametrize('mask', [0o077, 0o027, 0o022])
def test_a_module_is_as_open_as_its_zoo(shared, make_card, make_tensors,
                                        mask):
    zoo = Zoo(shared / 'zoo')
    zoo.root.mkdir()
    zoo.root.chmod(0o777)
    before = os.umask(mask)
    try:
        zoo.save(make_card('m'), make_tensors(), dict(w=torch.ones(1)))
    finally:
        os.umask(before)

    def use():
        assert zoo.verify() == [] and zoo.load('m')
        zoo.save(make_card('mine'), make_tensors())
        zoo.save(make_card('m'), make_tensors(1), overwrite=True)
        zoo.remove('m')
        assert zoo.names() == ['mine'] and zoo.verify() == []

    assert as_nobody(use) == 0
    zoo.remove('mine')  # what a colleague may change so may the owner
    assert sorted(os.listdir(zoo.root)) == ['.lock']


@posix
def test_a_private_zoo_stays_private(tmp_path, make_card, make_tensors):
    zoo = Zoo(tmp_path / 'zoo')
    zoo.root.mkdir(mode=0o700)
    before = os.umask(0o077)
    try:
        zoo.save(make_card('m'), make_tensors())
    finally:
        os.umask(before)
    for path in (zoo.root / 'm', zoo.root / 'm' / CARD, zoo.root / '.lock'):
        assert not path.stat().st_mode & 0o077, path


@posix
def test_a_zoo_that_may_not_be_changed_says_so(shared, make_card,
                                               make_tensors):
    zoo = Zoo(shared / 'zoo')
    zoo.save(make_card('m'), make_tensors())
    zoo.root.chmod(0o777)
    (zoo.root / '.lock').chmod(0o600)

    def change():
        with pytest.raises(ZooError, match='lock of the zoo'):
            zoo.save(make_card('n'), make_tensors())
        assert zoo.names() == ['m']

    assert as_nobody(change) == 0
