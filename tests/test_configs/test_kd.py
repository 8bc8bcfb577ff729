# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs of plain distillation: they build, step and say what they are."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from vim_mm.models.backbones import trunk
from vim_mm.models.build import build_model
from vim_mm.models.distillers import outside

REPO = Path(__file__).resolve().parents[2]
ROOT = REPO / 'configs/kd'
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.rglob('*.py'))


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights stand in for those of users."""
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(outside, 'load_whole', lambda *_: {})
    monkeypatch.setattr(trunk, 'load_trunk_weights', lambda *_: None)


def without_files(cfg: Any) -> Any:
    if isinstance(cfg, dict):
        cfg.pop('init_cfg', None)
        for value in cfg.values():
            without_files(value)
    return cfg


@pytest.mark.parametrize('name', CONFIGS)
def test_headers(name: str) -> None:
    doc = ast.get_docstring(ast.parse((ROOT / name).read_text()))
    assert f'configs/kd/{name}' in doc and 'Expected result' in doc
    assert f']({name})' in (ROOT / 'README.md').read_text()


@pytest.mark.parametrize('name', CONFIGS)
def test_a_dumped_config_is_the_same(name: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(ROOT / name)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').model == cfg.model
    if 'CosineAnnealingLR' in str(cfg.get('param_scheduler')):
        assert cfg.param_scheduler.T_max == cfg.train_cfg.max_epochs


@pytest.mark.parametrize(
    'name',
    [name for name in CONFIGS if 'Distiller' in (ROOT / name).read_text()])
def test_distillers_step(name: str, no_files: None) -> None:
    cfg = Config.fromfile(ROOT / name)
    without_files(cfg.model.student)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg)
    side = cfg.model.get('probe_size', 224)
    inputs = torch.randn(2, 3, side, side)
    teacher = model._teach(inputs, None)
    with model.reader.listening(model.student) as seen:
        model.reader.forward(model.student, inputs)
    student = model.reader.read(seen)
    for criterion in model.criteria:
        mine, theirs = criterion.pair
        loss = criterion(student[mine], teacher[theirs], (side, side))
        assert torch.isfinite(loss) and loss > 0
        loss.backward(retain_graph=True)
    for param in model.criteria.parameters():
        assert param.grad.abs().sum() > 0


def test_students_alone_are_the_same_students() -> None:
    alone, taught = (
        Config.fromfile(ROOT / f'clothing_mobilenet-v2{end}.py')
        for end in ('_alone', ''))
    assert taught.model.student == alone.model
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper',
                'param_scheduler', 'val_dataloader'):
        assert taught[key] == alone[key]
