# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Readers and writers of one zoo at the same time, and killed ones."""

import os
import shutil
import time

import pytest
import torch

from vim_mm.utils.checks import OK
from vim_mm.utils.reading import OpenFolder
from vim_mm.zoo import Zoo, ZooError, files, folder
from vim_mm.zoo.zoo_checks import check_zoos

pytestmark = pytest.mark.skipif(
    not hasattr(os, 'fork'), reason='needs os.fork')


def forked(action):
    """Run something in a child; its process id."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(9)
    return child


def joined(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_module_that_comes_back_was_never_wrong(tmp_path, make_card,
                                                  make_tensors, monkeypatch):
    """A reader finds none between two versions, and one when it looks again.
    """
    zoo = Zoo(tmp_path / 'zoo')
    zoo.save(make_card(), make_tensors(0))

    def gone(*args):
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(files, 'read_version', gone)
        bad = {}
        assert zoo.verify() == [] and zoo.cards(bad) == [] and not bad
        assert [check.state for check in check_zoos([zoo.root])] == [OK]
    assert [card.name for card in zoo.cards()] == ['m']


def test_readers_see_one_version_while_it_is_exchanged(tmp_path, make_card,
                                                       make_tensors):
    zoo = Zoo(tmp_path / 'zoo')
    versions = [make_tensors(seed) for seed in range(2)]
    zoo.save(make_card(version='0'), versions[0])
    stop = tmp_path / 'stop'

    def write():
        count = 0
        while not stop.exists():
            count += 1
            zoo.save(
                make_card(version=str(count % 2)),
                versions[count % 2],
                overwrite=True)

    writer = forked(write)
    try:
        seen, end = set(), time.monotonic() + 3
        while time.monotonic() < end:
            assert zoo.names() == ['m'] and 'm' in zoo
            assert zoo.verify() == [] and zoo.verify('m') == []
            card, tensors = zoo.load('m')
            expected = versions[int(card.version)]
            assert all(torch.equal(tensors[k], expected[k]) for k in tensors)
            assert [c.name for c in zoo.cards()] == ['m']
            seen.add(card.version)
    finally:
        stop.touch()
        assert joined(writer) == 0
    assert seen == {'0', '1'}


def test_a_module_that_comes_and_goes_is_there_or_not(tmp_path, make_card,
                                                      make_tensors):
    zoo = Zoo(tmp_path / 'zoo')
    zoo.save(make_card('stays'), make_tensors())
    stop = tmp_path / 'stop'

    def write():
        while not stop.exists():
            zoo.save(make_card(), make_tensors())
            zoo.remove('m')

    writer = forked(write)
    try:
        found, end = set(), time.monotonic() + 3
        while time.monotonic() < end:
            assert zoo.verify() == []
            assert zoo.cards()[-1].name == 'stays'
            try:
                found.add(zoo.load('m')[0].name)
            except ZooError as error:
                assert "has no module 'm'" in str(error)
                found.add(None)
    finally:
        stop.touch()
        assert joined(writer) == 0
    assert found == {'m', None}


@pytest.mark.parametrize('after', ['card', 'module'])
@pytest.mark.parametrize('change', ['overwrite', 'remove'])
def test_a_change_amid_reading(zoo, make_card, make_tensors, monkeypatch,
                               after, change):
    read, done = OpenFolder.read, []

    def reading(self, name, *args):
        data = read(self, name, *args)
        if name.startswith(after) and not done:
            done.append(name)
            if change == 'remove':
                zoo.remove('m')
            else:
                zoo.save(
                    make_card(version='2'),
                    make_tensors(3),
                    dict(w=torch.ones(1)),
                    overwrite=True)
        return data

    zoo.save(
        make_card(), make_tensors(), dict(w=torch.zeros(1)), overwrite=True)
    monkeypatch.setattr(OpenFolder, 'read', reading)
    if change == 'overwrite':
        assert zoo.verify() == []
        assert done and zoo.load('m')[0].version == '2'
        return
    assert zoo.verify() == []  # it is gone, and nothing is wrong with that
    assert done and 'm' not in zoo
    with pytest.raises(ZooError, match="has no module 'm'"):
        zoo.load('m')


def test_a_version_that_is_away_for_a_moment_is_found(zoo, monkeypatch):
    opened, moves = files.OpenFolder, []

    def between(path):
        # what an overwrite does just after the look at NAME
        if path == zoo.root / 'm' and len(moves) < 3:
            moves.append(path)
            raise FileNotFoundError
        return opened(path)

    monkeypatch.setattr(files, 'OpenFolder', between)
    assert zoo.load('m')[0].name == 'm' and len(moves) == 3


@pytest.mark.parametrize('left', ['.x.new', '.x.old', '.m.old', '.x.file'])
def test_the_next_change_clears_away_what_was_left(zoo, make_card,
                                                   make_tensors, left):
    if left == '.x.file':
        (zoo.root / '.x.new').write_text('half')
    else:
        shutil.copytree(zoo.root / 'm', zoo.root / left)
    zoo.save(make_card('n'), make_tensors())
    hidden = [n for n in os.listdir(zoo.root) if n.startswith('.')]
    assert hidden == ['.lock']
    # what had been moved away for a newer version that never came is back
    assert zoo.names() == ['m', 'n'] + ['x'] * (left == '.x.old')


def test_what_is_not_the_zoos_stays(zoo, make_card, make_tensors):
    for name in ('.git', '.a b.new', '.keep', '.new'):
        (zoo.root / name).mkdir()
    zoo.save(make_card('n'), make_tensors())
    assert {'.git', '.a b.new', '.keep', '.new'} <= set(os.listdir(zoo.root))


def test_adding_a_zoo_again_goes_on(tmp_path, make_card, make_tensors):
    source, target = Zoo(tmp_path / 'source'), Zoo(tmp_path / 'target')
    names = [f'm{index}' for index in range(5)]
    for seed, name in enumerate(names):
        source.save(make_card(name), make_tensors(seed))
    child = forked(lambda: dying(lambda: target.add(source.root), 12))
    assert joined(child) == 77
    assert 0 < len(target.names()) < 5
    assert target.add(source.root) == names and target.verify() == []
    stamps = {n: os.stat(target.root / n).st_mtime_ns for n in names}
    assert target.add(source.root) == names
    assert stamps == {
        n: os.stat(target.root / n).st_mtime_ns
        for n in names
    }
    # another module of the name is no part of what was added
    target.save(make_card('m3'), make_tensors(9), overwrite=True)
    problems = {}
    assert target.add(source.root, problems=problems) == [
        'm0', 'm1', 'm2', 'm4'
    ]
    assert list(problems) == ['m3'] and 'already has' in problems['m3']
    with pytest.warns(UserWarning, match='m3: .*already has'):
        target.add(source.root)


def dying(action, step):
    """Die before the n-th time that something is flushed."""
    count, flush = iter(range(10**6)), os.fsync

    def mortal(*args):
        if next(count) == step:
            os._exit(77)
        return flush(*args)

    os.fsync = mortal
    action()


def test_reading_takes_one_look_at_each_file(zoo, monkeypatch):
    names, read = [], OpenFolder.read
    monkeypatch.setattr(
        OpenFolder, 'read', lambda self, name, *args:
        (names.append(name), read(self, name, *args))[1])
    zoo.load('m')
    assert names == [folder.CARD, folder.MODULE]
