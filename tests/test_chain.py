# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From a trunk to a file: modules, fusion, one module, student, ONNX."""

from pathlib import Path

import torch
import torch.nn.functional as F
from _export import classifier, whole_config

from _tiny import (NORMALISE, add_modules, build_runner, fusion_neck,
                   model_cfg, save_trunk)
from vim_mm.apis import bake, export_onnx
from vim_mm.models.distillers import BaseDistiller, build_outside
from vim_mm.models.export import OnnxModel
from vim_mm.registry import MODELS
from vim_mm.zoo import save_module

STUDENT = dict(
    type='mmpretrain.MobileNetV2', widen_factor=0.25, out_indices=(7, ))


@MODELS.register_module()
class PlainDistiller(BaseDistiller):
    """Learns its teacher's probabilities beside the labels."""

    def __init__(self, teacher: dict, **kwargs) -> None:
        super().__init__(**kwargs)
        self.add_outside('teacher', build_outside(teacher))

    def loss(self, inputs, data_samples):
        teacher = self.outside['teacher'].on(inputs.device)
        with torch.no_grad():
            soft = teacher(self.inputs_of('teacher', inputs), mode='tensor')
        losses = self.student.loss(inputs, data_samples)
        own = self.student(inputs, mode='tensor').log_softmax(1)
        losses['loss_kd'] = F.kl_div(
            own, soft.softmax(1), reduction='batchmean')
        return losses


def fused(tmp_path: Path, **backbone) -> dict:
    """A classifier over a trunk with weights in a file."""
    trunk = save_trunk(tmp_path / 'trunk.pth')
    return model_cfg(
        'cls', dict(trunk=trunk, zoo=str(tmp_path / 'zoo'), **backbone),
        fusion_neck('cls'))


def test_from_trunk_to_file(tmp_path):
    # modules of a zoo, fused for a task
    made = MODELS.build(fused(tmp_path))
    add_modules(made.backbone, 'a', 'b')
    for name in 'ab':
        save_module(made.backbone, name, str(tmp_path / 'zoo'))
    runner = build_runner(
        'cls',
        fused(tmp_path, modules=['a', 'b'], fusion=dict(type='EnsMoE')),
        tmp_path / 'fusion')
    runner.train()

    # one module that adds what they added; the teacher runs it
    bake(runner.model, 'baked', str(tmp_path / 'zoo'), size=56)
    teacher = fused(tmp_path, modules=['baked'])
    whole = MODELS.build(teacher)
    whole.init_weights()
    learned = runner.model.state_dict()
    whole.load_state_dict(
        {k: v for k, v in learned.items() if not k.startswith('backbone')},
        strict=False)
    torch.save(whole.state_dict(), tmp_path / 'teacher.pth')
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(
            whole.eval()(images, mode='tensor'),
            runner.model.eval()(images, mode='tensor'),
            rtol=1e-3, atol=1e-3)

    # an ordinary student, which leaves alone
    student = classifier(STUDENT, num_classes=2)
    student.data_preprocessor.update(NORMALISE)
    runner = build_runner(
        'cls',
        dict(
            type='vim_mm.PlainDistiller',
            student=student,
            teacher=dict(
                model=teacher, checkpoint=str(tmp_path / 'teacher.pth'))),
        tmp_path / 'student',
        iters=2)
    runner.train()
    checkpoint = tmp_path / 'student/iter_2.pth'
    assert not any('teacher' in key for key in torch.load(
        checkpoint, weights_only=False)['state_dict'])
    done = export_onnx(
        whole_config('cls', student, size=56), str(checkpoint),
        tmp_path / 'student.onnx')
    plain = runner.model.student.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(OnnxModel(done.file)(images)['scores']),
            plain(images, mode='tensor').softmax(1), rtol=1e-4, atol=1e-5)
    assert done.any_size
