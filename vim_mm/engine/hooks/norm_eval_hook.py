# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from vim_mm.registry import HOOKS
from vim_mm.utils.wrappers import unwrap


@HOOKS.register_module()
class NormEvalHook(Hook):
    """Keep the backbone's batch norms in eval mode while it is fine-tuned.

    Statistics of few images, a batch at a time, are worse than those that a
    backbone comes with. Scale and shift still learn. It is ``norm_eval=True``
    for backbones that have no such argument (timm's). Of a model that holds
    others it is about all of their backbones.
    """

    def before_train(self, runner: Runner) -> None:
        """Refuse a model without a backbone.

        Raises:
            ValueError: If there is none.
        """
        model = unwrap(runner.model)
        if not any(_is_inside(name) for name, _ in model.named_modules()):
            raise ValueError(
                f'NormEvalHook works on `backbone`, and {type(model).__name__}'
                ' has none, nor a model inside it; leave the hook out.')

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Undo what ``model.train()`` did."""
        for name, module in unwrap(runner.model).named_modules():
            if isinstance(module, _BatchNorm) and _is_inside(name):
                module.eval()


def _is_inside(name: str) -> bool:
    return 'backbone' in name.split('.')
