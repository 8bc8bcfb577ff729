# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs that generate: their generators fit their teachers."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from vim_mm.apis.guides import read_plan
from vim_mm.models import build_model
from vim_mm.models.generators.statistics import LayerStatistics
from vim_mm.models.generators.teacher import Teacher
from vim_mm.models.generators.tokens import TokenDropping, TokenStream
from vim_mm.registry import MODELS
from vim_mm.utils.config import class_of

ROOT = Path(__file__).resolve().parents[2] / 'configs/ota'
CONFIGS = sorted(path.name for path in ROOT.glob('generate_*.py'))


def test_every_kind_of_task_and_of_teacher_has_a_config() -> None:
    kinds = {name.rpartition('_')[2] for name in CONFIGS}
    assert {'seg.py', 'det.py', 'efficientnet-lite0.py',
            'vit-s14.py'} <= kinds


@pytest.mark.parametrize('name', CONFIGS)
def test_generators_fit_their_teachers(name: str) -> None:
    cfg = Config.fromfile(ROOT / name)
    plan = read_plan(cfg)
    generator = MODELS.build(plan.generator)
    with torch.device('meta'):
        model = build_model(cfg)
    teacher = Teacher(model, generator.layers)
    assert len(teacher.layers) in (2, 3)
    statistics = LayerStatistics(model, **generator.statistics)
    assert statistics.is_complete == ('efficientnet' in name)
    if 'efficientnet' not in name:
        stream = TokenStream(TokenDropping(), model.backbone)
        assert len(stream.modules) == 12
    assert plan.copies == 1 or generator.is_random
    assert class_of(plan.dataset, DATASETS) is not None
