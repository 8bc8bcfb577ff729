# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A resumed run equals one that was never stopped, whatever it draws."""

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from _runs import Noisy, learned, run, unlike, validation
from _tiny import save_trunk


class Ends(Exception):
    """As if the process had died."""


class EndsAfter(Hook):
    priority = 'LOWEST'

    def __init__(self, step: int) -> None:
        self.step = step

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        if runner.iter + 1 == self.step:
            raise Ends


def whole(folder: Path, **kwargs: Any) -> Dict[str, Tensor]:
    runner = run(folder, **kwargs)
    runner.train()
    return learned(runner)


def in_two(folder: Path, step: int, **kwargs: Any) -> Dict[str, Tensor]:
    hooks = kwargs.pop('custom_hooks', [])
    with pytest.raises(Ends):
        run(folder, custom_hooks=[*hooks, EndsAfter(step)], **kwargs).train()
    runner = run(folder, custom_hooks=hooks, resume=True, **kwargs)
    runner.train()
    return learned(runner)


ENDLESS, FINITE = 'InfiniteSampler', 'DefaultSampler'
BY_ITER = dict(checkpoint=dict(by_epoch=False))
EMA = dict(custom_hooks=[dict(type='EMAHook')])
RATES = dict(param_scheduler=[
    dict(type='LinearLR', by_epoch=False, start_factor=0.1, end=4),
    dict(type='CosineAnnealingLR', by_epoch=False, T_max=6)
])


@pytest.mark.parametrize(('step', 'settings'), [
    (3, dict()),
    (3, dict(data=dict(sampler=FINITE))),
    # the fourth step begins the second pass through the data
    (5, dict(data=dict(sampler=FINITE), **validation(), **EMA)),
    (4, dict(**validation(), **RATES)),
    (2, dict(by_epoch=True, steps=2, **BY_ITER, **EMA)),
    (3, dict(by_epoch=True, steps=2, **BY_ITER, **validation())),
    (4, dict(by_epoch=True, steps=2, **validation(), **RATES)),
    (3, dict(data=dict(workers=2))),
    # each pass starts its workers anew
    pytest.param(
        3, dict(data=dict(workers=2, persistent=False, sampler=FINITE)),
        marks=pytest.mark.slow),
    pytest.param(
        4, dict(by_epoch=True, steps=2, data=dict(workers=2), **BY_ITER),
        marks=pytest.mark.slow),
    (3, dict(randomness=dict(seed=0, diff_rank_seed=True))),
])
def test_resumed_equals_uninterrupted(tmp_path: Path, step: int,
                                      settings: dict,
                                      monkeypatch: Any) -> None:
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    one = whole(tmp_path / 'one', **settings)
    two = in_two(tmp_path / 'two', step, **settings)
    assert not unlike(one, two)
    assert any(key.startswith('optimizer') for key in one)


def test_a_run_without_a_seed(tmp_path: Path) -> None:
    """Its seed is drawn, and the order of its data: both are in the file."""
    # random weights of a trunk come from the seed, and no file holds them
    trunk = save_trunk(tmp_path / 'trunk.pth')
    settings = dict(randomness=dict(seed=None), trunk=trunk)
    first = run(tmp_path / 'one', steps=3, **settings)
    first.train()
    torch.manual_seed(5)
    seed = dict(randomness=dict(seed=first.seed))
    one = whole(tmp_path / 'whole', **dict(settings, **seed))
    second = run(tmp_path / 'one', resume=True, **settings)
    assert second.seed != first.seed
    second.train()
    assert not unlike(one, learned(second))


@pytest.mark.parametrize(
    'sampler', [pytest.param(ENDLESS, marks=pytest.mark.slow), FINITE])
def test_the_number_of_workers_changes_nothing(tmp_path: Path, sampler: str,
                                               monkeypatch: Any) -> None:
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    results = [
        whole(tmp_path / str(workers),
              steps=4,
              data=dict(workers=workers, sampler=sampler))
        for workers in (0, 1, 3)
    ]
    assert not unlike(results[0], results[1])
    assert not unlike(results[0], results[2])


def test_the_same_run_twice(tmp_path: Path) -> None:
    settings = dict(steps=3, **validation(), **EMA)
    one = whole(tmp_path / 'one', **settings)
    torch.rand(3)
    assert not unlike(one, whole(tmp_path / 'two', **settings))
    other = whole(tmp_path / 'other', randomness=dict(seed=1), **settings)
    assert unlike(one, other)


def test_steps_and_images_draw_different_numbers(tmp_path: Path) -> None:
    """A seed for each step is no reason to draw the same in each."""
    seen = []

    class Seeing(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch) -> None:
            seen.extend(data_batch['inputs'])
            seen.append(torch.rand(3, 56, 56))

    run(tmp_path, steps=3, custom_hooks=[Seeing()]).train()
    pairs = [(a, b) for i, a in enumerate(seen) for b in seen[:i]]
    assert len(pairs) > 90 and not any(torch.equal(a, b) for a, b in pairs)


def test_a_loader_that_draws_its_order(tmp_path: Path) -> None:
    """torch's samplers take their seed from the numbers of the process."""

    def settings() -> dict:
        dataset = Noisy('cls', 12)
        return dict(train_dataloader=DataLoader(
            dataset, 4, sampler=RandomSampler(dataset),
            collate_fn=lambda items: {
                key: [item[key] for item in items]
                for key in items[0]
            }))

    results = []
    for name in ('one', 'two'):
        runner = run(tmp_path / name, steps=2, by_epoch=True, **BY_ITER,
                     **settings())
        if name == 'two':
            runner.register_hook(EndsAfter(4))
            with pytest.raises(Ends):
                runner.train()
            runner = run(tmp_path / name, steps=2, by_epoch=True, **BY_ITER,
                         resume=True, **settings())
        runner.train()
        results.append(learned(runner))
    assert not unlike(*results)


def test_an_epoch_of_another_length(tmp_path: Path) -> None:
    """With another batch size there are no such batches to leave out."""
    with pytest.raises(Ends):
        run(tmp_path, steps=2, by_epoch=True, custom_hooks=[EndsAfter(2)],
            **BY_ITER).train()
    runner = run(tmp_path, steps=2, by_epoch=True, resume=True,
                 data=dict(batch_size=12), **BY_ITER)
    runner.train()
    assert runner.epoch == 2
