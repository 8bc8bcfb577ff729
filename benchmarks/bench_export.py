# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Row: a student's ONNX file against its teacher in PyTorch."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Iterator

import torch
import vit_models
from harness import Benchmark, Goal, Result, Settings, take_turns
from mmengine.config import Config
from mmengine.registry import DefaultScope

from vim_mm.apis import export_model
from vim_mm.models.export import OnnxModel
from vim_mm.registry import MODELS

NUM_CLASSES = 10
#: The student reads the trunk's images in its own normalisation.
PREPROCESSOR = dict(
    type='mmpretrain.ClsDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
STUDENT = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=PREPROCESSOR,
    backbone=dict(type='mmpretrain.MobileNetV2'),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=NUM_CLASSES,
        in_channels=1280))


def student_config(settings: Settings) -> Config:
    """A config of the student, with its test pipeline."""
    scale = (settings.size, settings.size)
    return Config(
        dict(
            default_scope='mmpretrain',
            model=STUDENT,
            test_dataloader=dict(
                dataset=dict(
                    type='mmpretrain.CustomDataset',
                    metainfo=dict(classes=list(map(str, range(NUM_CLASSES)))),
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='mmpretrain.Resize', scale=scale),
                        dict(type='mmpretrain.PackInputs')
                    ]))))


@torch.no_grad()
def of_student(settings: Settings) -> Iterator[Result]:
    """One image on the CPU, from normalised pixels to scores."""
    teacher = vit_models.backbone(settings).eval()
    cfg = student_config(settings)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        student = MODELS.build(cfg.model).eval()
    image = settings.images(1, 'cpu')
    with TemporaryDirectory() as folder:
        file = export_model(student, cfg, Path(folder, 'student.onnx')).file
        served = OnnxModel(file, torch.get_num_threads())
        times = take_turns(
            dict(student=lambda: served(image), teacher=lambda: teacher(image)
                 ), settings.runs(20))
        yield times.against('student', 'teacher')


NAME = 'ONNX file of a MobileNetV2'
BENCHMARKS = [
    Benchmark(NAME, [
        Goal(f'{NAME}, one image on the CPU', 'ViT-B/16 teacher in PyTorch',
             0.2)
    ], of_student)
]
