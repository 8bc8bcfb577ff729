# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vim_mm.models.checkpoint_notes import TRUNK_MOVED
from vim_mm.registry import HOOKS
from ..frozen import moved, note_trunks
from ..model_parts import saved_model


@HOOKS.register_module()
class FrozenTrunkHook(Hook):
    """Say whether a frozen trunk is still what it was before training.

    A hook may set it to training mode or write to it, and checkpoints leave
    it out. They note that it has changed, so that no module is saved of
    them. Every runner has this hook; it costs a sum over the trunk at each
    checkpoint.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Note what the trunks are, once other hooks have prepared them."""
        note_trunks(runner)

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict) -> None:
        """Note in a checkpoint what has changed, now or before a resume."""
        before = getattr(saved_model(runner.model), TRUNK_MOVED, '')
        said = moved(runner) or (before if runner._resume else '')
        if said:
            checkpoint['meta'][TRUNK_MOVED] = said

    def after_train(self, runner: Runner) -> None:
        """Tell of trunks that have changed, in the log."""
        said = moved(runner)
        if said:
            runner.logger.error(said)
