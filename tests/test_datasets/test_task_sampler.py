# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which task and samples a step sees depends on seed and step alone."""

from collections import Counter
from typing import List

import pytest

from vim_mm.datasets import TaskBatchSampler, task_sampler

SIZES = dict(cls=40, det=13, seg=5)
WEIGHTS = dict(cls=15, det=10, seg=5)
BATCHES = dict(cls=4, det=2, seg=1)


def sampler(monkeypatch: pytest.MonkeyPatch,
            rank: int = 0,
            world: int = 1,
            steps: int = 3000,
            seed: int = 3,
            share: int = 1,
            **kwargs) -> TaskBatchSampler:
    monkeypatch.setattr(task_sampler, 'get_dist_info', lambda: (rank, world))
    options = dict(
        sizes=SIZES,
        batch_sizes={
            t: share * size
            for t, size in BATCHES.items()
        },
        weights=WEIGHTS,
        num_steps=steps,
        shuffle=dict.fromkeys(SIZES, True))
    made = TaskBatchSampler(**{**options, **kwargs})
    made.seek(seed, 0)
    return made


def test_tasks_are_drawn_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 30000
    one = sampler(monkeypatch, steps=steps)
    counts = Counter(map(one.task_at, range(steps)))
    for task, weight in WEIGHTS.items():
        assert abs(counts[task] / steps - weight / 30) < 0.01
    none = sampler(monkeypatch, weights=dict(WEIGHTS, det=0))
    assert 'det' not in map(none.task_at, range(3000))


@pytest.mark.parametrize('share', [1, 3])
def test_processes_share_one_batch(monkeypatch: pytest.MonkeyPatch,
                                   share: int) -> None:
    """They run one task on samples of their own, those of one process."""
    parts = [sampler(monkeypatch, rank, 2, share=share) for rank in (0, 1)]
    whole = sampler(monkeypatch, share=2 * share)
    for step in range(500):
        batches = [one.batch_at(step) for one in parts]
        assert sum(batches, []) == whole.batch_at(step)
        assert len({place.task for each in batches for place in each}) == 1
        indices = [place.index for each in batches for place in each]
        if len(indices) <= SIZES[batches[0][0].task]:
            assert len(set(indices)) == len(indices)
        keys = [place.key for each in batches for place in each]
        assert len(set(keys)) == len(keys)


def epochs(one: TaskBatchSampler, task: str, num: int) -> List[List[int]]:
    size = BATCHES[task]
    batches = [[place.index for place in one.batch_at(step)]
               for step in range(one.num_steps) if one.task_at(step) == task]
    each = -(-SIZES[task] // size)
    return [sum(batches[each * e:each * (e + 1)], []) for e in range(num)]


@pytest.mark.parametrize('task', list(SIZES))
def test_every_epoch_has_all_samples_in_a_new_order(
        monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    one = sampler(monkeypatch)
    first, second = epochs(one, task, 2)
    for epoch in (first, second):
        assert set(epoch) == set(range(SIZES[task]))
        assert len(epoch) - SIZES[task] < BATCHES[task]
    assert first != second
    plain = sampler(monkeypatch, shuffle=dict.fromkeys(SIZES, False))
    assert epochs(plain, task, 1)[0][:SIZES[task]] == [*range(SIZES[task])]


@pytest.mark.parametrize('step', [0, 1, 777, 2999, 3000])
def test_seeking_equals_iterating(monkeypatch: pytest.MonkeyPatch,
                                  step: int) -> None:
    whole = list(sampler(monkeypatch))
    later = sampler(monkeypatch)
    later.seek(3, step)
    assert list(later) == whole[step:]
    longer = sampler(monkeypatch, steps=5000)
    assert [longer.batch_at(s) for s in range(3000)] == whole


def test_seeds_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (list(sampler(monkeypatch, seed=s)) for s in (3, 4))
    assert first != second
    assert [b[0].task for b in first] != [b[0].task for b in second]
