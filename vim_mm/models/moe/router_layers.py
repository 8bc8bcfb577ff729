# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RouterLinear(nn.Module):
    """A linear layer of a router.

    It is none of torch's, for those of a model are drawn anew by what mm*
    blocks and heads do to all linear layers inside (mmpretrain's ViT fails at
    one without bias), or run in low precision.

    Args:
        in_features (int): Width of its input.
        out_features (int): Width of its output.
        bias (bool): Whether it has a bias. Defaults to True.
    """

    def __init__(self,
                 in_features: int,
                 out_features: int,
                 bias: bool = True) -> None:
        super().__init__()
        # not read off the weight, of which FSDP keeps a part
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.trunc_normal_(self.weight, std=.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features) to (N, out_features)."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Its widths."""
        return f'{self.in_features} -> {self.out_features}'


class AddedColumns(RouterLinear):
    """Logits of experts that came after a router.

    Each is the logit of another column and a difference, zero at first.

    Args:
        in_features (int): Width of the last layer's input.
        of (Sequence[int]): Which column each one starts as.
    """

    def __init__(self, in_features: int, of: Sequence[int]) -> None:
        super().__init__(in_features, len(of), bias=False)
        self.register_buffer('of', torch.as_tensor(of, dtype=torch.long))
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """The logits with its columns at their end."""
        return torch.cat([logits, logits[:, self.of] + super().forward(x)], 1)
