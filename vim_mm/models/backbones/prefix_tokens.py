# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Class and register tokens before the patches, and the grid of these."""

import math
from typing import Optional, Sequence, Tuple

from torch import Tensor, nn


def declared_prefix(trunk: nn.Module) -> Optional[int]:
    """How many tokens before the patches a trunk says it has, if it does.

    timm and mmpretrain keep the number, mmseg whether there is a class token.
    """
    for name in ('num_prefix_tokens', 'num_extra_tokens', 'with_cls_token'):
        for part in trunk.modules():
            number = getattr(part, name, None)
            if isinstance(number, int):
                return int(number)
    return None


def token_grid(length: int, picture: Tuple[int, int],
               declared: Optional[int]) -> Optional[Tuple[int, int]]:
    """The stride of tokens, and how many come before those of the patches.

    Args:
        length (int): Number of tokens.
        picture (tuple): Height and width of the image in pixels.
        declared (int, optional): What the trunk says. It counts where it
            fits: 4 x 4 patches behind one token are as many as 3 x 3 behind
            eight. Otherwise the prefix is the shortest that leaves a grid.

    Returns:
        tuple[int, int] | None: Pixels a token and the number of tokens in the
        prefix; None if no grid fits.
    """
    side = math.gcd(*picture)
    found = None
    for stride in range(1, side + 1):
        if side % stride:
            continue
        rows, cols = (pixels // stride for pixels in picture)
        prefix = length - rows * cols
        if prefix == declared:
            return stride, prefix
        if found is None and 0 <= prefix <= rows + cols:
            found = stride, prefix
    return found


def prefix_of(trunk: nn.Module, levels: Sequence[Tensor],
              picture: Tuple[int, int]) -> int:
    """Tokens before the patches in what a trunk gives out.

    Args:
        trunk (nn.Module): The backbone.
        levels (Sequence[Tensor]): Its outputs for one image.
        picture (tuple): Height and width of the image in pixels.
    """
    declared = declared_prefix(trunk)
    for level in levels:
        if level.dim() == 3:
            grid = token_grid(level.shape[1], picture, declared)
            return grid[1] if grid else declared or 0
    return 0
