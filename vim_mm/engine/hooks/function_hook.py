# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vim_mm.models.function_notes import KEY, check_modules, function_notes
from vim_mm.registry import HOOKS
from vim_mm.utils.wrappers import unwrap
from ..model_parts import saved_model


@HOOKS.register_module()
class FunctionHook(Hook):
    """Let checkpoints say what of a model's function is in no tensor.

    They are compared with it as they are loaded, see
    :func:`vim_mm.models.function_notes.check_function`. Every runner has this
    hook; of models without a part of ours it notes how images are normalised.
    """

    def before_run(self, runner: Runner) -> None:
        """Tell of modules of a zoo that learned from other images."""
        check_modules(unwrap(runner.model))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note what is in no tensor."""
        notes = function_notes(saved_model(runner.model))
        if notes:
            checkpoint['meta'][KEY] = notes
