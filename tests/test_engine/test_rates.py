# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rates that base configs mean for a trunk do not slow what is beside it."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset, RepeatDataset
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.utils.data import DataLoader

from _tiny import KINDS, build_model, build_runner, fusion_neck, model_cfg, vit
from vim_mm.engine.rates import _check_optimized, check_rates, refuse_idle_run

BACKBONE = dict(trunk=vit(), new_module='n', fusion=dict(type='EnsMoE'))
ADDED = (r"'backbone.bank': dict\(lr_mult=1.0\), "
         r"'backbone.fusion': dict\(lr_mult=1.0\)")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list:
    lines: list = []
    monkeypatch.setattr('vim_mm.engine.rates.print_log',
                        lambda text, **_: lines.append(text))
    return lines


@pytest.fixture(scope='module', params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build_model(request.param, deepcopy(BACKBONE))


def optim(**custom_keys: dict) -> dict:
    return dict(
        optimizer=dict(type='AdamW', lr=1e-3),
        paramwise_cfg=dict(custom_keys=custom_keys))


def read(base: str, folder: Path) -> dict:
    """The optimizer wrapper of a config that inherits a library's."""
    path = folder / 'child.py'
    path.write_text(f"_base_ = '{base}'\n")
    return Config.fromfile(path).optim_wrapper


@pytest.mark.parametrize('base', [
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
])
def test_rates_for_a_trunk_are_named(base: str, model: nn.Module, said: list,
                                     tmp_path: Path) -> None:
    wrapper = read(base, tmp_path)
    check_rates(wrapper, model)
    assert len(said) == 1
    assert "gives 'backbone' 0.1 times the rate" in said[0]
    # what is proposed mends it
    wrapper.paramwise_cfg.custom_keys.update({
        'backbone.bank': dict(lr_mult=1.0),
        'backbone.fusion': dict(lr_mult=1.0)
    })
    check_rates(wrapper, model)
    assert len(said) == 1


@pytest.mark.parametrize('base', [
    'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',
    'mmseg::convnext/'
    'convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
    'mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py',
    'mmseg::mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py',
    'mmpretrain::simmim/benchmarks/swin-base-w6_8xb256-coslr-100e_in1k-192px'
    '.py',
    'mmpretrain::maskfeat/benchmarks/vit-base-p16_8xb256-coslr-100e_in1k.py',
])
def test_rates_by_layer_are_refused(base: str, model: nn.Module,
                                    tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='decays rates by the layers of .* '
                       "set it to 'DefaultOptimWrapperConstructor'"):
        check_rates(read(base, tmp_path), model)


@pytest.mark.parametrize('constructor', [
    'LayerDecayOptimizerConstructor',
    'LearningRateDecayOptimWrapperConstructor'
])
def test_a_leftover_constructor_is_refused(constructor: str,
                                           model: nn.Module) -> None:
    """Whatever became of the settings that it came with."""
    for kind in (constructor, type(constructor, (), {})):
        with pytest.raises(ValueError, match=f"is '{constructor}', which"):
            check_rates(
                dict(optim(), constructor=kind, paramwise_cfg=None), model)


@pytest.mark.parametrize(('keys', 'slow'), [
    (dict(backbone=dict(lr_mult=0.1)), True),
    ({'backbone.': dict(lr_mult=0.5)}, True),
    (dict(bone=dict(lr_mult=0.5)), True),
    (dict(backbone=dict(decay_mult=0.)), False),
    (dict(backbone=dict(lr_mult=2.)), False),
    (dict(head=dict(lr_mult=0.1)), False),
    # of the user's own choice
    ({'backbone.bank': dict(lr_mult=0.1)}, False),
    ({'backbone': dict(lr_mult=0.1), 'backbone.fusion': dict(),
      'backbone.bank': dict()}, False),
    ({'backbone': dict(lr_mult=0.1), 'backbone.norm': dict(lr_mult=1.)}, True),
    # of equally long keys mmengine takes the first in the alphabet
    ({'backbone.': dict(lr_mult=0.1), 'ckbone.ba': dict(lr_mult=1.),
      'ckbone.fu': dict(lr_mult=1.)}, True),
])
def test_only_what_slows_new_parts_is_named(keys: dict, slow: bool,
                                            model: nn.Module,
                                            said: list) -> None:
    check_rates(optim(**keys), model)
    assert bool(said) == slow


def test_a_rate_of_zero_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"'backbone' is 0.*{ADDED}"):
        check_rates(optim(backbone=dict(lr_mult=0)), model)
    check_rates(optim(head=dict(lr_mult=0)), model)


