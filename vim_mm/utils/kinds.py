# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Kinds of tasks, and the names of their parts in each library."""

from dataclasses import dataclass
from typing import Container, Dict, Optional


@dataclass(frozen=True)
class Kind:
    """What belongs to a kind of task.

    Attributes:
        scope (str): The library that knows it.
        gt (str): Field of its data samples that holds the annotation.
        pred (str): Field that holds the prediction.
        visualizer (dict): Config of what draws the prediction; the image is
            seen through the classes.
        hook (str): Type of the hook that draws during a test.
    """

    scope: str
    gt: str
    pred: str
    visualizer: dict
    hook: str


KINDS: Dict[str, Kind] = dict(
    cls=Kind('mmpretrain', 'gt_label', 'pred_label',
             dict(type='mmpretrain.UniversalVisualizer'),
             'mmpretrain.VisualizationHook'),
    det=Kind('mmdet', 'gt_instances', 'pred_instances',
             dict(type='mmdet.DetLocalVisualizer'),
             'mmdet.DetVisualizationHook'),
    seg=Kind('mmseg', 'gt_sem_seg', 'pred_sem_seg',
             dict(type='mmseg.SegLocalVisualizer', alpha=0.5),
             'mmseg.SegVisualizationHook'))

#: Samples that say so in their metainfo have no annotation to learn from.
SOFT_ONLY = 'soft_only'


def find_kind(sample: Container[str], field: str) -> Optional[str]:
    """The first kind whose 'gt' or 'pred' a data sample holds, or None."""
    return next((name for name, kind in KINDS.items()
                 if getattr(kind, field) in sample), None)
