# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The tasks of ``no_harm.py``: what is learned from, and judged on."""

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
from mmengine.config import Config

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
#: seeds from here on are for choosing settings: other draws, other tests
DEVELOP = 100


class Task(NamedTuple):
    """A task of few images.

    Attributes:
        kind (str): ``'cls'``, ``'det'`` or ``'seg'``.
        data (str): Name of the data set.
        metric (str): Name of the metric.
        key (str): The evaluator's name of it.
        foreign (bool): Whether no module of the zoo has seen such images.
        config (callable): Gives the config of all its images.
        pool (int): Training images there are to draw from.
        num (int): How many are drawn; of each class with ``per_class``.
        tests (int): Images to judge on, of which one half is reported.
        epochs (int): Of the head.
        lr (float): Of the head.
        per_class (bool): Whether to draw class by class.
        classes (int): Number of them, with ``per_class``.
    """
    kind: str
    data: str
    metric: str
    key: str
    foreign: bool
    config: Callable[[Path], Config]
    pool: int
    num: int
    tests: int
    epochs: int
    lr: float = 3e-3
    per_class: bool = False
    classes: int = 10

    @property
    def num_train(self) -> int:
        """Images that are learned from."""
        return self.num * (self.classes if self.per_class else 1)


def _whole(path: str) -> Callable[[Path], Config]:
    return lambda _: Config.fromfile(CONFIGS / path)


def _joined(model: str, data: str,
            **changes: Any) -> Callable[[Path], Config]:
    """A model and a data set of ``_base_`` as one config."""

    def read(_: Path) -> Config:
        cfg = Config.fromfile(CONFIGS / f'_base_/models/{model}.py')
        other = Config.fromfile(CONFIGS / f'_base_/datasets/{data}.py')
        cfg = Config({**cfg.to_dict(), **other.to_dict()})
        cfg.merge_from_dict(changes)
        return cfg

    return read


def _camvid(_: Path) -> Config:
    cfg = _joined('demo_seg', 'real/camvid')(_)
    # the base's weights are for digits, which cover little of an image
    cfg.model.decode_head.loss_decode.pop('class_weight')
    return cfg


def _coco(folder: Path) -> Config:
    """Things of any class, since few images show most classes once."""
    cfg = _joined('demo_det', 'demo/tree_crowns')(folder)
    root = Path(os.environ.get('VIM_MM_DATA', 'data'), 'coco')
    cfg.metainfo = dict(classes=('thing', ), palette=[(220, 20, 60)])
    for part, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        path = folder / f'coco_things_{split}.json'
        if not path.exists():
            whole = json.loads(
                (root / f'annotations/boxes_{split}2017.json').read_text())
            for each in whole['annotations']:
                each['category_id'] = 1
            whole['categories'] = [dict(id=1, name='thing')]
            path.write_text(json.dumps(whole))
        dataset = cfg[f'{part}_dataloader'].dataset
        dataset.update(
            data_root='',
            ann_file=str(path.resolve()),
            metainfo=cfg.metainfo,
            data_prefix=dict(img=f'{root.resolve()}/{split}2017/'))
        for step in dataset.pipeline:
            if step['type'].endswith('RandomFlip'):
                step.update(prob=0.5, direction='horizontal')
        if part != 'train':
            cfg[f'{part}_evaluator'].ann_file = str(path.resolve())
    return cfg


def _trees(_: Path) -> Config:
    """Another place of the site that the zoo's module knows."""
    cfg = _joined('demo_det', 'demo/tree_crowns')(_)
    cfg.test_dataloader, cfg.test_evaluator = (cfg.val_dataloader,
                                               cfg.val_evaluator)
    return cfg


