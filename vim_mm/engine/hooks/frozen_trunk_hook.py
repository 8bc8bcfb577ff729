# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vim_mm.registry import HOOKS
from ..frozen import moved, note_trunks


@HOOKS.register_module()
class FrozenTrunkHook(Hook):
    """Say after training whether a frozen trunk is still what it was.

    A hook may set it to training mode or write to it, and checkpoints leave
    it out. Every runner has this hook; it costs two sums over the trunk.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Note what the trunks are, once other hooks have prepared them."""
        note_trunks(runner)

    def after_train(self, runner: Runner) -> None:
        """Tell of trunks that have changed, in the log."""
        said = moved(runner)
        if said:
            runner.logger.error(said)
