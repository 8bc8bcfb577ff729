# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Kinds of tasks, and the names of their parts in each library."""

from dataclasses import dataclass
from typing import Any, Container, Dict, Optional, Set


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


def kinds_of(model: Any) -> Set[str]:
    """Kinds of tasks that a model may be of, by the libraries of its classes.

    None if it is of another library. Detectors that label pixels, too, are
    of two.
    """
    libraries = {kind.__module__.partition('.')[0]
                 for kind in type(model).__mro__}
    found = {name for name, kind in KINDS.items() if kind.scope in libraries}
    parts = [name for owner in (model, getattr(model, 'roi_head', None))
             for name in getattr(owner, '_modules', {})]
    if 'det' in found and any(
            word in part for part in parts for word in ('semantic',
                                                        'panoptic')):
        found.add('seg')
    return found


def check_kind(model: Any, task: Optional[str], where: str) -> None:
    """Refuse a card that would say another kind of task than was learned.

    Args:
        model: The model.
        task (str, optional): What the card would say.
        where (str): The setting, for the message.

    Raises:
        ValueError: If the model is surely of another kind.
    """
    found = sorted(kinds_of(model))
    if found and task in KINDS and task not in found:
        raise ValueError(
            f"`{where}` is '{task}', and {type(model).__name__} learns "
            f"'{found[0]}': the card would be wrong; set `{where}` to "
            f"'{found[0]}'.")
