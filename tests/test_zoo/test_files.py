# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os

import filelock
import pytest
import torch

from vim_mm.zoo import Zoo, ZooError, files, locking

pytestmark = pytest.mark.skipif(
    not hasattr(os, 'fork'), reason='needs os.fork to die at a given step')
DEATH = 77


def die_at(step, action):
    """Run ``action`` in a child that dies before its n-th file operation.

    Returns:
        Whether it died, i.e. had as many operations.
    """
    child = os.fork()
    if child == 0:
        count = iter(range(10**6))

        def mortal(function):

            def call(*args, **kwargs):
                if next(count) == step:
                    os._exit(DEATH)
                return function(*args, **kwargs)

            return call

        try:
            for name in ('replace', 'fsync', 'unlink', 'rmdir', 'mkdir'):
                setattr(os, name, mortal(getattr(os, name)))
            action()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, DEATH)
    return status == DEATH


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def hidden(zoo):
    return [p.name for p in zoo.root.iterdir() if p.name.startswith('.m.')]


def test_overwrite_that_dies_leaves_old_or_new(tmp_path, make_card,
                                               make_tensors):
    old, new, third = (make_tensors(seed) for seed in range(3))
    head = dict(weight=torch.ones(3))
    card, outcomes = make_card(), []
    for step in range(100):
        zoo = Zoo(tmp_path / str(step))
        zoo.save(card, old, head)
        died = die_at(step,
                      lambda: zoo.save(card, new, head, overwrite=True))
        assert zoo.names() == ['m'] and zoo.verify() == []
        found = zoo.load('m')[1]
        assert same(found, old) or same(found, new)
        outcomes.append(same(found, new))
        zoo.save(card, third, overwrite=True)
        assert same(zoo.load('m')[1], third) and hidden(zoo) == []
        if not died:
            break
    # old up to the swap and new from then on, both well covered
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) > 4 and outcomes.count(True) > 2


def test_second_death_after_a_first_one(tmp_path, make_card, make_tensors):
    old, new = (make_tensors(seed) for seed in range(2))
    card = make_card()
    for step in range(100):
        zoo = Zoo(tmp_path / str(step))
        zoo.save(card, old)
        # what a death between the two renames leaves
        (zoo.root / 'm').rename(zoo.root / '.m.old')
        died = die_at(step, lambda: zoo.save(card, new, overwrite=True))
        assert zoo.names() == ['m'] and zoo.verify() == []
        found = zoo.load('m')[1]
        assert same(found, old) or same(found, new)
        if not died:
            break
    assert step > 6 and same(found, new)


def test_first_save_that_dies_leaves_nothing_or_all(tmp_path, make_card,
                                                    make_tensors):
    tensors, card = make_tensors(), make_card()
    for step in range(100):
        zoo = Zoo(tmp_path / str(step))
        zoo.root.mkdir()
        died = die_at(step, lambda: zoo.save(card, tensors))
        assert zoo.verify() == []
        assert zoo.names() == (['m'] if 'm' in zoo else [])
        zoo.save(card, tensors, overwrite=True)
        assert hidden(zoo) == []
        if not died:
            break
    assert step > 4


def test_remove_that_dies_leaves_all_or_nothing(tmp_path, make_card,
                                                make_tensors):
    tensors, card, left = make_tensors(), make_card(), []
    for step in range(100):
        zoo = Zoo(tmp_path / str(step))
        zoo.save(card, tensors)
        died = die_at(step, lambda: zoo.remove('m'))
        assert zoo.verify() == []
        left.append(len(zoo.names()))
        zoo.save(card, tensors, overwrite=True)
        assert hidden(zoo) == []
        if not died:
            break
    assert set(left) == {0, 1} and left[-1] == 0


def test_failed_write_leaves_the_old_one(zoo, make_card, make_tensors,
                                         monkeypatch):
    def full_disk(*_):
        raise OSError(28, 'No space left on device')

    before = zoo.load('m')[1]
    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(ZooError, match='No space left'):
        zoo.save(make_card(), make_tensors(9), overwrite=True)
    assert same(zoo.load('m')[1], before)


def test_one_writer_at_a_time(zoo, make_card, make_tensors, monkeypatch):
    monkeypatch.setattr(locking, 'LOCK_SECONDS', 0.05)
    with filelock.FileLock(str(zoo.root / '.lock')):
        assert zoo.load('m')[0].name == 'm'
        for change in (lambda: zoo.save(make_card('n'), make_tensors()),
                       lambda: zoo.remove('m')):
            with pytest.raises(ZooError, match='Another process'):
                change()
    assert zoo.names() == ['m']


def test_pack_is_deterministic_and_unshares(make_tensors):
    tensors = make_tensors()
    assert files.pack(tensors) == files.pack(dict(reversed(tensors.items())))
    base = torch.arange(6.).view(2, 3)
    views = dict(a=base, b=base.t(), c=base[0])
    again = files.unpack(files.pack(views), 'x')
    assert same(again, views)


def test_a_zoo_that_is_a_file_is_refused(tmp_path, make_card, make_tensors):
    path = tmp_path / 'zoo.py'
    path.write_text('')
    with pytest.raises(ZooError, match='no folder that this user may write'):
        Zoo(path).save(make_card('a'), make_tensors())
