# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Runs of several tasks and of TDMR stop as others do, and lose nothing.

With two processes they do in the tests of their loops.
"""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict

import _tdmr
import pytest
import torch
from mmengine.registry import OPTIMIZERS
from torch import Tensor

from _multitask import build
from _runs import Asks, learned, stopped, unlike
from _tiny import first_of

RARE = dict(checkpoint=dict(
    type='CheckpointHook', by_epoch=False, interval=100))


def same_when_stopped(build: Callable, asks: Callable[[Any], None],
                      folder: Path, saved: list, one: dict) -> None:
    """A run that a signal stops once learns what one does without."""
    first = build(folder)
    asks(first)
    stopped(first)
    assert [path.name for path in folder.glob('*.pth')] == saved
    again = build(folder, resume='auto')
    again.train()
    assert not unlike(one, learned(again))


def whole(run: Any) -> Dict[str, Tensor]:
    run.train()
    return learned(run)


# ------------------------------------------------------------- several tasks

tasks = partial(
    build,
    iters=4,
    default_hooks=RARE,
    train_cfg=dict(type='MultiTaskTrainLoop', max_iters=4, val_interval=2),
    custom_hooks=[dict(type='EMAHook')])


@pytest.fixture(scope='module')
def one(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Tensor]:
    return whole(tasks(tmp_path_factory.mktemp('one')))


@pytest.mark.parametrize(('point', 'at', 'saved'), first_of([
    ('before_train_iter', 2, 'iter_3.pth'),
    # four batches of the first task have been judged
    ('before_val_iter', 5, 'iter_2.pth'),
    # the last batch of the last task
    ('after_val_iter', 23, 'iter_4.pth'),
]))
def test_several_tasks(point: str, at: int, saved: str, tmp_path: Path,
                       one: Dict[str, Tensor]) -> None:
    same_when_stopped(
        tasks, lambda run: run.register_hook(Asks(point, at)), tmp_path,
        [saved], one)


# ---------------------------------------------------------------------- TDMR


@OPTIMIZERS.register_module()
class Asking(torch.optim.SGD):
    """Its third step brings a signal, once."""

    steps = 0

    def step(self, *args: Any, **kwargs: Any) -> Any:
        Asking.steps += 1
        if Asking.steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(*args, **kwargs)


def when_read(run: Any) -> None:
    """A signal comes while the foundation models read the images."""
    dataset = run.train_dataloader.dataset
    read, seen = type(dataset).__getitem__, []

    class Asked(type(dataset)):

        def __getitem__(self, index: int) -> dict:
            seen.append(index)
            if len(seen) == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return read(self, index)

    dataset.__class__ = Asked


@pytest.mark.parametrize('stored', [False, True])
@pytest.mark.parametrize(('asks', 'saved'), [
    (when_read, []), ('epochs', []),
    (lambda run: run.register_hook(Asks('before_train_iter', 1)),
     ['iter_2.pth'])
], ids=['reading', 'proxy', 'student'])
def test_a_proxy_space(asks: Any, saved: list, stored: bool,
                       tmp_path: Path) -> None:

    def build(folder: Path, **kwargs: Any) -> Any:
        store = str(tmp_path / f'store_{folder.name}') if stored else None
        # the run that is not stopped has had its third step
        Asking.steps = 9 * (folder.name == 'one' or 'resume' in kwargs)
        return _tdmr.runner(
            folder,
            iters=3,
            default_hooks=RARE,
            proxy=dict(epochs=4, store=store,
                       optimizer=dict(type='Asking', lr=.1)),
            **kwargs)

    def ask(run: Any) -> None:
        if asks == 'epochs':
            return
        Asking.steps = 9
        asks(run)

    one = whole(build(tmp_path / 'one'))
    same_when_stopped(build, ask, tmp_path / 'two', saved, one)
