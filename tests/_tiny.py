# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Trunks, models and pictures small enough to train within a second."""

from copy import deepcopy
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from mmengine.utils import digit_version
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.utils.data import Dataset

from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.backbones.compiling import OLDEST
from vim_mm.registry import MODELS
from vim_mm.utils import kinds
from vim_mm.zoo import save_module

SIZE, PATCH, DIMS = 56, 14, 32
ARCH = dict(
    embed_dims=DIMS, num_layers=3, num_heads=2, feedforward_channels=64)


def vit(**kwargs) -> dict:
    """Config of a ViT of three blocks; 4 x 4 patches at 56 px."""
    cfg = dict(
        type='mmpretrain.VisionTransformer',
        arch=ARCH,
        img_size=SIZE,
        patch_size=PATCH,
        out_type='featmap',
        final_norm=False,
        out_indices=[0, 1, 2])
    return dict(cfg, **kwargs)


#: All kinds of trunk with default slots, each with out feature maps.
TRUNKS: Dict[str, dict] = dict(
    vit=vit(),
    vit_no_cls=vit(with_cls_token=False),
    swin=dict(
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=8, depths=[1, 2, 1, 1], num_heads=[1, 1, 2, 2]),
        img_size=64,
        window_size=4,
        pad_small_map=True,
        out_indices=(0, 1, 2, 3)),
    convnext=dict(
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[1, 1, 2, 1], channels=[8, 8, 16, 16]),
        gap_before_final_norm=False,
        out_indices=(0, 1, 2, 3)),
    resnet=dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=8,
        stem_channels=8,
        out_indices=(0, 1, 2, 3)),
    timm=dict(
        type='mmpretrain.TIMMBackbone',
        model_name='efficientnet_lite0',
        features_only=True))


def build_backbone(trunk: Optional[dict] = None, **kwargs) -> ViMBackbone:
    cfg = dict(
        type='vim_mm.ViMBackbone',
        trunk=trunk or vit(),
        probe_size=SIZE,
        **kwargs)
    return MODELS.build(cfg)


def occupy(names: Sequence[str],
           *widths: int) -> Dict[str, Dict[str, int]]:
    """What a fusion is built with: all modules in the slots s0, s1, ..."""
    slots = {f's{index}': width for index, width in enumerate(widths)}
    return {name: slots for name in names}


@torch.no_grad()
def fill(module: nn.Module, std: float = 0.2, seed: int = 0) -> None:
    """Give parameters values that let every one of them matter."""
    generator = torch.Generator().manual_seed(seed)
    for param in module.parameters():
        param.normal_(0, std, generator=generator)


def add_modules(backbone: ViMBackbone, *names: str, std: float = 0.2,
                trainable: bool = False, **adapter) -> None:
    """Add learned modules to the bank, each different."""
    cfg = dict(dict(type='ConvPass', hidden_dims=4), **adapter)
    for name in names:
        backbone.add(name, cfg)
        backbone.bank.members[name].requires_grad_(trainable)
        backbone.bank.train(backbone.training)
        fill(backbone.bank.members[name], std, seed=sum(map(ord, name)))


def snapshot(module: nn.Module) -> Dict[str, Tensor]:
    """All tensors of a module, those a state dict leaves out too."""
    tensors = dict(module.named_parameters())
    tensors.update(module.named_buffers())
    return {key: value.detach().clone() for key, value in tensors.items()}


def same(first: Dict[str, Tensor], second: Dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first)


