# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Detectors whose head has no place for any box."""

import logging
import re
from typing import Any, Container, Dict, Mapping, Optional

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor

#: Losses of where objects are.
_OF_BOXES = re.compile('bbox|iou|box')
#: Batches with boxes from which on a run is stopped.
ENOUGH = 10


class BoxLosses:
    """What a detector's losses of boxes were in the first steps of a task.

    A box that none of the head's points or anchors takes is background, of
    which classification still learns, so gradients come.
    """

    def __init__(self) -> None:
        self._sums: Dict[str, Tensor] = {}
        self._steps = 0

    def add(self, labelled: bool, losses: Optional[Mapping[str, Any]]) -> None:
        """Look at a step.

        Args:
            labelled (bool): Whether its batch has a box.
            losses (dict, optional): Losses by name.
        """
        self._steps += labelled
        for name, value in (losses or {}).items():
            if _OF_BOXES.search(name) and isinstance(value, Tensor):
                # all processes know the same names
                size = value.detach().abs().sum() * labelled
                self._sums[name] = self._sums.get(name, 0) + size

    def check(self, but: Container[str] = ()) -> None:
        """Compare them with zero, in all processes together.

        Args:
            but (Container[str]): Losses that are meant to be 0, such as
                'loss_bbox'. Defaults to none.

        Raises:
            ValueError: If all were exactly 0 in enough steps.
        """
        if not self._sums:
            return
        sums = torch.stack(list(self._sums.values()))
        all_reduce(sums)
        steps = torch.tensor(self._steps, device=sums.device)
        all_reduce(steps)
        zero = [name for name, total in zip(self._sums, sums.tolist())
                if total == 0 and name.rpartition('.')[2] not in but]
        if not zero or not steps:
            return
        said = (f'{", ".join(zero)}: exactly 0 in the first {int(steps)} '
                'steps that had boxes, as where no point or anchor of a head '
                'takes any; look at `regress_ranges`, anchors, strides, '
                'assigner and sampler of the head, and at the size of the '
                'images.')
        if len(zero) == len(sums) and steps >= ENOUGH:
            raise ValueError(said)
        print_log(said, logger='current', level=logging.WARNING)
