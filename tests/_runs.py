# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Runs that draw random numbers wherever one can, to stop and to resume."""

import random
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import torch
from mmengine.runner import Runner
from torch import Tensor

from _tiny import Pictures, build_runner, model_cfg, vit


class Noisy(Pictures):
    """Each image is drawn anew by all three generators."""

    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)
        noise = random.random() + np.random.rand() + torch.rand(
            sample['inputs'].shape)
        sample['inputs'] = (sample['inputs'] / 2 + 30 * noise).byte()
        return sample


def loader(dataset: Any, batch_size: int = 4, workers: int = 0,
           sampler: str = 'InfiniteSampler', shuffle: bool = True,
           **kwargs: Any) -> dict:
    return dict(
        dataset=dataset,
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=bool(workers) and kwargs.pop('persistent', True),
        sampler=dict(type=sampler, shuffle=shuffle),
        collate_fn=dict(type='pseudo_collate'),
        **kwargs)


def validation(num: int = 8) -> dict:
    return dict(
        val_dataloader=loader(
            Pictures('cls', num), sampler='DefaultSampler', shuffle=False),
        val_evaluator=dict(type='Accuracy'),
        val_cfg=dict())


def run(work_dir: Path,
        steps: int = 6,
        by_epoch: bool = False,
        checkpoint: Optional[dict] = None,
        data: Optional[dict] = None,
        trunk: Optional[dict] = None,
        **kwargs: Any) -> Runner:
    """A classifier with dropout on noisy images.

    Args:
        work_dir (Path): Where it writes.
        steps (int): Iterations, or epochs of three steps each.
        by_epoch (bool): Whether it trains by epochs.
        checkpoint (dict, optional): Settings of its checkpoints.
        data (dict, optional): Settings of its loader.
        trunk (dict, optional): Its trunk; one of random weights when None.
        **kwargs: See :class:`Runner`.
    """
    adapter = dict(type='ConvPass', hidden_dims=4, drop_rate=0.3)
    model = model_cfg(
        'cls', dict(trunk=trunk or vit(), new_module='n', adapter=adapter),
        dict(type='mmpretrain.GlobalAveragePooling'))
    train_cfg = dict(by_epoch=False, max_iters=steps, val_interval=2)
    settings = dict(data or {})
    if by_epoch:
        train_cfg = dict(by_epoch=True, max_epochs=steps)
        settings.setdefault('sampler', 'DefaultSampler')
    hook = dict(type='CheckpointHook', by_epoch=by_epoch, interval=1)
    hook.update(checkpoint or {})
    cfg = dict(
        train_dataloader=loader(Noisy('cls', 12), **settings),
        train_cfg=train_cfg,
        log_processor=dict(by_epoch=by_epoch),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1), checkpoint=hook))
    cfg.update(kwargs)
    return build_runner('cls', model, work_dir, **cfg)


def learned(runner: Runner) -> Dict[str, Tensor]:
    """All that must be equal: weights, optimizer, logs, averages."""
    model = getattr(runner.model, 'module', runner.model)
    found = dict(model.state_dict())
    states = runner.optim_wrapper.optimizer.state_dict()['state']
    for index, state in states.items():
        found.update({f'optimizer.{index}.{key}': torch.as_tensor(value)
                      for key, value in state.items()})
    for name, buffer in runner.message_hub.log_scalars.items():
        if not name.endswith('time') and 'memory' not in name:
            found[name] = torch.tensor(np.array(buffer.data[0]))
    for hook in runner.hooks:
        if hasattr(hook, 'ema_model'):
            found.update({f'ema.{key}': value for key, value
                          in hook.ema_model.state_dict().items()})
    return found


def unlike(first: Dict[str, Tensor], second: Dict[str, Tensor]) -> list:
    """Names of what differs."""
    return sorted(first.keys() ^ second.keys()) + [
        key for key in sorted(first.keys() & second.keys())
        if not torch.equal(first[key], second[key])
    ]