TASKS: Dict[str, Task] = {
    'clothing-10':
    Task('cls', 'clothing, 10 a class', 'top-1', 'accuracy/top1', True,
         _joined('demo_cls', 'real/clothing'), 1817, 10, 341, 30, 1e-3, True),
    'clothing-40':
    Task('cls', 'clothing, 40 a class', 'top-1', 'accuracy/top1', True,
         _joined('demo_cls', 'real/clothing'), 1817, 40, 341, 20, 1e-3, True),
    'cifar10-20':
    Task('cls', 'CIFAR-10, 20 a class', 'top-1', 'accuracy/top1', True,
         _joined('demo_cls', 'real/cifar10'), 20000, 20, 2000, 20, 1e-3, True),
    'camvid-40':
    Task('seg', 'CamVid', 'mIoU', 'mIoU', True, _camvid, 367, 40, 101, 20),
    'coco-64':
    Task('det', 'COCO, things', 'AP50', 'coco/bbox_mAP_50', True, _coco, 128,
         64, 128, 12),
    'trees-18':
    Task('det', 'tree crowns', 'AP50', 'coco/bbox_mAP_50', False, _trees, 225,
         18, 12, 30),
    'solar-40':
    Task('cls', 'solar cells, 40 a class', 'top-1', 'accuracy/top1', False,
         _joined('demo_cls', 'demo/solar_cells', **{
             'model.head.num_classes': 2
         }), 834, 40, 240, 40, 1e-3, True, 2),
    'digits-cls':
    Task('cls', 'digits on photographs, 10 a class', 'top-1', 'accuracy/top1',
         False, _whole('demo/downstream_digits_cls.py'), 200, 10, 400, 40,
         1e-3, True),
    'digits-seg':
    Task('seg', 'digits on photographs', 'mIoU', 'mIoU', False,
         _whole('demo/downstream_digits_seg.py'), 200, 60, 300, 40),
    'digits-det':
    Task('det', 'digits on photographs', 'AP50', 'coco/bbox_mAP_50', False,
         _whole('demo/downstream_digits_det.py'), 64, 48, 64, 15)
}
#: Images of the larger test sets that are judged on, of one half of them.
MOST_TESTS = 100


def read_config(name: str,
                seed: int,
                folder: Path,
                zoo: Optional[str],
                task: Optional[Task] = None) -> Config:
    """A task's config with the images of a seed.

    Args:
        name (str): The task.
        seed (int): Of the draw; from :data:`DEVELOP` on, another half of the
            test images is judged on.
        folder (Path): Where annotations go.
        zoo (str, optional): Directory of the zoo; the demo's when None.
        task (Task, optional): With other numbers of images.
    """
    task = task or TASKS[name]
    cfg = task.config(folder)
    cfg.zoo = zoo or 'work_dirs/demo/zoo'
    train, test = cfg.train_dataloader, cfg.test_dataloader
    train.sampler = dict(type='DefaultSampler', shuffle=True)
    generator = torch.Generator().manual_seed(seed)
    if task.per_class:
        train.dataset.pop('indices', None)
        train.dataset = dict(
            type='vim_mm.FewShot',
            dataset=deepcopy(train.dataset),
            per_class=task.num,
            seed=seed)
    else:
        drawn = torch.randperm(task.pool, generator=generator)[:task.num]
        train.dataset.indices = sorted(drawn.tolist())
    tests = _tests(task.tests, seed)
    if task.kind == 'det':
        _only(cfg, tests, folder / f'{name}_{int(seed >= DEVELOP)}.json')
    else:
        test.dataset.indices = tests
    return cfg


def _only(cfg: Config, kept: List[int], path: Path) -> None:
    """Judge on some images; the metric counts all of its annotation file."""
    dataset = cfg.test_dataloader.dataset
    file = Path(dataset.get('data_root') or '', dataset.ann_file)
    whole = json.loads(file.read_text())
    images = sorted(whole['images'], key=lambda image: image['id'])
    images = [images[i] for i in kept]
    ids = {image['id'] for image in images}
    boxes = [a for a in whole['annotations'] if a['image_id'] in ids]
    path.write_text(json.dumps(dict(whole, images=images, annotations=boxes)))
    dataset.ann_file = cfg.test_evaluator.ann_file = str(path.resolve())


def _tests(num: int, seed: int) -> List[int]:
    """Every second image, spread evenly if these are many."""
    half = list(range(int(seed >= DEVELOP), num, 2))
    step = max(1, len(half) // MOST_TESTS)
    return half[::step][:MOST_TESTS]
