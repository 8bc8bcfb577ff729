# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How a layer of a student and one of its teacher meet.

Layouts and sizes meet by reshaping and resizing, widths by a projector behind
the student, which is left out of the student once it is trained.
"""

from functools import lru_cache
from typing import Optional, Tuple

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from vim_mm.registry import MODELS
from ..layouts import as_tokens, tokens_like

#: the most class and register tokens beside those of the picture
MAX_EXTRA_TOKENS = 16


@MODELS.register_module()
class LinearProjector(BaseModule):
    """A linear layer at each place, which on a map is a 1 x 1 convolution.

    Args:
        in_channels (int): Width of the student's layer.
        out_channels (int): Width of the teacher's.
        init_cfg (dict, optional): mmengine init config. Defaults to None.
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        self.layer = nn.Linear(in_channels, out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) in the teacher's width."""
        return self.layer(tokens)


@MODELS.register_module()
class MLPProjector(BaseModule):
    """Two linear layers with normalisation and GELU between them.

    Args:
        in_channels (int): Width of the student's layer.
        out_channels (int): Width of the teacher's.
        hidden_channels (int, optional): Width between the layers; the
            teacher's when None. Defaults to None.
        init_cfg (dict, optional): mmengine init config. Defaults to None.
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 hidden_channels: Optional[int] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        hidden = hidden_channels or out_channels
        self.layers = nn.Sequential(
            nn.Linear(in_channels, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, out_channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) in the teacher's width."""
        return self.layers(tokens)


def meet(student: Tensor, teacher: Tensor,
         picture: Tuple[int, int]) -> Tuple[Tensor, Tensor]:
    """Two layers' outputs at the same places.

    Maps (B, C, H, W) of the student are brought to the size of the teacher's.
    Tokens (B, L, C) of another number are taken for maps, without class and
    register tokens. Where one is a vector (B, C), the other is averaged.

    Args:
        student (Tensor): What the student's layer gave.
        teacher (Tensor): What the teacher's layer gave.
        picture (tuple[int]): Height and width of the networks' inputs.

    Returns:
        tuple[Tensor]: Tokens (B, L, C) and (B, L, D).

    Raises:
        ValueError: If tokens belong to no grid of the picture.
    """
    if 2 in (student.dim(), teacher.dim()):
        return _mean(student, picture), _mean(teacher, picture)
    if student.dim() == 4 or teacher.dim() == 4 \
            or student.shape[1] != teacher.shape[1]:
        student, teacher = as_map(student, picture), as_map(teacher, picture)
        student = resize(student, teacher.shape[-2:])
    return as_tokens(student), as_tokens(teacher)


def _mean(features: Tensor, picture: Tuple[int, int]) -> Tensor:
    if features.dim() > 2:
        features = as_map(features, picture).mean((2, 3))
    return as_tokens(features)


def resize(features: Tensor, size: Tuple[int, int]) -> Tensor:
    """A map of another size: averaged where it shrinks, else bilinear."""
    if features.shape[-2:] == size:
        return features
    if features.shape[-2] >= size[0] and features.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(features, size)
    return F.interpolate(features, size, mode='bilinear', align_corners=False)


def as_map(features: Tensor, picture: Tuple[int, int]) -> Tensor:
    """Tokens (B, L, C) of a picture as a map, without extra tokens.

    Raises:
        ValueError: If they are no grid of it.
    """
    if features.dim() == 4:
        return features
    height, width = _grid(features.shape[1], *picture)
    patches = features[:, features.shape[1] - height * width:]
    grid = features.new_empty(1).expand(1, 1, height, width)
    return tokens_like(patches, grid)


@lru_cache(maxsize=None)
def _grid(tokens: int, height: int, width: int) -> Tuple[int, int]:
    """The largest grid of square patches that so many tokens hold.

    Those that fill the picture go before those that cut or pad it.
    """
    fitting = []
    for patch in range(1, max(height, width) + 1):
        whole = height % patch == width % patch == 0
        for size in ((height // patch, width // patch),
                     (-(-height // patch), -(-width // patch))):
            extra = tokens - size[0] * size[1]
            if 0 <= extra <= MAX_EXTRA_TOKENS and 0 not in size:
                fitting.append((not whole, extra, size))
    if not fitting:
        raise ValueError(
            f'{tokens} tokens are no grid over a picture of {height} x '
            f'{width} pixels; name a layer that gives a map, or as many '
            'tokens as the other network.')
    return min(fitting)[-1]