def save_trunk(path: Path, seed: int = 0, **kwargs) -> dict:
    """Write a trunk's weights; return the config that reads them."""
    torch.manual_seed(seed)
    trunk = MODELS.build(vit(**kwargs))
    fill(trunk, 0.1, seed)
    torch.save(dict(state_dict=trunk.state_dict()), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    return vit(init_cfg=init_cfg, **kwargs)


# ---------------------------------------------------------------- pictures


class Pictures(Dataset):
    """Noise pictures with one bright square, annotated for one kind of task.

    Classes of 'cls' are whether the square is red and left, or white and
    right.
    """

    METAINFO = dict(classes=('square', ))

    def __init__(self, kind: str, num: int = 8, size: int = SIZE) -> None:
        generator = torch.Generator().manual_seed(0)
        self.metainfo = self.METAINFO
        self.samples = []
        for index in range(num):
            image = torch.randint(
                0, 60, (3, size, size), generator=generator).byte()
            top = int(torch.randint(0, size // 2, (), generator=generator))
            left = size // 2 * (index % 2)
            area = slice(top, top + size // 2), slice(left, left + size // 2)
            image[:1 + 2 * (index % 2), area[0], area[1]] += 150
            make = getattr(self, f'_{kind}')
            sample = make(index, area, size)
            sample.set_metainfo(
                dict(
                    img_id=index,
                    img_shape=(size, size),
                    ori_shape=(size, size),
                    pad_shape=(size, size),
                    batch_input_shape=(size, size),
                    scale_factor=(1., 1.)))
            self.samples.append(dict(inputs=image, data_samples=sample))

    @staticmethod
    def _cls(index, area, size) -> DataSample:
        return DataSample().set_gt_label(index % 2)

    @staticmethod
    def _seg(index, area, size) -> SegDataSample:
        labels = torch.zeros(1, size, size, dtype=torch.long)
        labels[0, area[0], area[1]] = 1
        return SegDataSample(gt_sem_seg=PixelData(data=labels))

    @staticmethod
    def _det(index, area, size) -> DetDataSample:
        rows, cols = area
        box = [[cols.start, rows.start, cols.stop, rows.stop]]
        return DetDataSample(
            gt_instances=InstanceData(
                bboxes=torch.tensor(box).float(), labels=torch.tensor([0])),
            ignored_instances=InstanceData(
                bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long()))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return deepcopy(self.samples[index])

    def batch(self) -> Dict[str, list]:
        """All samples, collated."""
        samples = [self[i] for i in range(len(self))]
        return {key: [s[key] for s in samples] for key in samples[0]}


# ------------------------------------------------------------------ models

NORMALISE = dict(mean=[60.] * 3, std=[60.] * 3)
LEVELS = [DIMS] * 3


def model_cfg(kind: str,
              backbone: dict,
              neck: Optional[dict] = None) -> ConfigDict:
    """A classifier, detector or segmentor on maps of DIMS channels."""
    backbone = dict(
        dict(type='vim_mm.ViMBackbone', probe_size=SIZE), **backbone)
    model = dict(backbone=backbone)
    if neck is not None:
        model.update(neck=neck)
    return ConfigDict(model, **globals()[f'_{kind}_cfg']())


def _cls_cfg() -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor',
                               **NORMALISE),
        head=dict(
            type='mmpretrain.LinearClsHead', num_classes=2, in_channels=DIMS))


def _det_cfg() -> dict:
    return dict(
        type='mmdet.FCOS',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor', **NORMALISE),
        bbox_head=dict(
            type='mmdet.FCOSHead',
            num_classes=1,
            in_channels=DIMS,
            feat_channels=16,
            stacked_convs=1,
            strides=[PATCH],
            regress_ranges=((-1, 1e8), ),
            norm_cfg=None),
        test_cfg=dict(
            score_thr=0.01,
            nms_pre=100,
            min_bbox_size=0,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=10))


def _seg_cfg() -> dict:
    return dict(
        type='mmseg.EncoderDecoder',
        data_preprocessor=dict(
            type='mmseg.SegDataPreProcessor', size=(SIZE, SIZE), **NORMALISE),
        decode_head=dict(
            type='mmseg.FCNHead',
            in_channels=DIMS,
            in_index=-1,
            channels=16,
            num_convs=1,
            concat_input=False,
            dropout_ratio=0,
            num_classes=2,
            norm_cfg=dict(type='BN')),
        test_cfg=dict(mode='whole'))


def fusion_neck(kind: str, modules: List[str] = ()) -> dict:
    """One map for every kind: the last of the trunk's three, at scale 1."""
    inner = dict(type='mmpretrain.GlobalAveragePooling')
    return dict(
        type='vim_mm.ViMFusionNeck',
        in_channels=LEVELS,
        scales=[1],
        sources=[[0, 1, 2]],
        out_channels=DIMS,
        modules=modules,
        inner_neck=inner if kind == 'cls' else None)


SCOPES = {name: kind.scope for name, kind in kinds.KINDS.items()}
KINDS = list(SCOPES)


#: Of tests that make a backbone one graph.
compiles = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version(OLDEST),
    reason=f'torch < {OLDEST} does not compile it')


def first_of(values: Sequence, num: int = 1) -> list:
    """Values of a long test, of which `make test` takes some alone.

    A tuple is the values of several arguments.
    """
    return [
        pytest.param(
            *(each if isinstance(each, tuple) else (each, )),
            marks=[pytest.mark.slow] * (index >= num))
        for index, each in enumerate(values)
    ]


def build_model(kind: str, backbone: dict, neck: Optional[dict] = None):
    init_default_scope(SCOPES[kind])
    return MODELS.build(
        model_cfg(kind, backbone, neck or fusion_neck(kind)))


# ---------------------------------------------------------------- training


def build_runner(kind: str,
                 model: dict,
                 work_dir: Path,
                 iters: int = 4,
                 batch_size: int = 4,
                 lr: float = 5e-3,
                 **kwargs) -> Runner:
    """A runner over eight pictures; checkpoints at its end."""
    loader = dict(
        dataset=Pictures(kind),
        batch_size=batch_size,
        num_workers=0,
        # mmengine waits two seconds at every end of a finite one
        sampler=dict(type='InfiniteSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'))
    cfg = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=iters),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=lr),
            clip_grad=dict(max_norm=10.)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='CheckpointHook', by_epoch=False, interval=iters)),
        default_scope=SCOPES[kind],
        log_processor=dict(by_epoch=False),
        log_level='WARNING',
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.name}_{id(loader)}')
    cfg.update(kwargs)
    return Runner(**cfg)


