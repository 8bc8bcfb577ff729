# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Optional, Sequence, Union

import torch.nn.functional as F
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_finite, check_number, check_width
from .base_adapter import Grid
from .low_rank_adapter import LowRankAdapter, Packed


@MODELS.register_module()
class LoRA(LowRankAdapter):
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
        check_finite(self.alpha, 'alpha')
        check_number(drop_rate, 'drop_rate', below=1)
        self.scale = self.alpha / rank
        self.down = nn.Linear(in_dims, rank, bias=False)
        self.up = nn.Linear(rank, out_dims, bias=False)
        self.dropout = nn.Dropout(drop_rate)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, grid: Optional[Grid] = None) -> Tensor:
        """See :meth:`BaseAdapter.forward`; the grid does not matter."""
        return self.times_scale(self.up(self.dropout(self.down(x))))

    def cfg(self) -> dict:
        """See :meth:`BaseAdapter.cfg`."""
        return dict(type='LoRA', rank=self.rank, alpha=self.alpha)

    def hidden(self,
               packed: Packed,
               x: Tensor,
               grid: Optional[Grid] = None) -> Tensor:
        """See :meth:`LowRankAdapter.hidden`; there is no activation."""
        return F.linear(x, *packed.tensors)

    @classmethod
    def of_width(cls, adapters: Sequence['LoRA'], hidden_dims: int) -> 'LoRA':
        """See :meth:`LowRankAdapter.of_width`."""
        first = adapters[0]
        dims = first.down.in_features, first.up.out_features
        return cls(dims, hidden_dims)
