# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From a trunk to a file: modules, fusion, one module, student, ONNX."""

from pathlib import Path

import pytest
import torch
from _export import classifier, whole_config
from _moe_tiny import build_moe, moe_cfg, some_usage
from mmengine.runner import Runner

from _tiny import (DIMS, NORMALISE, add_modules, build_runner, fusion_neck,
                   model_cfg, save_trunk)
from vim_mm.apis import bake, export_onnx
from vim_mm.models.export import OnnxModel
from vim_mm.models.moe import extract, save_moe
from vim_mm.registry import MODELS
from vim_mm.zoo import save_module

STUDENT = dict(
    type='mmpretrain.MobileNetV2', widen_factor=0.25, out_indices=(7, ))
IMAGES = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def fused(tmp_path: Path, **backbone) -> dict:
    """A classifier over a trunk with weights in a file."""
    trunk = save_trunk(tmp_path / 'trunk.pth')
    return model_cfg(
        'cls', dict(trunk=trunk, zoo=str(tmp_path / 'zoo'), **backbone),
        fusion_neck('cls'))


def fuse(tmp_path: Path) -> Runner:
    """Modules of a zoo, fused for a task."""
    made = MODELS.build(fused(tmp_path))
    add_modules(made.backbone, 'a', 'b')
    for name in 'ab':
        save_module(made.backbone, name, str(tmp_path / 'zoo'))
    runner = build_runner('cls', fused(tmp_path, **FUSION),
                          tmp_path / 'fusion')
    runner.train()
    return runner


FUSION = dict(modules=['a', 'b'], fusion=dict(type='EnsMoE'))


def fused_teacher(tmp_path: Path) -> dict:
    runner = fuse(tmp_path)
    path = tmp_path / 'teacher.pth'
    torch.save(runner.model.state_dict(), path)
    return dict(model=fused(tmp_path, **FUSION), checkpoint=str(path))


def baked_teacher(tmp_path: Path) -> dict:
    """One module that adds what the fusion added."""
    runner = fuse(tmp_path)
    bake(runner.model, 'baked', str(tmp_path / 'zoo'), size=56)
    teacher = fused(tmp_path, modules=['baked'])
    whole = MODELS.build(teacher)
    whole.init_weights()
    learned = runner.model.state_dict()
    whole.load_state_dict(
        {k: v for k, v in learned.items() if not k.startswith('backbone')},
        strict=False)
    torch.save(whole.state_dict(), tmp_path / 'teacher.pth')
    with torch.no_grad():
        torch.testing.assert_close(
            whole.eval()(IMAGES, mode='tensor'),
            runner.model.eval()(IMAGES, mode='tensor'),
            rtol=1e-3,
            atol=1e-3)
    return dict(model=teacher, checkpoint=str(tmp_path / 'teacher.pth'))


def pruned_teacher(tmp_path: Path) -> dict:
    """One task of a trunk of experts, without those it uses least."""
    trunk = build_moe()
    usage = extract(trunk, ['cls'], some_usage(trunk), threshold=20)
    path = tmp_path / 'part.safetensors'
    save_moe(trunk, moe_cfg(), path, usage)
    teacher = classifier(
        dict(type='vim_mm.load_moe', checkpoint=str(path), task='cls'),
        num_classes=2)
    teacher.head.in_channels = DIMS
    whole = MODELS.build(teacher)
    torch.save(whole.state_dict(), tmp_path / 'teacher.pth')
    return dict(model=teacher, checkpoint=str(tmp_path / 'teacher.pth'))


@pytest.mark.parametrize('make',
                         [fused_teacher, baked_teacher, pruned_teacher])
def test_from_trunk_to_file(make, tmp_path):
    """An ordinary student of each kind of teacher, which leaves alone."""
    student = classifier(STUDENT, num_classes=2)
    student.data_preprocessor.update(NORMALISE)
    teacher = make(tmp_path)
    teacher['model'].setdefault('data_preprocessor',
                                student.data_preprocessor)
    runner = build_runner(
        'cls',
        dict(
            type='vim_mm.Distiller',
            student=student,
            teacher=teacher,
            criteria={('logits', 'logits'): dict(type='vim_mm.LogitsKL')},
            probe_size=56),
        tmp_path / 'student',
        iters=2)
    runner.train()
    checkpoint = tmp_path / 'student/iter_2.pth'
    saved = torch.load(checkpoint, weights_only=False)['state_dict']
    assert list(saved) == list(MODELS.build(student).state_dict())
    done = export_onnx(
        whole_config('cls', student, size=56), str(checkpoint),
        tmp_path / 'student.onnx')
    plain = runner.model.student.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(OnnxModel(done.file)(IMAGES)['scores']),
            plain(IMAGES, mode='tensor').softmax(1),
            rtol=1e-4,
            atol=1e-5)
    assert done.any_size