@pytest.mark.parametrize('kind', [Runner, FlexibleRunner])
def test_any_runner_says_so(kind: type, said: list, tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with a strategy build their model later."""
    kwargs = {}
    if kind is FlexibleRunner:
        kwargs = dict(strategy=dict(type='SingleDeviceStrategy'))
    monkeypatch.setattr('_tiny.Runner', kind)
    run_cfg(
        tmp_path,
        iters=1,
        optim_wrapper=optim(backbone=dict(lr_mult=0.1)),
        **kwargs).train()
    line, = said
    assert "gives 'backbone' 0.1 times the rate" in line


def test_a_plain_backbone_keeps_its_rates(said: list) -> None:
    check_rates(optim(backbone=dict(lr_mult=0)), nn.Linear(2, 2))
    assert not said


def run_cfg(folder: Path, **kwargs) -> dict:
    return build_runner(
        'cls', model_cfg('cls', deepcopy(BACKBONE), fusion_neck('cls')),
        folder, **kwargs)


def test_a_run_is_refused_before_it_begins(tmp_path: Path) -> None:
    run = run_cfg(tmp_path, optim_wrapper=optim(backbone=dict(lr_mult=0)))
    with pytest.raises(ValueError, match="'backbone' is 0"):
        run.train()


def test_optimizers_that_hold_copies_are_not_asked_what_they_move() -> None:
    """ZeRO's hold parts of tensors that they have put together."""
    model = build_model('cls', BACKBONE)
    copies = dict(lr=1e-3, params=[nn.Parameter(p.detach().clone())
                                   for p in model.parameters()])
    run = SimpleNamespace(optim_wrapper=SimpleNamespace(param_groups=[copies]))
    _check_optimized(run, model)
    copies['params'][:1] = list(model.parameters())[:1]
    with pytest.raises(ValueError, match='moves nothing of'):
        _check_optimized(run, model)


@pytest.mark.parametrize('scheduler', [
    None, dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2)
])
def test_no_rate_at_all_is_refused(tmp_path: Path, scheduler) -> None:
    with pytest.raises(ValueError, match='All learning rates are 0'):
        run_cfg(tmp_path, lr=0., param_scheduler=scheduler).train()


def test_nothing_that_learns_is_refused(tmp_path: Path) -> None:
    run = run_cfg(tmp_path)
    run.model.requires_grad_(False)
    run.model.neck.requires_grad_(True)
    run.optim_wrapper = run.build_optim_wrapper(run.optim_wrapper)
    run.model.requires_grad_(False)
    with pytest.raises(ValueError, match='Nothing of the model requires'):
        run.train()


@pytest.mark.parametrize('wrap', [False, True])
@pytest.mark.parametrize(('boxes', 'ignored'), [(0, 0), (1, 0), (1, 1)])
def test_a_detector_without_boxes_is_refused(boxes: int, ignored: int,
                                             wrap: bool,
                                             tmp_path: Path) -> None:
    """Whatever reads the annotations: these are of no known library."""
    run = run_cfg(tmp_path)
    dataset = BaseDataset(lazy_init=True)
    dataset.data_list = [dict(instances=[])] * 3
    dataset.data_list.append(dict(
        instances=[dict(bbox=[], ignore_flag=ignored)] * boxes))
    dataset.serialize_data, dataset._fully_initialized = False, True
    if wrap:
        dataset = RepeatDataset(dataset, times=2)
    fed = SimpleNamespace(
        model=run.model,
        optim_wrapper=None,
        train_dataloader=DataLoader(dataset))
    if boxes and not ignored:
        refuse_idle_run(fed)
        return
    with pytest.raises(ValueError, match='No image .* has a box'):
        refuse_idle_run(fed)
