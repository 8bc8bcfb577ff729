# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How much of a task fits into some minutes."""

import math
import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from vim_mm.models import build_model

#: Images an iteration, of a loader that says nothing else.
BATCH = 8
#: Iterations that are timed, after one to warm up.
TIMED = 2
#: Below, nothing is learned; beyond, few images say nothing new.
FEWEST, EPOCHS, MOST = 20, 100, 1000


@dataclass
class Pace:
    """How many images a second are gone through.

    Attributes:
        train (float): In training, forward and backward.
        judge (float): Forward alone, as in validation.
        source (str): Where the figures are from.
    """
    train: float
    judge: float
    source: str


@dataclass
class Plan:
    """How long what is done.

    Attributes:
        num_train (int): Images to learn from.
        batch_size (int): Images an iteration.
        max_iters (int): Iterations.
        val_interval (int): Iterations from one validation to the next.
        warm_batches (int): Batches whose features are cached for the head.
        minutes (float): What all of it is expected to take.
    """
    num_train: int
    batch_size: int
    max_iters: int
    val_interval: int
    warm_batches: int
    minutes: float = math.nan


def given_pace(images_a_second: float) -> Pace:
    """A pace in training that somebody knows of another machine."""
    return Pace(images_a_second, 2 * images_a_second, 'as given')


def measure(cfg: Config) -> Pace:
    """Time some iterations of a task on this machine.

    Args:
        cfg (Config): Its config; weights of the trunk are not needed.
    """
    cfg = deepcopy(cfg)
    trunk = cfg.model.backbone.trunk
    trunk.pop('init_cfg', None)
    for part in ('train_dataloader', 'val_dataloader'):
        cfg[part].update(num_workers=0, persistent_workers=False)
    device = get_device()
    model = build_model(cfg).to(device)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        train, val = (
            iter(Runner.build_dataloader(cfg[part], seed=0))
            for part in ('train_dataloader', 'val_dataloader'))
        model.train()
        rate = _rate(train, lambda data: model.train_step(data, optimizer),
                     device)
        model.eval()
        with torch.no_grad():
            judged = _rate(val, model.test_step, device)
    return Pace(rate, judged, f'measured here, on {device}')


def _rate(batches, step, device: str) -> float:
    """Images a second, of a few batches."""
    seen, start = 0, 0.
    for index in range(TIMED + 1):
        begun = time.perf_counter()
        data = next(batches, None)
        if data is None:
            break
        step(data)
        if 'cuda' in device:
            torch.cuda.synchronize()
        # the first one warms up, unless it is the only one
        if index == 1:
            seen, start = 0, begun
        elif index == 0:
            start = begun
        seen += len(data['inputs'])
        end = time.perf_counter()
    return seen / (end - start)


def make_plan(minutes: float, pace: Optional[Pace], num_train: int,
              num_val: int) -> Plan:
    """Share some minutes between warming, learning and judging.

    Args:
        minutes (float): How long all may take.
        pace (Pace, optional): None for a plan that is measured by.
        num_train (int): Images to learn from.
        num_val (int): Images to judge by.
    """
    batch = min(BATCH, num_train)
    if pace is None:
        return Plan(num_train, batch, FEWEST, FEWEST, 1)
    budget = 60 * minutes
    judging = num_val / pace.judge
    # after warming the head, and once or three times while learning
    times = 3 if 4 * judging < .2 * budget else 1
    warm = min(
        math.ceil(num_train / batch),
        max(1, int(.15 * budget * pace.judge / batch)))
    # the head's own training costs about as much as its features
    other = (times + 1) * judging + 2 * warm * batch / pace.judge
    left = max(budget - other, .25 * budget)
    most = max(MOST, EPOCHS * math.ceil(num_train / batch))
    iters = min(max(int(left * pace.train / batch), FEWEST), most)
    interval = math.ceil(iters / times)
    seconds = other + iters * batch / pace.train
    return Plan(num_train, batch, iters, interval, warm, seconds / 60)


def in_words(minutes: float) -> str:
    """A time for people."""
    if minutes >= 90:
        return f'{minutes / 60:.1f} hours'
    return f'{minutes:.0f} minutes' if minutes >= 2 else \
        f'{60 * minutes:.0f} seconds'
