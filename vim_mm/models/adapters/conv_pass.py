# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Hashable, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_width
from .base_adapter import BaseAdapter, Grid, copy_padded, gated_up, scaled


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, the activation of CLIP and of ConvPass."""
    return x * torch.sigmoid(1.702 * x)


def conv_tokens(u: Tensor, weight: Tensor, bias: Tensor, grid: Grid,
                groups: int) -> Tensor:
    """Run one (grouped) 3x3 convolution over patch and extra tokens.

    Patches are convolved as an (H, W) picture. Every extra token is a 1x1
    picture of its own, padded by one, so only the centre tap reaches it.

    Args:
        u (Tensor): Hidden tokens of shape (B, E + H * W, groups * h).
        weight (Tensor): Kernel of shape (groups * h, h, 3, 3).
        bias (Tensor): Bias of shape (groups * h, ).
        grid (tuple[int, int]): H and W, in patches.
        groups (int): The number of groups.

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
    patches = patches.permute(0, 2, 3, 1).reshape(batch, -1, channels)
    if num_extra == 0:
        return patches
    centre = weight[:, :, 1, 1].view(groups, -1, channels // groups)
    extra = u[:, :num_extra].unflatten(-1, (groups, -1))
    extra = torch.einsum('beki,koi->beko', extra, centre).flatten(-2) + bias
    return torch.cat((extra, patches), dim=1)


@MODELS.register_module()
class ConvPass(BaseAdapter):
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
        return self.scale * self.up(self.dropout(quick_gelu(v)))

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
    def wide(cls, adapters: Sequence['ConvPass'], gates: Tensor, x: Tensor,
             grid: Grid) -> Tensor:
        """K adapters of width h as exactly one of width K * h.

        One GEMM d -> K*h, one convolution with K groups, one GEMM K*h -> d
        into whose (small) weight the gates are folded. See
        :meth:`BaseAdapter.wide` for the arguments.
        """
        return cls.read_out(adapters, cls.hidden(adapters, x, grid), gates)

    @staticmethod
    def hidden(adapters: Sequence['ConvPass'],
               x: Tensor,
               grid: Grid,
               below: Optional[Tensor] = None) -> Tensor:
        """Activated hidden units of K adapters, side by side.

        Args:
            adapters (Sequence[ConvPass]): The adapters.
            x (Tensor): Tokens of shape (B, E + H * W, dims).
            grid (tuple[int, int]): H and W, in patches.
            below (Tensor, optional): Added before the convolution. Defaults
                to None.

        Returns:
            Tensor: Shape (B, E + H * W, sum of h).
        """
        u = quick_gelu(
            F.linear(x, torch.cat([a.down.weight for a in adapters]),
                     torch.cat([a.down.bias for a in adapters])))
        v = conv_tokens(
            u if below is None else u + below,
            torch.cat([a.conv.weight for a in adapters]),
            torch.cat([a.conv.bias for a in adapters]),
            grid,
            groups=sum(a.conv.groups for a in adapters))
        return quick_gelu(v)

    @staticmethod
    def read_out(adapters: Sequence['ConvPass'], hidden: Tensor,
                 gates: Tensor) -> Tensor:
        """The gated delta of K adapters, from what :meth:`hidden` gives."""
        return gated_up(adapters[0].dropout(hidden),
                        [a.up.weight for a in adapters],
                        [a.up.bias for a in adapters], scaled(gates, adapters))

    @classmethod
    @torch.no_grad()
    def fold(cls,
             adapters: Sequence['ConvPass'],
             gates: Tensor,
             width: Optional[int] = None) -> 'ConvPass':
        """See :meth:`BaseAdapter.fold`; a scale of one, grouped."""
        widths = [a.hidden_dims for a in adapters]
        hidden = sum(widths) + cls._padding(adapters, width) * max(widths)
        gates, first = scaled(gates, adapters), adapters[0]
        groups = hidden // first.conv.weight.shape[1]
        folded = cls(first.down.in_features, hidden, groups=groups)
        folded.to(first.down.weight)
        copy_padded(folded.down.weight, [a.down.weight for a in adapters])
        copy_padded(folded.down.bias, [a.down.bias for a in adapters])
        copy_padded(folded.conv.weight, [a.conv.weight for a in adapters])
        copy_padded(folded.conv.bias, [a.conv.bias for a in adapters])
        copy_padded(folded.up.weight.t(),
                    [g * a.up.weight.t() for g, a in zip(gates, adapters)])
        folded.up.bias.copy_(gates @ torch.stack([a.up.bias
                                                  for a in adapters]))
        return folded.eval()
