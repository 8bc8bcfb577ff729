# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Hashable, Optional, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_finite, check_number, check_width
from .base_adapter import Grid
from .conv_pass import quick_gelu
from .low_rank_adapter import Activation, LowRankAdapter, Packed

ACTIVATIONS: Dict[str, Activation] = dict(
    GELU=F.gelu, QuickGELU=quick_gelu, ReLU=F.relu, SiLU=F.silu)


@MODELS.register_module()
class BottleneckAdapter(LowRankAdapter):
    """Two projections, token by token (Houlsby et al., arXiv 1902.00751).

    ``M(z) = s * (W_up a(W_down z + b_down) + b_up)``, beside a branch as in
    AdaptFormer (arXiv 2205.13535), in the slots of :class:`ConvPass`.

    Args:
        dims (int): Width d of the slot.
        hidden_dims (int): Bottleneck width h. The adapter has
            ``2dh + h + d`` parameters. Defaults to 8.
        act (str): Activation a: 'GELU', 'QuickGELU', 'ReLU' or 'SiLU'.
            Defaults to 'GELU'.
        scale (float): Output scale s. Defaults to 1.
        drop_rate (float): Dropout before the up projection, in training.
            Defaults to 0.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        ValueError: If the activation is not known.
    """

    needs_grid = False

    def __init__(self,
                 dims: int,
                 hidden_dims: int = 8,
                 act: str = 'GELU',
                 scale: float = 1.,
                 drop_rate: float = 0.,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if act not in ACTIVATIONS:
            raise ValueError(f'act={act!r} is unknown to BottleneckAdapter; '
                             f'use one of {sorted(ACTIVATIONS)}.')
        check_width(hidden_dims, 'hidden_dims')
        check_finite(scale, 'scale')
        check_number(drop_rate, 'drop_rate', below=1)
        self.hidden_dims = hidden_dims
        self.act = act
        self.scale = scale
        self.down = nn.Linear(dims, hidden_dims)
        self.dropout = nn.Dropout(drop_rate)
        self.up = nn.Linear(hidden_dims, dims)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, grid: Optional[Grid] = None) -> Tensor:
        """See :meth:`BaseAdapter.forward`; the grid does not matter."""
        hidden = ACTIVATIONS[self.act](self.down(x))
        return self.times_scale(self.up(self.dropout(hidden)))

    def cfg(self) -> dict:
        """See :meth:`BaseAdapter.cfg`."""
        return dict(
            type='BottleneckAdapter',
            hidden_dims=self.hidden_dims,
            act=self.act,
            scale=self.scale)

    @property
    def fold_key(self) -> Hashable:
        """Widths may differ: hidden units lie side by side."""
        return type(self), self.act

    def hidden(self,
               packed: Packed,
               x: Tensor,
               grid: Optional[Grid] = None) -> Tensor:
        """See :meth:`LowRankAdapter.hidden`."""
        return ACTIVATIONS[self.act](F.linear(x, *packed.tensors))

    @classmethod
    def of_width(cls, adapters: Sequence['BottleneckAdapter'],
                 hidden_dims: int) -> 'BottleneckAdapter':
        """See :meth:`LowRankAdapter.of_width`."""
        first = adapters[0]
        return cls(first.down.in_features, hidden_dims, first.act)
