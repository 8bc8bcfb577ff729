# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: what distillation adds to a student's step and a teacher's pass."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Iterator, Tuple

import torch
import vit_models
from harness import Benchmark, Goal, Result, Settings, take_turns
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample

NUM_CLASSES = 100
#: Criteria by what they compare.
CRITERIA: Dict[str, dict] = {
    'logits': {
        ('logits', 'logits'): dict(type='vim_mm.LogitsKL')
    },
    'logits and maps': {
        ('logits', 'logits'):
        dict(type='vim_mm.LogitsKL'),
        ('backbone', 'backbone.layers.1'):
        [dict(type='vim_mm.CosineSmoothL1'),
         dict(type='vim_mm.LinearCKA')]
    }
}


def classifier(backbone: dict, width: int, mean: float, **parts: Any) -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(
            type='mmpretrain.ClsDataPreprocessor',
            mean=[mean] * 3,
            std=[60.] * 3),
        backbone=backbone,
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=NUM_CLASSES,
            in_channels=width,
            loss=dict(type='mmpretrain.CrossEntropyLoss')),
        **parts)


def distiller(settings: Settings, criteria: dict) -> BaseModel:
    """MobileNetV2 under a ViT-B/16 of another normalisation."""
    trunk = vit_models.vit(settings)
    teacher = classifier(trunk, trunk['arch']['embed_dims'], 127.)
    with TemporaryDirectory() as folder:
        path = str(Path(folder, 'teacher.pth'))
        torch.save(MODELS.build(teacher).state_dict(), path)
        model = MODELS.build(
            dict(
                type='vim_mm.Distiller',
                student=classifier(
                    dict(type='mmpretrain.MobileNetV2'),
                    1280,
                    60.,
                    neck=dict(type='mmpretrain.GlobalAveragePooling')),
                teacher=dict(model=teacher, checkpoint=path),
                criteria=criteria,
                probe_size=settings.size))
    return model.to(settings.device).train()


def batch(settings: Settings, number: int) -> Tuple[torch.Tensor, list]:
    labels = torch.arange(number, device=settings.device) % NUM_CLASSES
    samples = [DataSample().set_gt_label(label) for label in labels]
    return settings.images(number), samples


def step(model: BaseModel, optimizer: torch.optim.Optimizer,
         data: Tuple[torch.Tensor, list]) -> None:
    optimizer.zero_grad()
    loss, _ = model.parse_losses(model(*data, mode='loss'))
    loss.backward()
    optimizer.step()


def steps(criteria: dict, settings: Settings) -> Iterator[Result]:
    """A distillation step against its two parts, one after the other."""
    model = distiller(settings, criteria)
    student = model.student
    teacher = model.outside['teacher'].on(torch.device(settings.device))
    data = batch(settings, settings.batch(16))
    whole, alone = (
        torch.optim.SGD(part.parameters(), 1e-3) for part in (model, student))

    def parts() -> None:
        with torch.no_grad():
            teacher(data[0])
        step(student, alone, data)

    times = take_turns(
        dict(whole=partial(step, model, whole, data), parts=parts),
        settings.runs(15), settings.device)
    yield times.against('whole', 'parts')


BENCHMARKS = [
    Benchmark(f'distillation step, {name}', [
        Goal(f'distillation step, {name}, MobileNetV2 under ViT-B',
             'student step + teacher forward', 1.15)
    ], partial(steps, criteria)) for name, criteria in CRITERIA.items()
]
