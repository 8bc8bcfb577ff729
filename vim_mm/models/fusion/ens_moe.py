# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Optional

import torch
from torch import Tensor

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_width
from .base_fusion import Occupied, Tasks
from .learned_fusion import LearnedFusion

#: What weights are shown under that a softmax gives to no module.
ZERO_MODULE = 'zero module'
#: The share of a module that is left out at the start: a softmax has no zero.
NOTHING = 1e-4


@MODELS.register_module()
class EnsMoE(LearnedFusion):
    """Ens-MoE of ViM: a softmax over learned logits, per task and slot.

    ``g = softmax over the top-k entries of a, 0 elsewhere`` and
    ``ViM(z) = sum_i g_i M_i(z)``, with one input-independent logit vector
    ``a`` per task, layer and branch (ViM, arXiv 2303.06911).

    Args:
        modules, tasks, init_cfg: See :class:`BaseFusion`.
        top_k (int, optional): Number of modules that take part; all when
            None, "MoE-full". Defaults to None.
        zero_module (bool): Let one more logit, the last, weigh a module that
            adds nothing, so that gates can switch the others off. Ours, not
            the paper's. Defaults to False.
        learn (bool): Whether logits are trained. Defaults to True.

    Raises:
        ValueError: If ``top_k`` is no number of modules.
    """

    def __init__(self,
                 modules: Occupied,
                 tasks: Tasks = ('default', ),
                 top_k: Optional[int] = None,
                 zero_module: bool = False,
                 learn: bool = True,
                 init_cfg: Optional[dict] = None) -> None:
        if top_k is not None:
            check_width(top_k, 'top_k')
        self.top_k = top_k
        self.zero_module = zero_module
        super().__init__(modules, tasks, learn, init_cfg)

    def function_settings(self) -> Dict[str, dict]:
        """See :meth:`BaseFusion.function_settings`."""
        said = super().function_settings()['']
        return {'': dict(said, numbers='logits', top_k=self.top_k)}

    def start_values(self, task: str) -> Dict[str, Tensor]:
        """Zero logits: uniform gates."""
        slots, num = len(self.task_slots[task]), len(self.task_modules[task])
        return dict(logits=torch.zeros(slots, num + self.zero_module))

    @torch.no_grad()
    def set_logits(self, task: str, logits: Tensor) -> None:
        """Start a task's gates from given logits.

        Args:
            task (str): Name of the task.
            logits (Tensor): Shape (N, ), the same for all slots, or (S, N).
                One more column sets the zero module's, which otherwise stays.
        """
        num = len(self.task_modules[task])
        if logits.shape[-1] == num:
            target = self.logits[task][:, :num]
        else:
            target = self.logits[task]
        target.copy_(logits.expand_as(target))
        self.changes += 1

    def set_weights(self, task: str, weights: Tensor) -> None:
        """See :meth:`LearnedFusion.set_weights`.

        What they lack to one is the zero module's; without one, or if their
        sum is larger, it is the strength of the task.
        """
        total = round(float(weights.double().sum()), 6)
        if not total:
            return self.turn_off(task)
        rest = self.zero_module and self.top_k is None and total <= 1
        self.set_strength(task, 1. if rest else total)
        shares = weights if rest else weights / total
        if self.zero_module:
            last = 1 - total if rest else 0.
            shares = torch.cat([shares, shares.new_tensor([last])])
        self.set_logits(task, shares.clamp(min=NOTHING).log())

    def most(self, task: str) -> int:
        """See :meth:`LearnedFusion.most`."""
        num = len(self.task_modules[task])
        return num if self.top_k is None else min(num, self.top_k)

    def sums_to_one(self, task: str) -> bool:
        """See :meth:`BaseFusion.sums_to_one`."""
        return not self.zero_module and self.strengths[task] == 1

    def learned_gates(self, task: str) -> Tensor:
        """See :meth:`LearnedFusion.learned_gates`; rows sum to one, or to
        less beside a zero module.
        """
        return self.weights(self.logits[task], len(self.task_modules[task]))

    def shown_gates(self, task: str) -> Dict[str, Dict[str, float]]:
        """See :meth:`BaseFusion.shown_gates`; with the zero module's."""
        shown = super().shown_gates(task)
        if self.zero_module:
            logits = self.logits[task].detach()
            rest = 1 - self.weights(logits, logits.shape[1] - 1).sum(-1)
            for row, weight in zip(shown.values(), rest.tolist()):
                row[ZERO_MODULE] = weight
        return shown

    def weights(self, logits: Tensor, num: int) -> Tensor:
        """Weights of the first ``num`` columns of (..., C) logits."""
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            top, index = logits.topk(self.top_k, dim=-1)
            weights = torch.zeros_like(logits).scatter(
                -1, index, top.softmax(dim=-1))
        else:
            weights = logits.softmax(dim=-1)
        return weights[..., :num]


@MODELS.register_module()
class ParameterMerge(EnsMoE):
    """One module whose parameters are the gated sum of all modules'.

    ``W = sum_i g_i W_i`` and ``b = sum_i g_i b_i``, then a single adapter
    runs. It costs as much as one module, needs modules of one kind and width,
    and is another function than the ensemble of :class:`EnsMoE`: adapters are
    not linear. The release of ViM holds this form as unused code. Arguments
    are those of :class:`EnsMoE`; for given weights see :class:`FixedMerge`.
    """

    merges = True
