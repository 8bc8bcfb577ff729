# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import List, Optional, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..autocast import exact


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
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.trunc_normal_(self.weight, std=.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features) to (N, out_features)."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Its widths."""
        return '{1} -> {0}'.format(*self.weight.shape)


class Router(BaseModule):
    """What one task makes of a token: probabilities of all experts.

    It always runs in full precision: near-ties decide which experts run.

    Args:
        dims (int): Width C of tokens.
        width (int): Number W of experts that it tells apart.
        kind (str): ``'linear'`` (Mod-Squad: one layer without bias) or
            ``'mlp'`` (MTHT: C -> C/4 -> W, GELU between). Defaults to
            ``'mlp'``.
        columns (Sequence[int], optional): Which of its columns belong to the
            experts that are stored, in their order, after pruning; the
            softmax still runs over all W. All of them when None.

    Raises:
        ValueError: If there is no such kind.
    """

    KINDS = ('linear', 'mlp')

    def __init__(self,
                 dims: int,
                 width: int,
                 kind: str = 'mlp',
                 columns: Optional[Sequence[int]] = None) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"`router` is {kind!r}; give 'linear' or 'mlp'.")
        self.dims, self.width = dims, width
        if kind == 'linear':
            self.net = RouterLinear(dims, width, bias=False)
        else:
            self.net = nn.Sequential(
                RouterLinear(dims, dims // 4), nn.GELU(),
                RouterLinear(dims // 4, width))
        if columns is not None:
            columns = torch.as_tensor(columns, dtype=torch.long)
        self.register_buffer('columns', columns)

    @property
    def kind(self) -> str:
        """``'linear'`` or ``'mlp'``."""
        return 'linear' if isinstance(self.net, RouterLinear) else 'mlp'

    @property
    def num_experts(self) -> int:
        """How many stored experts it may choose from: the first ones."""
        return self.width if self.columns is None else len(self.columns)

    @torch.no_grad()
    def share(self, rows: Sequence[int]) -> None:
        """Let experts start with the rows of others.

        Args:
            rows (Sequence[int]): Whose row each expert takes.
        """
        last = self.net if self.kind == 'linear' else self.net[-1]
        for param in last.parameters():
            param.copy_(param[list(rows)])

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of all experts.

        Args:
            x (Tensor): (N, C) tokens.

        Returns:
            Tensor: (N, W), fp32 (fp64 if its weights are); rows sum to 1.
        """
        weight = next(self.net.parameters())
        with exact(x.device.type):
            return self.net(x.to(weight.dtype)).softmax(
                -1, dtype=torch.promote_types(weight.dtype, torch.float32))

    def stored(self, p: Tensor) -> Tensor:
        """The columns of the experts that are stored: (N, num_experts)."""
        return p if self.columns is None else p[:, self.columns]

    def keep(self, index: Sequence[int]) -> None:
        """Choose from these of its stored experts only."""
        if len(index) == self.num_experts:
            return
        columns = self.columns
        if columns is None:
            columns = torch.arange(
                self.width, device=next(self.parameters()).device)
        self.columns = columns[list(index)]

    def like(self, num_experts: int) -> 'Router':
        """A copy that chooses from more experts.

        Of those that it did not know, the first is as likely as the first it
        did, and so on.

        Args:
            num_experts (int): How many it is to choose from, at least as many
                as this one.
        """
        known = torch.arange(self.width) if self.columns is None \
            else self.columns.cpu()
        new = num_experts - len(known)
        rows = known[torch.arange(new) % len(known)]
        columns = torch.cat([known, torch.arange(new) + self.width])
        router = Router(
            self.dims, self.width + new, self.kind,
            None if self.columns is None else columns)
        weight = next(self.parameters())
        router.to(weight)
        state = self.net.state_dict()
        for key in _of_last_layer(self.net):
            state[key] = torch.cat([state[key], state[key][rows]])
        router.net.load_state_dict(state)
        return router


def _of_last_layer(net: nn.Module) -> List[str]:
    """Names of the parameters that have a row for each expert."""
    layer = '' if isinstance(net, RouterLinear) else f'{len(net) - 1}.'
    return [
        name for name, _ in net.named_parameters() if name.startswith(layer)
    ]
