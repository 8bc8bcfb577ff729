# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Modules of a zoo that are tuned downstream, and the zoo that is not."""

import hashlib
from pathlib import Path

import pytest
import torch

from _tiny import (SIZE, Pictures, add_modules, build_backbone, build_runner,
                   fusion_neck, model_cfg, same, save_trunk, snapshot, vit)
from vim_mm.zoo import Zoo, save_module

NAMES = ['a', 'b']


@pytest.fixture
def cfg(tmp_path: Path) -> dict:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    midstream = build_backbone(trunk)
    add_modules(midstream, *NAMES, drop_rate=0.1)
    for name in NAMES:
        save_module(midstream, name, str(tmp_path / 'zoo'))
    return dict(trunk=trunk, zoo=str(tmp_path / 'zoo'), modules=NAMES)


def digest(folder: str) -> list:
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(Path(folder).rglob('*')) if path.is_file()]


def test_they_are_frozen_unless_told(cfg: dict) -> None:
    frozen = build_backbone(**cfg)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(m.training for m in frozen.bank.members['a'].modules())
    tuned = build_backbone(**cfg, tune_modules=True)
    assert all(p.requires_grad for p in tuned.bank.parameters())
    assert not any(p.requires_grad for p in tuned.trunk.parameters())
    assert not any(m.training for m in tuned.trunk.modules())
    # what learns has its dropout back
    assert all(m.training for m in tuned.bank.members['a'].modules())
    assert same(snapshot(tuned), snapshot(frozen))


@pytest.mark.parametrize('fusion', ['EnsMoE', None])
def test_checkpoints_hold_them_and_the_zoo_stays(cfg: dict, fusion: str,
                                                 tmp_path: Path) -> None:
    cfg = dict(cfg, tune_modules=True)
    neck = fusion_neck('seg', NAMES)
    if fusion:
        cfg, neck = dict(cfg, fusion=dict(type=fusion)), fusion_neck('seg')
    model = model_cfg('seg', cfg, neck)
    run = build_runner('seg', model, tmp_path / 'run')
    trunk, files = snapshot(run.model.backbone.trunk), digest(cfg['zoo'])
    run.train()
    backbone = run.model.backbone
    assert same(snapshot(backbone.trunk), trunk)
    assert digest(cfg['zoo']) == files
    for name in NAMES:
        before = Zoo(cfg['zoo']).load(name)[1]
        after = backbone.bank.export(name)
        assert before.keys() == after.keys()
        assert not any(torch.equal(before[key], after[key]) for key in after)

    tested = build_runner(
        'seg', model, tmp_path / 'test',
        load_from=str(tmp_path / 'run' / 'iter_4.pth'))
    tested.load_or_resume()
    assert same(tested.model.backbone.state_dict(), backbone.state_dict())
    results = [m.eval().test_step(Pictures('seg').batch())
               for m in (run.model, tested.model)]
    first, second = ([r.seg_logits.data for r in part] for part in results)
    assert all(map(torch.equal, first, second))


def test_slots_that_no_output_reads_stay_frozen(cfg: dict,
                                                tmp_path: Path) -> None:
    trunk = vit(
        init_cfg=dict(
            type='Pretrained', checkpoint=str(tmp_path / 'trunk.pth')),
        out_indices=[1])
    backbone = build_backbone(
        **dict(cfg, trunk=trunk), tune_modules=True,
        fusion=dict(type='EnsMoE')).train()
    learning = {name for name, p in backbone.bank.named_parameters()
                if p.requires_grad}
    assert learning and not any('layers-2' in name for name in learning)
    backbone(torch.randn(2, 3, SIZE, SIZE))[0].sum().backward()
    assert {name for name, p in backbone.bank.named_parameters()
            if p.grad is not None} == learning
