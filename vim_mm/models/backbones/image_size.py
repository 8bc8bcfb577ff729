# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which sizes of images a trunk takes."""

from typing import Any

import torch
from torch import Tensor, nn

from .blank_image import REFUSALS, ProbeSize, blank_image, in_eval, pair


def takes_any_size(trunk: nn.Module, probe_size: ProbeSize) -> bool:
    """Whether a trunk takes images that are no whole number of patches.

    Some pad them, some have patches that overlap, some leave out a rest.

    Args:
        trunk (nn.Module): The backbone, in any state; left as it was.
        probe_size (int | Sequence[int]): Side of an image of whole patches in
            pixels, or its height and width.
    """
    height, width = pair(probe_size)
    try:
        with in_eval(trunk), torch.no_grad():
            trunk(blank_image(trunk, (height + 1, width + 3)))
    except REFUSALS:
        return False
    return True


def check_size(x: Any, patch: int, any_size: bool) -> None:
    """Refuse what is no batch of images, or of a size that would not fit.

    Args:
        x: What a backbone is given.
        patch (int): Side of a patch in pixels.
        any_size (bool): Whether sides need not be multiples of it.

    Raises:
        ValueError: Says what mends it.
    """
    if not isinstance(x, Tensor):
        raise ValueError(
            f'Images arrive as a {type(x).__name__} and not as one batch: the '
            'model has no data preprocessor that stacks them; set '
            "`data_preprocessor`, such as dict(type='mmdet.DetDataPreprocessor"
            "'), 'mmseg.SegDataPreProcessor' or "
            "'mmpretrain.ClsDataPreprocessor', with `mean` and `std`, of "
            f'detectors with `pad_size_divisor={patch}`.')
    height, width = x.shape[-2:]
    if (height % patch or width % patch) and not any_size:
        raise ValueError(
            f'An image of {height}x{width} px is not divisible by the '
            f"trunk's patch size {patch}; resize in the pipeline, or let "
            f'the data preprocessor pad (`pad_size_divisor={patch}`; in '
            f'mmseg `size=None, size_divisor={patch}`, and for testing '
            f'`test_cfg=dict(size_divisor={patch})`).')
