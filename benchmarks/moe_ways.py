# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Other ways to send tokens through experts, on the parameters of ours.

Each is written from a description of what others do, for experts with biases
and GELU; see the classes.
"""

from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from vim_mm.models.moe import Experts, MoEMlp


class Loop(Experts):
    """What comes to mind first: each expert picks its tokens and adds."""

    def forward(self, x: Tensor, gates: Tensor, index: Tensor,
                num: int) -> Tensor:
        w1, b1, w2, b2 = self.weights(num)
        gates = gates.to(x.dtype)
        out = torch.zeros_like(x)
        for expert in range(len(w1)):
            tokens, place = (index == expert).nonzero(as_tuple=True)
            h = self.act(F.linear(x[tokens], w1[expert], b1[expert]))
            y = F.linear(h, w2[expert], b2[expert])
            out.index_add_(0, tokens, y * gates[tokens, place, None])
        return out


class _ParallelLinear(Function):
    """One product per expert into one buffer; gradients alike."""

    @staticmethod
    def forward(ctx, x: Tensor, counts: List[int], weight: Tensor,
                bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        out = x.new_empty(x.size(0), weight.size(2))
        for rows, mine, w, b in zip(
                x.split(counts), out.split(counts), weight, bias):
            torch.mm(rows, w, out=mine)
            mine += b
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        grad_bias = grad.new_empty(weight.size(0), weight.size(2))
        for expert, (rows, mine, out) in enumerate(
                zip(
                    x.split(ctx.counts), grad.split(ctx.counts),
                    grad_x.split(ctx.counts))):
            torch.mm(mine, weight[expert].t(), out=out)
            torch.mm(rows.t(), mine, out=grad_weight[expert])
            torch.sum(mine, 0, out=grad_bias[expert])
        return grad_x, None, grad_weight, grad_bias


class ModSquad(Experts):
    """Mod-Squad's: sorted tokens, products with counts on the host."""

    def forward(self, x: Tensor, gates: Tensor, index: Tensor,
                num: int) -> Tensor:
        w1, b1, w2, b2 = self.weights(num)
        gates = gates.to(x.dtype)
        experts, order = index.flatten().sort(stable=True)
        counts = experts.bincount(minlength=len(w1)).tolist()
        tokens = order.div(index.size(1), rounding_mode='floor')
        h = self.act(
            _ParallelLinear.apply(x[tokens], counts, w1.transpose(1, 2), b1))
        y = _ParallelLinear.apply(h, counts, w2.transpose(1, 2), b2)
        y = y * gates.flatten()[order].unsqueeze(1)
        return torch.zeros_like(x).index_add(0, tokens, y)


class Transformers(Experts):
    """The scheme of ``grouped_mm`` experts in transformers 5.24.

    Written again, so that any version of transformers may be installed.
    """

    def forward(self, x: Tensor, gates: Tensor, index: Tensor,
                num: int) -> Tensor:
        w1, b1, w2, b2 = self.weights(num)
        gates = gates.to(x.dtype)
        experts, order = index.flatten().sort()
        counts = torch.histc(
            experts.int() if x.is_cuda else experts.float(),
            bins=len(w1),
            min=0,
            max=len(w1) - 1)
        ends = counts.cumsum(0, dtype=torch.int32)
        h = x[order // index.size(1)]
        h = F.grouped_mm(h, w1.transpose(1, 2), offs=ends) + b1[experts]
        h = F.grouped_mm(self.act(h), w2.transpose(1, 2), offs=ends)
        h = (h + b2[experts]) * gates.flatten()[order].unsqueeze(1)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel(), device=order.device)
        return h[inverse].unflatten(0, (-1, index.size(1))).sum(1)


WAYS = {
    'loop over experts': Loop,
    "Mod-Squad's way": ModSquad,
    "transformers' grouped_mm": Transformers,
}


def like(layer: MoEMlp, way: str) -> MoEMlp:
    """A layer with the same parameters that runs experts another way."""
    experts = layer.experts
    other = WAYS[way](experts.dims, experts.hidden, [])
    other.groups = experts.groups
    twin = MoEMlp(layer.dims, experts.hidden, len(experts), layer.k)
    twin.routers, twin.experts = layer.routers, other
    return twin
