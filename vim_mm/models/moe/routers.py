# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from copy import deepcopy
from typing import List, Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..autocast import exact
from .router_layers import AddedColumns, RouterLinear
from .structure import RouterShape


class Router(BaseModule):
    """What one task makes of a token: probabilities of all experts.

    It always runs in full precision: near-ties decide which experts run.

    A router that starts as another one, see :meth:`like`, knows copies of
    some experts. A copy and its original compete for one place: the one with
    the larger logit takes it, the copy if they are equal, and the other has
    probability zero. So the softmax is that of the router it starts as, no
    token runs the same expert twice, and copies learn from the first step.

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
        self.dims = dims
        if kind == 'linear':
            self.net = RouterLinear(dims, width, bias=False)
        else:
            self.net = nn.Sequential(
                RouterLinear(dims, dims // 4), nn.GELU(),
                RouterLinear(dims // 4, width))
        if columns is not None:
            columns = torch.as_tensor(columns, dtype=torch.long)
        self.register_buffer('columns', columns)
        self.added = nn.ModuleList()
        # (S, D): by place, the columns that compete for it, the newest first;
        # the last one fills up the row
        self.register_buffer('slots', None)

    @property
    def width(self) -> int:
        """How many experts it tells apart."""
        return sum(
            layer.out_features for layer in (self._last, *self.added))

    @property
    def kind(self) -> str:
        """``'linear'`` or ``'mlp'``."""
        return 'linear' if isinstance(self.net, RouterLinear) else 'mlp'

    @property
    def num_experts(self) -> int:
        """How many stored experts it may choose from: the first ones."""
        return self.width if self.columns is None else len(self.columns)

    @property
    def num_places(self) -> int:
        """How many experts it can choose at once."""
        return self.num_experts if self.slots is None or \
            self.columns is not None else len(self.slots)

    @property
    def known(self) -> List[int]:
        """The stored experts that it may choose: all, or those of a place."""
        columns = self._columns()
        competing = set(sum(self._places(), []))
        return [i for i, column in enumerate(columns) if column in competing]

    @property
    def _last(self) -> RouterLinear:
        return self.net if self.kind == 'linear' else self.net[-1]

    def _columns(self) -> List[int]:
        """The column of each stored expert."""
        return list(range(self.width)) if self.columns is None \
            else self.columns.tolist()

    @torch.no_grad()
    def share(self, slices: int) -> None:
        """Let as many experts after each other start with one row."""
        for param in self._last.parameters():
            rows = torch.arange(len(param), device=param.device)
            param.copy_(param[rows // slices])

    # --------------------------------------------------------------- pass

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of all experts.

        Args:
            x (Tensor): (N, C) tokens.

        Returns:
            Tensor: (N, W), fp32 (fp64 if its weights are); rows sum to 1.
        """
        weight = next(self.net.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with exact(x.device.type):
            logits = self._logits(x.to(weight.dtype))
            if self.slots is None:
                return logits.softmax(-1, dtype=dtype)
            logits, columns = self._best(logits)
            p = logits.softmax(-1, dtype=dtype)
            return p.new_zeros(p.size(0), self.width).scatter(1, columns, p)

    def _logits(self, x: Tensor) -> Tensor:
        if not self.added:
            return self.net(x)
        if self.kind == 'mlp':
            x = self.net[:-1](x)
        logits = self._last(x)
        for layer in self.added:
            logits = layer(x, logits)
        return logits

    def _best(self, values: Tensor) -> Tuple[Tensor, Tensor]:
        """The largest value in each place, and its column: (N, S) each."""
        best, index = values[:, self.slots].max(-1)
        columns = self.slots.expand(values.size(0), -1, -1)
        return best, columns.gather(2, index.unsqueeze(2)).squeeze(2)

    def choose(self, p: Tensor, k: int) -> Tuple[Tensor, Tensor]:
        """The k most probable of the stored experts.

        Args:
            p (Tensor): (N, W) probabilities.
            k (int): How many.

        Returns:
            tuple[Tensor, Tensor]: Probabilities and experts, (N, k) each.
        """
        if self.slots is None or self.columns is not None:
            return self.stored(p).topk(k, -1)
        p, columns = self._best(p)  # equal ones in the order as ever
        p, index = p.topk(k, -1)
        return p, columns.gather(1, index)

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

    # ------------------------------------------------------------ copies

    def originals(self,
                  num: int,
                  usage: Optional[Tensor] = None) -> List[int]:
        """The stored experts that new ones are to be copies of.

        One of each place, the newest, from the most used one on.

        Args:
            num (int): How many.
            usage (Tensor, optional): How often each stored expert has run;
                the first ones are taken when None, or of other experts.
        """
        expert = {column: i for i, column in enumerate(self._columns())}
        found = [
            next((expert[c] for c in place if c in expert), None)
            for place in self._places()
        ]
        found = [i for i in found if i is not None]
        if usage is not None and len(usage) == len(expert):
            found.sort(key=lambda i: -float(usage[i]))
        return [found[i % len(found)] for i in range(num)]

    def like(self, originals: Sequence[int], num_experts: int) -> 'Router':
        """A router that gives what this one does, with copies of experts.

        Args:
            originals (Sequence[int]): The stored experts that the last new
                ones are copies of. It will never choose other new ones.
            num_experts (int): How many there are then.
        """
        router = deepcopy(self).requires_grad_(True)
        new = num_experts - self.num_experts
        if not new:
            return router
        weight, width = self._last.weight, self.width
        columns, places = self._columns(), self._places()
        of = [0] * (new - len(originals)) + [columns[i] for i in originals]
        for column, original in enumerate(of, width):
            if column >= width + new - len(originals):
                next(p for p in places if original in p).insert(0, column)
        most = max(map(len, places))
        router.slots = torch.tensor(
            [place + place[-1:] * (most - len(place)) for place in places],
            device=weight.device)
        added = AddedColumns(self._last.in_features, of)
        router.added.append(added.to(weight))
        if self.columns is not None:
            router.columns = torch.tensor(
                columns + list(range(width, width + new)),
                device=weight.device)
        return router

    @classmethod
    def shaped(cls, dims: int, shape: RouterShape) -> 'Router':
        """One as a file says, for its values to be loaded."""
        kept = None if shape.kept is None else range(shape.kept)
        router = cls(dims, shape.width - sum(shape.added), shape.kind, kept)
        hidden = router._last.in_features
        router.added.extend(
            AddedColumns(hidden, [0] * num) for num in shape.added)
        if shape.slots is not None:
            router.slots = torch.zeros(shape.slots, dtype=torch.long)
        return router

    def deepen(self, slots: Optional[Tensor]) -> None:
        """Make room for a list of places where other experts compete."""
        if slots is not None and self.slots is not None \
                and len(slots) == len(self.slots):
            self.slots = self.slots.new_zeros(slots.shape)

    def _places(self) -> List[List[int]]:
        if self.slots is None:
            return [[column] for column in range(self.width)]
        return [list(dict.fromkeys(place)) for place in self.slots.tolist()]
