# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Small random motions of images, with their annotations."""

from typing import NamedTuple, Sequence

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from vim_mm.utils.arguments import check_number


class Move(NamedTuple):
    """How an image is moved.

    Attributes:
        down (int): Rows that it is rolled by; what leaves comes back above.
        right (int): Columns, alike.
        flip (bool): Whether it is mirrored, after that.
    """
    down: int
    right: int
    flip: bool


class Motion:
    """Rolls and mirrors images at random, a little anew in every step.

    Label maps are moved along. Boxes and instance masks are mirrored; rolled,
    one would be in two places, so detection takes no ``jitter``. Leave
    ``flip`` off where a class depends on the side.

    Args:
        jitter (int): Images are rolled by up to so many pixels. Defaults
            to 0.
        flip (bool): Whether half of them are mirrored. Defaults to False.
    """

    def __init__(self, jitter: int = 0, flip: bool = False) -> None:
        check_number(jitter, 'motion.jitter')
        self.jitter = int(jitter)
        self.flip = bool(flip)

    def __bool__(self) -> bool:
        return bool(self.jitter or self.flip)

    def check(self, sample: BaseDataElement) -> None:
        """Refuse annotations that cannot be moved along.

        Raises:
            ValueError: If boxes would be rolled.
        """
        if self.jitter and 'gt_instances' in sample:
            raise ValueError(
                f'`motion.jitter` is {self.jitter}, and a rolled image cuts '
                'boxes in two; set jitter=0 for detection (flip works).')

    def draw(self, generator: torch.Generator) -> Move:
        """The next move of an image."""
        down, right = torch.randint(
            -self.jitter, self.jitter + 1, (2, ),
            generator=generator).tolist()
        coin = int(torch.randint(2, (), generator=generator))
        return Move(down, right, self.flip and bool(coin))


def move_images(images: Tensor, moves: Sequence[Move]) -> Tensor:
    """Images (B, C, H, W), each moved by its own move."""
    return torch.stack(
        [_moved(image, move) for image, move in zip(images, moves)])


def move_sample(sample: BaseDataElement, move: Move, width: int) -> None:
    """Move the annotation of an image along, in place.

    Args:
        sample (BaseDataElement): With boxes as tensors.
        move (Move): What was done to its image.
        width (int): That of the image.
    """
    if 'gt_sem_seg' in sample:
        sample.gt_sem_seg.data = _moved(sample.gt_sem_seg.data, move)
    for name in ('gt_instances', 'ignored_instances'):
        if move.flip and name in sample:
            instances = sample.get(name)
            left, top, right, bottom = instances.bboxes.unbind(1)
            instances.bboxes = torch.stack(
                [width - right, top, width - left, bottom], 1)
            if 'masks' in instances:
                instances.masks = instances.masks.flip('horizontal')


def _moved(image: Tensor, move: Move) -> Tensor:
    image = image.roll((move.down, move.right), (-2, -1))
    return image.flip(-1) if move.flip else image
