# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_number
from ..moe.statistics import Routing, RoutingStatistics, information, padded


@MODELS.register_module()
class MutualInformation(RoutingStatistics):
    """Losses that let tasks and experts depend on each other.

    The mutual information I(T;E) = H(E) - H(E|T) of each layer of experts is
    raised: all experts are used, and each task uses few. As a step has one
    task, the joint P(T,E) is a running mean, and the loss is linear in what
    the present batch adds to it. Its gradient is that of -I(T;E).

    Args:
        weight (float): Weight of -I(T;E) per layer. Defaults to 5e-4.
        concentration (float): Weight of H(E|T) per layer, which lets a task
            use fewer experts, whatever the others do. Defaults to 0.
        exact (bool): Whether all tasks are in every step, as for images with
            labels of all kinds; then -I(T;E) of the batch is the loss.
            Defaults to False.
        eps (float): Added in logarithms. Defaults to 1e-4.
        momentum, start, usage_momentum, init_cfg: See
            :class:`RoutingStatistics`. A task has no loss of the running mean
            in its first ``start`` steps.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(self,
                 weight: float = 5e-4,
                 concentration: float = 0.,
                 exact: bool = False,
                 eps: float = 1e-4,
                 momentum: float = .99,
                 start: int = 100,
                 usage_momentum: float = .95,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(momentum, start, usage_momentum, init_cfg)
        for name, value in dict(
                weight=weight, concentration=concentration, eps=eps).items():
            check_number(value, name)
        self.weight = weight
        self.concentration = concentration
        self.exact = exact
        self.eps = eps

    def loss(self, seen: Routing, task: str) -> Dict[str, Tensor]:
        """Losses of one pass; in training the running means take it in.

        Args:
            seen (Routing): From :meth:`record`.
            task (str): The task of the step.

        Returns:
            dict[str, Tensor]: Sums over layers, times their weights; terms
            without weight are left out.

        Raises:
            ValueError: If routers have not run, or without a graph.
        """
        self._check(seen, task)
        if self.training:
            self.update(seen)
        losses = {}
        if self.weight:
            terms = self._exact(seen) if self.exact else [
                self._surrogate(seen, layer, task)
                for layer in self._ran(seen, task)
            ]
            losses['loss_mi'] = self.weight * torch.stack(terms).sum()
        if self.concentration:
            terms = [
                self._entropy(seen, layer, task)
                for layer in self._ran(seen, task)
            ]
            losses['loss_concentration'] = \
                self.concentration * torch.stack(terms).sum()
        return losses

    @staticmethod
    def _ran(seen: Routing, task: str) -> List[str]:
        return [layer for layer, name in seen.ran() if name == task]

    def _check(self, seen: Routing, task: str) -> None:
        ran = self._ran(seen, task)
        if not ran:
            raise ValueError(
                f"No router of task '{task}' was seen to run, and the loss of "
                'routing reads them; if the backbone is compiled, compile the '
                'whole model instead.')
        for layer in ran:
            router = seen.layers[layer].routers[task]
            learns = any(p.requires_grad for p in router.parameters())
            has_graph = seen.calls[layer, task][0].output.requires_grad
            if learns and torch.is_grad_enabled() and not has_graph:
                raise ValueError(
                    f"The router of layer '{layer}' ran without a graph, so "
                    'its loss would teach it nothing; switch reentrant '
                    'checkpoints off (`with_cp=False`).')

    # -------------------------------------------------------------- terms

    def _surrogate(self, seen: Routing, layer: str, task: str) -> Tensor:
        """The task's part of -I(T;E), linear in P(E|T) of the batch.

        Gradients are those of -I(T;E), and its values, summed over tasks.
        """
        rows = self.rows(layer)
        joint = padded([row.mean for row in rows.values()]) / len(rows)
        own = rows[task].mean / len(rows)
        ratio = (own + self.eps) / (joint.sum(0)[:len(own)] + self.eps)
        return self._linear(seen, layer, task, -(ratio * len(rows)).log())

    def _entropy(self, seen: Routing, layer: str, task: str) -> Tensor:
        """The same for H(E|T)."""
        own = self.rows(layer)[task].mean
        return self._linear(seen, layer, task, -(own + self.eps).log())

    def _linear(self, seen: Routing, layer: str, task: str,
                slope: Tensor) -> Tensor:
        rows = self.rows(layer)
        q = seen.probabilities(layer, task).mean(0)
        # zero, not absent, so that the host need not ask how many there were
        started = rows[task].count > self.start
        return started * (q * slope.to(q)).sum() / len(rows)

    def _exact(self, seen: Routing) -> List[Tensor]:
        terms = []
        for layer in self.layers:
            tasks = list(self.rows(layer))
            missing = [t for t in tasks if not seen.calls[layer, t]]
            if missing:
                raise ValueError(
                    f'`routing.exact` needs all tasks in every step, but '
                    f"{missing} did not run in layer '{layer}'; set it to "
                    'False where a step has one task.')
            terms.append(
                mutual_information_loss(
                    [seen.probabilities(layer, t) for t in tasks], self.eps))
        return terms


def mutual_information_loss(p: Sequence[Tensor], eps: float = 1e-4) -> Tensor:
    """-I(T;E) of one layer where all tasks are in a step.

    Args:
        p (Sequence[Tensor]): (N, E) probabilities of the experts for each
            task's tokens. All tasks weigh the same, ``P(T) = 1/T``, whatever
            their N.
        eps (float): Added to the ratio in the logarithm. Defaults to 1e-4.
    """
    return -information([each.mean(0) for each in p], eps)
