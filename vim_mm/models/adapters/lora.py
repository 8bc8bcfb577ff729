# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_width
from .base_adapter import BaseAdapter, Grid, copy_padded, gated_up, scaled


@MODELS.register_module()
class LoRA(BaseAdapter):
    """A low-rank change of one linear layer (LoRA, arXiv 2106.09685).

    ``M(x) = alpha / rank * B A x``, added to the layer's output: the layer
    runs as if its weight were ``W + alpha / rank * B A``. ``down.weight`` is
    A, (rank, in), and ``up.weight`` B, (out, rank), as PEFT's ``lora_A`` and
    ``lora_B``.

    Args:
        dims (int | Sequence[int]): Width of the layer, or the widths of its
            input and output.
        rank (int): Rank of the change; ``rank * (in + out)`` parameters.
            Defaults to 8.
        alpha (float, optional): Numerator of the scale; the rank when None,
            a scale of one. Defaults to None.
        drop_rate (float): Dropout before the up projection, in training.
            Defaults to 0.
        init_cfg (dict, optional): mmengine init config. Defaults to None.
    """

    linear = True
    needs_grid = False

    def __init__(self,
                 dims: Union[int, Sequence[int]],
                 rank: int = 8,
                 alpha: Optional[float] = None,
                 drop_rate: float = 0.,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        check_width(rank, 'rank')
        in_dims, out_dims = (dims, dims) if isinstance(dims, int) else dims
        self.rank = rank
        self.alpha = rank if alpha is None else alpha
        self.scale = self.alpha / rank
        self.down = nn.Linear(in_dims, rank, bias=False)
        self.up = nn.Linear(rank, out_dims, bias=False)
        self.dropout = nn.Dropout(drop_rate)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, grid: Optional[Grid] = None) -> Tensor:
        """See :meth:`BaseAdapter.forward`; the grid does not matter."""
        return self.scale * self.up(self.dropout(self.down(x)))

    def cfg(self) -> dict:
        """See :meth:`BaseAdapter.cfg`."""
        return dict(type='LoRA', rank=self.rank, alpha=self.alpha)

    @classmethod
    def wide(cls, adapters: Sequence['LoRA'], gates: Tensor, x: Tensor,
             grid: Optional[Grid]) -> Tensor:
        """K changes as exactly one, of the sum of their ranks.

        See :meth:`BaseAdapter.wide` for the arguments.
        """
        hidden = F.linear(x, torch.cat([a.down.weight for a in adapters]))
        return gated_up(adapters[0].dropout(hidden),
                        [a.up.weight for a in adapters], None,
                        scaled(gates, adapters))

    @classmethod
    @torch.no_grad()
    def fold(cls,
             adapters: Sequence['LoRA'],
             gates: Tensor,
             width: Optional[int] = None) -> 'LoRA':
        """See :meth:`BaseAdapter.fold`; the result has a scale of one."""
        rank = sum(a.rank for a in adapters)
        rank += cls._padding(adapters, width) * max(a.rank for a in adapters)
        up, down = adapters[0].up.weight, adapters[0].down.weight
        folded = cls((down.shape[1], up.shape[0]), rank).to(up)
        copy_padded(folded.down.weight, [a.down.weight for a in adapters])
        gates = scaled(gates, adapters)
        copy_padded(folded.up.weight.t(),
                    [g * a.up.weight.t() for g, a in zip(gates, adapters)])
        return folded.eval()
