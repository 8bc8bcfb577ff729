# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Hooks find the model that learns, wherever a run's model keeps it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from torch import nn

from _tiny import KINDS, build_model, fusion_neck, model_cfg, save_trunk, vit
from vim_mm.engine.hooks import GateLogHook, ModuleHeadHook, ModuleToZooHook
from vim_mm.engine.model_parts import ordinary, part_of
from vim_mm.registry import MODELS
from vim_mm.zoo import Zoo, head_state


class Around(BaseModel):
    """A wrapper as users write them: the model is inside."""

    def __init__(self, **parts: BaseModel) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs) -> None:
        raise NotImplementedError


def soft_teacher(folder: Path) -> nn.Module:
    backbone = dict(
        trunk=save_trunk(folder / 'trunk.pth'),
        new_module='n',
        fusion=dict(type='EnsMoE'))
    init_default_scope('mmdet')
    detector = model_cfg('det', backbone, fusion_neck('det'))
    return MODELS.build(
        dict(
            type='mmdet.SoftTeacher',
            detector=detector,
            data_preprocessor=dict(
                type='mmdet.MultiBranchDataPreprocessor',
                data_preprocessor=detector.data_preprocessor),
            semi_train_cfg=dict(freeze_teacher=True),
            semi_test_cfg=dict(predict_on='teacher')))


class Scalars(list):

    def add_scalars(self, scalars: dict, step: int) -> None:
        self.append((step, sorted(scalars)))


class Run(SimpleNamespace):
    """As much of a runner as hooks ask for, and notes may be kept of it."""
    __hash__ = object.__hash__


def run_of(model: nn.Module) -> Run:
    dataset = BaseDataset(lazy_init=True)
    dataset.data_list = [dict()] * 3
    dataset.serialize_data, dataset._fully_initialized = False, True
    return Run(
        model=model,
        hooks=[],
        iter=0,
        max_iters=4,
        optim_wrapper=None,
        visualizer=Scalars(),
        val_loop=None,
        message_hub=SimpleNamespace(log_scalars={}),
        cfg=Config(),
        logger=MMLogger.get_current_instance(),
        train_dataloader=SimpleNamespace(dataset=dataset))


def test_the_student_of_a_semi_supervised_detector(tmp_path: Path) -> None:
    model = soft_teacher(tmp_path)
    run, zoo = run_of(model), str(tmp_path / 'zoo')
    hook = ModuleToZooHook(zoo, 'boxes', 'det', 'CC0-1.0')
    hook.before_train(run)
    with torch.no_grad():
        for param in model.student.backbone.bank.parameters():
            param += 0.1
    run.iter = 4
    hook.after_train(run)
    card, _ = Zoo(zoo).load('n')
    assert card.task == 'det'
    assert Zoo(zoo).load_head('n').keys() == head_state(model.student).keys()
    GateLogHook._record(run, 4)
    (step, names), = run.visualizer
    assert step == 4 and names[0].startswith('gates/layers.0')


def test_its_batches_are_none_that_a_head_is_prepared_with(
        tmp_path: Path) -> None:
    run = run_of(soft_teacher(tmp_path))
    with pytest.raises(ValueError, match='ModuleHeadHook prepares FCOS with '
                       'ordinary .* MultiBranchData.*`load_from`'):
        ModuleHeadHook('n', str(tmp_path)).before_train(run)


@pytest.mark.parametrize('kind', KINDS)
def test_wrappers_of_each_library(kind: str) -> None:
    backbone = dict(trunk=vit(), new_module='n')
    first, second = (build_model(kind, dict(backbone)) for _ in range(2))
    assert ordinary(first, 'Hook') is first
    assert ordinary(Around(inner=Around(model=first)), 'Hook') is first
    both = Around(one=first, two=second)
    with pytest.raises(ValueError, match=r"holds \['one', 'two'\] .*`task`"):
        ordinary(both, 'Hook')
    assert ordinary(both, 'Hook', 'two') is second
    with pytest.raises(ValueError, match=r'holds none \(all: .*two'):
        ordinary(both, 'Hook', 'three')
    first.requires_grad_(False)
    assert ordinary(both, 'Hook') is second
    with pytest.raises(ValueError, match='Around holds none'):
        ordinary(Around(layer=nn.Linear(2, 2)), 'Hook')


def test_hooks_that_prepare_take_its_name() -> None:
    backbone = dict(trunk=vit(), new_module='n')
    one, two = (build_model('cls', dict(backbone)) for _ in range(2))
    both = Around(one=one, two=two)
    both.data_preprocessor = one.data_preprocessor
    run = run_of(both)
    with part_of(run, 'two', 'Hook') as (model, loader):
        assert model is two and loader is run.train_dataloader
