# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Callable, Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor

from vim_mm.registry import MODELS
from .ens_moe import EnsMoE


@MODELS.register_module()
class RoutedMoE(EnsMoE):
    """Ens-MoE whose logits also depend on the image. Ours.

    ``g = softmax(a + W r / C)`` with ``r`` the mean of the C-wide tokens that
    the slot reads, standardised per image. ``W`` starts at zero, so a fresh
    router is :class:`EnsMoE`. Divided by C, a step of Adam moves a logit by
    about as much through ``W`` as through ``a``: one learning rate fits both.
    Arguments are those of :class:`EnsMoE`.
    """

    per_picture = True
    module_dims = dict(logits=1, router=0)

    def slot_sizes(self, task: str) -> Dict[str, List[int]]:
        """See :meth:`LearnedFusion.slot_sizes`."""
        widths = list(self.task_slots[task].values())
        return {**super().slot_sizes(task), 'router': widths}

    def start_values(self, task: str) -> Dict[str, Tensor]:
        """Zero logits and a zero router: uniform gates."""
        values = super().start_values(task)
        # one tensor for all slots: slots that no output reads would leave a
        # parameter of their own without gradient, and stall data parallelism
        columns = values['logits'].shape[1]
        router = torch.zeros(columns, sum(self.slot_sizes(task)['router']))
        return dict(values, router=router)

    def rows(self, task: str) -> Callable[[int, Tensor], Tensor]:
        """See :meth:`BaseFusion.rows`; (B, N)."""
        if self.is_off(task):
            return super().rows(task)
        logits, num = self.logits[task], len(self.task_modules[task])
        widths = self.slot_sizes(task)['router']
        routers = self.router[task].split(widths, dim=1)

        def row(place: int, x: Tensor) -> Tensor:
            mean = F.layer_norm(x.mean(dim=1), x.shape[-1:])
            routed = F.linear(mean, routers[place]) / widths[place]
            return self.scaled(task, self.weights(logits[place] + routed, num))

        return row
