# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from vim_mm.features.cache import unwrap
from vim_mm.registry import HOOKS


@HOOKS.register_module()
class NormEvalHook(Hook):
    """Keep the backbone's batch norms in eval mode while it is fine-tuned.

    Statistics of few images, a batch at a time, are worse than those that a
    backbone comes with. Scale and shift still learn. It is ``norm_eval=True``
    for backbones that have no such argument (timm's).
    """

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Undo what ``model.train()`` did."""
        for module in unwrap(runner.model).backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
