# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import math
from dataclasses import replace
from typing import Hashable, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_finite, check_number, check_width
from .base_adapter import Grid
from .low_rank_adapter import LowRankAdapter, Packed

#: the factor inside QuickGELU
QUICK = 1.702


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, the activation of CLIP and of ConvPass."""
    return x * torch.sigmoid(QUICK * x)


def conv_tokens(u: Tensor,
                weight: Tensor,
                bias: Tensor,
                grid: Grid,
                groups: int,
                centre: Optional[Tensor] = None) -> Tensor:
    """Run one (grouped) 3x3 convolution over patch and extra tokens.

    Patches are convolved as an (H, W) image. Every extra token is a 1x1
    image of its own, padded by one, so only the centre tap reaches it.

    Args:
        u (Tensor): Hidden tokens of shape (B, E + H * W, g * h).
        weight (Tensor): Kernel of shape (g * h, h, 3, 3): g groups.
        bias (Tensor): Bias of shape (g * h, ).
        grid (tuple[int, int]): H and W, in patches.
        groups (int): The number of groups g.
        centre (Tensor, optional): :func:`centre_tap` of the kernel, where it
            is at hand.

    Returns:
        Tensor: Convolved tokens of the shape of ``u``.
    """
    height, width = grid
    batch, length, channels = u.shape
    num_extra = length - height * width
    # (B, H, W, C) seen as (B, C, H, W): channels-last, read without a copy
    patches = u[:, num_extra:].reshape(batch, height, width, channels)
    patches = F.conv2d(
        patches.permute(0, 3, 1, 2), weight, bias, padding=1, groups=groups)
    patches = patches.permute(0, 2, 3, 1)
    if num_extra == 0:
        return patches.reshape(batch, -1, channels)
    if centre is None:
        centre = centre_tap(weight, groups)
    extra = u[:, :num_extra].reshape(batch * num_extra, groups, -1)
    extra = torch.baddbmm(bias.view(groups, 1, -1), extra.transpose(0, 1),
                          centre)
    # as groups of channels, so that no side is copied before it is joined
    extra = extra.transpose(0, 1).unflatten(0, (batch, num_extra))
    patches = patches.reshape(batch, height * width, groups, -1)
    return torch.cat((extra, patches), dim=1).flatten(2)


def centre_tap(weight: Tensor, groups: int) -> Tensor:
    """What a kernel (g * h, h, 3, 3) does to a 1x1 image: (g, h, h)."""
    return weight[:, :, 1, 1].unflatten(0, (groups, -1)).transpose(1, 2)


def as_blocks(weight: Tensor, groups: int) -> Tuple[Tensor, int]:
    """The same convolution in fewer, wider groups with zeros between.

    Tensor cores like some 128 channels a group, far more than the 8 of one
    module.

    Args:
        weight (Tensor): Kernel of shape (g * h, h, 3, 3).
        groups (int): The number of groups g.

    Returns:
        tuple[Tensor, int]: The kernel, (g * h, n * h, 3, 3), and its number
        of groups, g / n, with n the divisor of g that brings n * h closest to
        128.
    """
    channels, width = weight.shape[:2]
    divisors = [n for n in range(1, groups + 1) if groups % n == 0]
    num = min(divisors, key=lambda n: abs(math.log(n * width / 128)))
    blocks = weight.new_zeros(groups // num, num, width, num, width, 3, 3)
    kernels = weight.view(groups // num, num, width, width, 3, 3)
    for index in range(num):
        blocks[:, index, :, index] = kernels[:, index]
    return blocks.view(channels, num * width, 3, 3), groups // num


@MODELS.register_module()
class ConvPass(LowRankAdapter):
    """The adapter of ViM (papers: ViM, arXiv 2303.06911; Convpass).

    ``M(z) = s * (W_up a(Conv3x3(a(W_down z + b_down))) + b_up)`` with ``a``
    the QuickGELU; the convolution is full, not depth-wise, and class tokens
    pass through its centre tap.

    Args:
        dims (int): Width d of the slot.
        hidden_dims (int): Bottleneck width h. The adapter has
            ``2dh + h + 9h^2/g + h + d`` parameters. Defaults to 8.
        scale (float): Output scale s of Convpass; it multiplies the whole
            delta. Defaults to 1.0, as in the released ViM.
        drop_rate (float): Dropout before the up projection, in training.
            Defaults to 0.
        conv_init (str): 'identity' (centre tap one) or 'xavier'. Defaults to
            'identity'.
        groups (int): Groups g of the convolution. K modules folded into one
            have K. Defaults to 1, as in ViM.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        ValueError: If ``conv_init`` is neither 'identity' nor 'xavier'.
    """

    def __init__(self,
                 dims: int,
                 hidden_dims: int = 8,
                 scale: float = 1.0,
                 drop_rate: float = 0.,
                 conv_init: str = 'identity',
                 groups: int = 1,
                 init_cfg: dict = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if conv_init not in ('identity', 'xavier'):
            raise ValueError(
                f"conv_init={conv_init!r} is unknown to ConvPass; use "
                "'identity' or 'xavier'.")
        check_width(hidden_dims, 'hidden_dims')
        check_finite(scale, 'scale')
        check_number(drop_rate, 'drop_rate', below=1)
        self.hidden_dims = hidden_dims
        self.scale = scale
        self.down = nn.Linear(dims, hidden_dims)
        self.conv = nn.Conv2d(
            hidden_dims, hidden_dims, 3, padding=1, groups=groups)
        self.up = nn.Linear(hidden_dims, dims)
        self.dropout = nn.Dropout(drop_rate)
        self.reset_parameters(conv_init)

    @torch.no_grad()
    def reset_parameters(self, conv_init: str) -> None:
        """Initialise so that the delta is exactly zero (``W_up = 0``)."""
        if self.conv.weight.is_meta:  # each tap takes its time
            return
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        if conv_init == 'identity':
            nn.init.dirac_(self.conv.weight, self.conv.groups)
        else:
            nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """See :meth:`BaseAdapter.forward`."""
        u = quick_gelu(self.down(x))
        v = conv_tokens(u, self.conv.weight, self.conv.bias, grid,
                        self.conv.groups)
        return self.times_scale(self.up(self.dropout(quick_gelu(v))))

    def cfg(self) -> dict:
        """See :meth:`BaseAdapter.cfg`."""
        return dict(
            type='ConvPass',
            hidden_dims=self.hidden_dims,
            scale=self.scale,
            groups=self.conv.groups)

    @property
    def fold_key(self) -> Hashable:
        """Only equal groups fit one grouped convolution."""
        # no tensor's shape: while a model is traced these are tensors
        return type(self), self.hidden_dims // self.conv.groups

    @classmethod
    def pack(cls, adapters: Sequence['ConvPass']) -> Packed:
        """See :meth:`LowRankAdapter.pack`."""
        return super().pack(adapters,
                            sum(adapter.conv.groups for adapter in adapters))

    def hidden(self,
               packed: Packed,
               x: Tensor,
               grid: Grid,
               below: Optional[Tensor] = None) -> Tensor:
        """See :meth:`LowRankAdapter.hidden`; in one grouped convolution."""
        down, down_bias, conv, conv_bias, *centre = packed.tensors
        act = packed.act or quick_gelu
        u = act(F.linear(x, down, down_bias))
        u = u if below is None else u + below
        v = conv_tokens(u, conv, conv_bias, grid, packed.groups, *centre)
        return act(v)

    @classmethod
    def of_width(cls, adapters: Sequence['ConvPass'],
                 hidden_dims: int) -> 'ConvPass':
        """See :meth:`LowRankAdapter.of_width`; grouped."""
        first = adapters[0]
        groups = hidden_dims * first.conv.groups // first.hidden_dims
        return cls(first.down.in_features, hidden_dims, groups=groups)

    @classmethod
    def lay_out(cls, packed: Packed, low: bool) -> Packed:
        """See :meth:`LowRankAdapter.lay_out`.

        A GPU gets a convolution of wide groups. In low precision QuickGELU is
        one kernel instead of three: ``1.702 QuickGELU(u) = SiLU(1.702 u)``,
        with the factors in the weights.
        """
        down, down_bias, conv, conv_bias = packed.tensors
        act, groups = packed.act, packed.groups
        if conv.is_cuda:
            conv, groups = as_blocks(conv, groups)
        # as its input lies, so that no compiled pass turns it around
        conv = conv.contiguous(memory_format=torch.channels_last)
        if low and not cls.beside:  # what hands on a state keeps its size
            act = F.silu
            down, down_bias = QUICK * down, QUICK * down_bias
            conv_bias, packed = QUICK * conv_bias, packed.times(1 / QUICK)
        centre = centre_tap(conv, groups).contiguous()
        conv = conv.contiguous(memory_format=torch.channels_last)
        tensors = down, down_bias, conv, conv_bias, centre
        return replace(packed, tensors=tensors, act=act, groups=groups)
