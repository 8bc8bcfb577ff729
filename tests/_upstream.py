# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Folders of images and upstream releases small enough for a test."""

from pathlib import Path
from typing import Tuple

import mmcv
import numpy as np
import torch

from vim_mm.models.generators import VQAutoEncoder, save_upstream_release

#: Sizes of an auto-encoder that trains in seconds.
SIZES = dict(
    codebook_size=16, code_dims=4, channels=8, downsample=4, num_blocks=1)
CARD = dict(name='tiny', data='coloured squares', licence='CC0')


def auto_encoder(seed: int = 0, **kwargs) -> VQAutoEncoder:
    """A model with codes as far apart as its latents may be."""
    torch.manual_seed(seed)
    model = VQAutoEncoder(**dict(SIZES, **kwargs))
    model.codebook = torch.randn_like(model.codebook)
    return model


def release(folder: Path, seed: int = 0, **kwargs) -> str:
    """Publish an untrained auto-encoder."""
    save_upstream_release(
        auto_encoder(seed, **kwargs), folder, num_images=3, **CARD)
    return str(folder)


def write_images(folder: Path,
                 num: int = 8,
                 size: Tuple[int, int] = (24, 24),
                 seed: int = 0) -> Path:
    """Images of a coloured square on a coloured ground."""
    rng = np.random.default_rng(seed)
    for index in range(num):
        image = np.empty((*size, 3), np.uint8)
        image[:] = rng.integers(0, 256, 3)
        top, left = rng.integers(0, [side // 2 for side in size])
        image[top:top + size[0] // 2,
              left:left + size[1] // 2] = rng.integers(0, 256, 3)
        mmcv.imwrite(image, str(folder / f'{index}.png'))
    return folder


def config(train: Path, held_out: Path, work_dir: Path,
           iters: int = 4) -> dict:
    """A whole config that trains and publishes a release."""
    pipeline = [dict(type='LoadImageFromFile'),
                dict(type='mmpretrain.PackInputs')]
    data = dict(
        type='mmpretrain.CustomDataset',
        data_prefix='',
        with_label=False,
        pipeline=pipeline)
    return dict(
        default_scope='vim_mm',
        work_dir=str(work_dir),
        model=dict(type='vim_mm.VQAutoEncoder', **SIZES),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=dict(data, data_root=str(train))),
        held_out_dataloader=dict(dataset=dict(data, data_root=str(held_out))),
        release_card=CARD,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='CheckpointHook', by_epoch=False, interval=iters)),
        log_processor=dict(by_epoch=False),
        log_level='WARNING',
        randomness=dict(seed=0))
