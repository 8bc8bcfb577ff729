# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Parts of DaViT that mmpretrain's differs in from the released network.

Its patch embedding pads one pixel to the left where the network was trained
with three; its down-sampling pads rows of the token matrix instead of the
map, so that odd sizes fail or lose their last column; its channel half has no
stochastic depth after the attention.
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmpretrain.models.backbones.davit import (ChannelAttention, DaViT,
                                               DaViTDownSample)
from torch import Tensor
from torch.overrides import TorchFunctionMode

LN = dict(type='LN')


class DownSample(DaViTDownSample):
    """Halves a map, which is padded to even sides at its right and bottom.

    Args:
        dims (int): Channels of the map; twice as many come out.
    """

    def __init__(self, dims: int) -> None:
        super().__init__(dims, 2 * dims, padding=0, norm_cfg=LN)

    def forward(self, x: Tensor,
                input_size: Tuple[int, int]) -> Tuple[Tensor, Tuple[int, int]]:
        """Tokens (B, H * W, C) to half as many, and rows and columns."""
        height, width = input_size
        x = self.norm(x).transpose(1, 2).unflatten(2, (height, width))
        x = self.projection(F.pad(x, (0, width % 2, 0, height % 2)))
        return x.flatten(2).transpose(1, 2), (x.size(2), x.size(3))


class DroppedChannelAttention(ChannelAttention):
    """Channel attention with stochastic depth.

    Args:
        embed_dims (int): Channels.
        num_heads (int): Groups of channels.
        qkv_bias (bool): Whether queries, keys and values have a bias.
        drop_path (float): How often the whole branch is left out.
    """

    def __init__(self, embed_dims: int, num_heads: int, qkv_bias: bool,
                 drop_path: float) -> None:
        super().__init__(embed_dims, num_heads, qkv_bias)
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, L, C) to tokens of the same shape."""
        return self.drop(super().forward(x))


def repair(trunk: DaViT, in_channels: int, patch_size: int) -> None:
    """Put our parts in the place of mmpretrain's; names stay the same.

    Args:
        trunk (DaViT): The trunk, without weights yet.
        in_channels (int): Channels of images.
        patch_size (int): Stride of the patch embedding.
    """
    trunk.patch_embed = PatchEmbed(
        in_channels,
        trunk.embed_dims,
        kernel_size=7,
        stride=patch_size,
        padding=3,
        norm_cfg=LN)
    for stage in trunk.stages:
        if stage.downsample is not None:
            stage.downsample = DownSample(stage.embed_dims)
        for block in stage.blocks:
            half = block.channel_block
            half.attn = DroppedChannelAttention(
                half.attn.embed_dims, half.attn.num_heads,
                half.attn.qkv.bias is not None,
                half.ffn.dropout_layer.drop_prob)


class RatesOnHost(TorchFunctionMode):
    """Within this context ``linspace`` calculates on the CPU.

    mmpretrain reads the rates of stochastic depth off a tensor, which the
    meta device, where models are counted, has no values for.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """See :class:`TorchFunctionMode`."""
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs['device'] = 'cpu'
        return func(*args, **kwargs)