def losses(runner: Runner) -> Tensor:
    history, _ = runner.message_hub.get_scalar('train/loss').data
    return torch.as_tensor(history)


# --------------------------------------------------------------- two tasks

#: Two tasks over a bank of three modules; each leaves one of them out.
TWO_TASKS = dict(x=['a', 'b'], y=['c', 'b'])
PLACES = ['trunk', 'neck']


def two_tasks(folder: Path,
              place: str = 'trunk',
              fusion: str = 'EnsMoE',
              learn: Optional[Sequence[str]] = None) -> ConfigDict:
    """A classifier of two tasks over tuned modules of a zoo.

    Args:
        folder (Path): Where the trunk's weights and the zoo are, or go.
        place (str): Where modules are fused, 'trunk' or 'neck'.
        fusion (str): Type of the fusion.
        learn (Sequence[str], optional): The tasks that learn.
    """
    path, zoo = folder / 'trunk.pth', str(folder / 'zoo')
    trunk = vit(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    if not path.exists():
        midstream = build_backbone(save_trunk(path))
        add_modules(midstream, *'abc', std=0.1)
        for name in 'abc':
            save_module(midstream, name, zoo)
    backbone = dict(
        trunk=trunk, zoo=zoo, modules=list('abc'), tune_modules=True)
    fused = dict(
        fusion=dict(type=fusion, tasks=TWO_TASKS), learn_tasks=learn)
    neck = fusion_neck('cls')
    if place == 'trunk':
        backbone.update(fused)
    else:
        neck.update(fused, modules=list('abc'))
    cfg = model_cfg('cls', backbone, neck)
    cfg.head = dict(
        type='vim_mm.TaskHeads',
        heads={task: dict(cfg.head) for task in TWO_TASKS},
        learn_tasks=learn)
    return cfg
