# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether the experts of a layer share the work, and differ."""

from typing import List, Mapping, NamedTuple, Optional

import torch
from torch import Tensor, nn

from .moe_layer import MoELayer
from .statistics import RoutingStatistics, information, padded


class LayerState(NamedTuple):
    """One layer's routing and experts in a few numbers.

    Attributes:
        experts (int): Number of stored experts.
        k (int): Experts per token.
        information (float, optional): I(T;E) in nats, of the routers'
            probabilities; None until two tasks have run.
        chosen (float, optional): The same of the k best experts. It is larger
            where probabilities hardly differ.
        busiest (float): Share of all choices that the busiest expert gets.
        dead (int): Number of experts that hardly any task's token chooses.
        spread (float): Effective number of experts, the exponential of the
            entropy of their shares: E if all are used equally, k if all
            tokens choose the same.
        similarity (float, optional): Mean cosine of the weights of two
            experts; None where a process holds shards of them.
        copies (int): Number of experts whose weights nearly are another's.
    """
    experts: int
    k: int
    information: Optional[float]
    chosen: Optional[float]
    busiest: float
    dead: int
    spread: float
    similarity: Optional[float]
    copies: int

    def has_collapsed(self, spread: float) -> bool:
        """Whether hardly more than k experts share the work.

        Args:
            spread (float): How many times k is hardly more.
        """
        return self.spread <= min(spread * self.k, .75 * self.experts)

    @property
    def has_copies(self) -> bool:
        """Whether half of the experts or more are copies of others."""
        return 2 * self.copies >= self.experts


@torch.no_grad()
def layer_state(statistics: RoutingStatistics,
                name: str,
                layer: MoELayer,
                dead: float = 1e-3,
                copy: float = .999) -> Optional[LayerState]:
    """Sum one layer up.

    Args:
        statistics (RoutingStatistics): Bound to its backbone.
        name (str): The layer's name in it.
        layer (MoELayer): The layer.
        dead (float): Experts in the k best of a smaller share of each task's
            tokens count as dead. Defaults to 1e-3.
        copy (float): Experts of a larger cosine count as copies. Defaults to
            .999.

    Returns:
        LayerState, optional: None if no task has run.
    """
    rows = statistics.seen_rows(name)
    if not rows:
        return None
    usage = padded([row.usage for row in rows.values()])
    share = usage.mean(0) / usage.mean(0).sum()
    cosine = similarity(layer.experts)
    several = len(rows) > 1
    chosen = [row.usage / row.usage.sum() for row in rows.values()]
    return LayerState(
        experts=len(share),
        k=layer.k,
        information=float(statistics.information(name)) if several else None,
        chosen=float(information(chosen)) if several else None,
        busiest=float(share.max()),
        dead=int((usage.amax(0) < dead).sum()),
        spread=float(torch.special.entr(share).sum().exp()),
        similarity=float(cosine.mean()) if len(cosine) else None,
        copies=int((cosine > copy).any(1).sum()))


def similarity(experts: nn.Module) -> Tensor:
    """Cosines of the weights of each expert and the others.

    Args:
        experts (nn.Module): Experts in ``groups``.

    Returns:
        Tensor: (E, E - 1); empty where a process holds shards of them.
    """
    groups = [list(group.parameters()) for group in experts.groups]
    if any(param.dim() < 2 for group in groups for param in group):
        return torch.zeros(0, 0)
    products = 0.
    for parts in zip(*groups):
        flat = torch.cat([part.flatten(1) for part in parts]).float()
        products = products + flat @ flat.t()
    length = products.diagonal().clamp(min=1e-24).sqrt()
    cosine = products / length / length[:, None]
    others = ~torch.eye(len(cosine), dtype=bool, device=cosine.device)
    return cosine[others].unflatten(0, (len(cosine), -1))


def complaints(states: Mapping[str, LayerState],
               spread: float = 1.25) -> List[str]:
    """One sentence for each thing that is wrong with the layers.

    Args:
        states (Mapping[str, LayerState]): Layers by name.
        spread (float): See :meth:`LayerState.has_collapsed`. Defaults to
            1.25.
    """
    found = []
    bad = [n for n, state in states.items() if state.has_collapsed(spread)]
    if bad:
        worst = states[bad[0]]
        found.append(
            f'Routing has collapsed in {len(bad)} of {len(states)} layers of '
            f"experts (in '{bad[0]}' as few as {worst.spread:.1f} of "
            f'{worst.experts} share the work, and each token runs {worst.k}); '
            'give the loss of mutual information more weight, or routers a '
            'smaller learning rate.')
    bad = [name for name, state in states.items() if state.has_copies]
    if bad:
        worst = states[bad[0]]
        found.append(
            f'Experts are copies of each other in {len(bad)} of {len(states)} '
            f"layers (in '{bad[0]}' {worst.copies} of {worst.experts}); "
            'perturb them where they start from a dense layer.')
    return found
