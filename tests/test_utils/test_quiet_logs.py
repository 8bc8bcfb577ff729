# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Networks that are built outside of a run tell of no parameter by itself."""

import logging
from pathlib import Path
from typing import Callable, Iterator, List

import pytest
import torch
from mmengine.logging import MMLogger

from _tiny import build_backbone, fusion_neck, model_cfg, vit
from vim_mm.models.backbones.trunk import build_trunk
from vim_mm.models.distillers.outside import build_outside
from vim_mm.registry import MODELS

SWIN = dict(
    type='mmdet.SwinTransformer',
    embed_dims=8,
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 1, 1),
    window_size=4,
    out_indices=(0, 1, 2, 3))


@pytest.fixture
def lines() -> Iterator[List[str]]:
    """What is logged, at any level that is shown."""
    found: List[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def without_weights(folder: Path) -> None:
    build_backbone()


def by_a_loader_of_its_own(folder: Path) -> None:
    path = folder / 'swin.pth'
    torch.save(dict(state_dict=MODELS.build(SWIN).state_dict()), path)
    build_trunk(
        dict(SWIN, init_cfg=dict(type='Pretrained', checkpoint=str(path))))


def as_a_teacher(folder: Path) -> None:
    build_outside(
        dict(model=model_cfg('cls', dict(trunk=vit()), fusion_neck('cls'))))


@pytest.mark.parametrize(
    'build', [without_weights, by_a_loader_of_its_own, as_a_teacher])
def test_no_line_for_each_parameter(build: Callable[[Path], None],
                                    lines: List[str], tmp_path: Path,
                                    capsys: pytest.CaptureFixture) -> None:
    build(tmp_path)
    said = '\n'.join(lines) + capsys.readouterr().out
    assert 'init_weights' not in said and 'Initialized by' not in said
    assert 'tensors-of:' not in said
    if build is without_weights:  # in one line of ours
        assert 'is given no weights' in said
