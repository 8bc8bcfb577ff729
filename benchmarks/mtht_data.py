# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The data of ``mtht_evidence.py``: what is learned from, and judged on."""

import json
from copy import deepcopy
from pathlib import Path
from typing import List, Sequence

import torch
from mmengine.config import Config

from vim_mm.utils.files import write_atomic
from vim_mm.utils.join_tasks import join_tasks

CONFIGS = Path(__file__).resolve().parents[1] / 'configs/mtht'
NEW = 'cifar'
#: images of each class of the new task to learn from, and to test on
SHOTS, TESTS = 20, 30
PER_CLASS = dict(train=2000, test=200)


def read_config(develop: bool, work_dir: Path) -> Config:
    """The joint config, with the new task's loaders beside the others.

    Args:
        develop (bool): Judge on images held out of the training sets.
        work_dir (Path): Where annotations of those go.
    """
    cfg = Config.fromfile(CONFIGS / 'real_cls-det-seg.py')
    new = join_tasks(**{NEW: str(CONFIGS / 'real_single/cifar10_cls.py')})
    for part in ('train_dataloader', 'val_dataloader', 'val_evaluator'):
        cfg[part][NEW] = new[part][NEW]
    cfg.new_task = new.tasks[NEW]
    cfg.new_task.pop('backbone')
    cfg.custom_hooks.append(
        dict(type='vim_mm.WarmHeadHook', task=NEW, epochs=20))
    cfg.val_dataloader.seg.dataset.indices = list(range(0, 101, 2))
    cfg.val_dataloader[NEW].dataset.indices = _each_class(
        range(TESTS), PER_CLASS['test'])
    if develop:
        _hold_out(cfg, work_dir)
    return cfg


def draw_few(cfg: Config, seed: int) -> None:
    """Draw the new task's training images, never the last 100 of a class."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(
        PER_CLASS['train'] - 100, generator=generator)[:SHOTS]
    cfg.train_dataloader[NEW].dataset.indices = _each_class(
        drawn.tolist(), PER_CLASS['train'])


def _each_class(places: Sequence[int], per_class: int) -> List[int]:
    return [c * per_class + place for c in range(10) for place in places]


def _hold_out(cfg: Config, work_dir: Path) -> None:
    """Split the training sets; what is held out takes the reported's place.

    Neighbours in time (driving) and place (overlapping tiles) stay together.
    """
    train, val = cfg.train_dataloader, cfg.val_dataloader
    splits = dict(
        cls=lambda i: i % 6 == 0, seg=lambda i: i >= 307)  # of 1,817 and 367
    for task, held in splits.items():
        total = dict(cls=1817, seg=367)[task]
        val[task].dataset.data_prefix = deepcopy(
            train[task].dataset.data_prefix)
        for loader, wanted in ((train, False), (val, True)):
            loader[task].dataset.indices = [
                i for i in range(total) if held(i) == wanted
            ]
    val[NEW].dataset.data_prefix = 'train'
    val[NEW].dataset.indices = _each_class(
        range(PER_CLASS['train'] - 50, PER_CLASS['train']),
        PER_CLASS['train'])
    _hold_out_tiles(cfg, work_dir)


def _hold_out_tiles(cfg: Config, work_dir: Path) -> None:
    dataset = cfg.train_dataloader.det.dataset
    whole = json.loads(
        Path(dataset.data_root, dataset.ann_file).read_text())
    left = [
        int(image['file_name'].split('_x')[1][:4])
        for image in whole['images']
    ]
    limit = sorted(set(left))[-3]
    held = [
        image for image, x in zip(whole['images'], left) if x >= limit
    ]
    ids = {image['id'] for image in held}
    path = work_dir / 'held_out_tiles.json'
    write_atomic(
        path,
        json.dumps(
            dict(
                whole,
                images=held,
                annotations=[
                    a for a in whole['annotations'] if a['image_id'] in ids
                ])))
    dataset.indices = [
        i for i, x in enumerate(left) if x + 300 <= limit
    ]
    cfg.val_dataloader.det.dataset.update(
        ann_file=str(path.resolve()), data_prefix=dict(img='train/'))
    cfg.val_evaluator.det.ann_file = str(path.resolve())
