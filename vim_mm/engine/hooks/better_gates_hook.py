# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from copy import deepcopy
from typing import Dict, Optional

from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from vim_mm.evaluation.unlike_halves import DEALS
from vim_mm.models.backbones.blank_image import in_eval
from vim_mm.models.fusion import FusionHolder, LearnedFusion
from vim_mm.models.pixels import check_form
from vim_mm.registry import HOOKS
from vim_mm.utils.arguments import check_is_config, check_width
from vim_mm.utils.data import check_data
from vim_mm.utils.seeds import seeded
from ..better_gates import keep_better
from ..divided import LEAVE_OUT
from ..model_parts import fusing_part, part_of, restart_averages
from .score_gates_hook import must_run, trials_of
from .warm_head_hook import WarmHeadHook


@HOOKS.register_module()
class BetterGatesHook(Hook):
    """Keep learned gates only if they help more than their start.

    Before the last checkpoint of a run is written, the gates as they are, as
    they started, and the bare trunk are compared on held-out images. If the
    start, or the trunk, is as good, it takes their place, and neck and head
    are warmed again as ``WarmHeadHook`` of the run warms them. Ours.

    Args:
        dataloader (dict, optional): Config of a loader of images that the run
            does not train on, which are halved as for ScoreGatesHook.
            Defaults to None, the training images: the head that judges is
            then fitted anew on one half, but the gates know both.
        deals (int): See :class:`ScoreGatesHook`. Defaults to 8.
        num_extra_tokens (int, optional): See :class:`ScoreGatesHook`.
        max_pictures (int): See :class:`ScoreGatesHook`. Defaults to 2000.
        task (str, optional): The task of a multi-task model to work on.
            Defaults to None, for a model of one task.
    """

    # after hooks that start gates (40, 45), before WarmHeadHook (50), which
    # trains those of a neck, and before checkpoints are written
    priority = 47
    needs_whole = LEAVE_OUT

    def __init__(self,
                 dataloader: Optional[dict] = None,
                 deals: int = DEALS,
                 num_extra_tokens: Optional[int] = None,
                 max_pictures: int = 2000,
                 task: Optional[str] = None) -> None:
        self.dataloader = dataloader
        self.deals = deals
        self.num_extra_tokens = num_extra_tokens
        self.max_pictures = max_pictures
        self.task = task
        check_width(max_pictures, 'BetterGatesHook.max_pictures')
        self.start: Optional[Dict[str, Tensor]] = None
        self._held_out: Optional[DataLoader] = None

    def before_train(self, runner: Runner) -> None:
        """Remember where the gates start.

        Raises:
            FileNotFoundError: If images of ``dataloader`` are not there.
            ValueError: If the model has no gates that learn, or cannot read
                these images.
        """
        with part_of(runner, self.task, 'BetterGatesHook') as (model, _):
            fusion = fusing_part(model).fusion
        if not isinstance(fusion, LearnedFusion):
            raise ValueError('BetterGatesHook looks at the weights of a '
                             'fusion such as EnsMoE; set '
                             '`model.backbone.fusion`, or leave it out.')
        if runner.iter == 0:  # else resumed: only the trunk is left
            self.start = deepcopy(fusion.state_dict())
        self._held_out = self._build(runner, model)

    def _build(self, runner: Runner, model: BaseModel) -> Optional[DataLoader]:
        """The loader of other images, which is needed after hours only."""
        if self.dataloader is None:
            return None
        check_is_config(self.dataloader, 'BetterGatesHook.dataloader')
        check_data(dict(runner.cfg, BetterGatesHook=self.dataloader),
                   ('BetterGatesHook', ))
        try:
            loader = Runner.build_dataloader(self.dataloader, runner.seed)
        except TypeError as error:
            raise ValueError('`BetterGatesHook.dataloader` is no loader: '
                             f'{error}.') from error
        check_form(model, loader.collate_fn([loader.dataset[0]]))
        return loader

    def after_train_iter(self, runner: Runner, batch_idx: int, **_) -> None:
        """Compare after the last iteration."""
        if not self.is_last_train_iter(runner):
            return
        with part_of(runner, self.task, 'BetterGatesHook') as (model, loader):
            part = fusing_part(model)
            if part.fusion.is_off(part.task) or not self._learned(part):
                return
            changed = self._compare(runner, model, part, loader)
            if changed:
                self._warm_again(runner, model, loader)
        if changed:
            restart_averages(runner)

    def _learned(self, part: FusionHolder) -> bool:
        """Whether the gates are not where they started."""
        return self.start is None or not same(part.fusion.state_dict(),
                                              self.start)

    def _compare(self, runner: Runner, model: BaseModel, part: FusionHolder,
                 loader: DataLoader) -> bool:
        learned = deepcopy(part.fusion.state_dict())
        loader = self._held_out or loader
        with seeded(runner.seed or 0), in_eval(model):
            trials = trials_of(
                runner,
                model,
                loader,
                num_extra_tokens=self.num_extra_tokens,
                max_pictures=self.max_pictures,
                deals=self.deals,
                alone=False)
            said = keep_better(trials, self.start or learned, part,
                               must_run(model, part))
        runner.logger.info(f'BetterGatesHook: {said}')
        return not same(part.fusion.state_dict(), learned)

    @staticmethod
    def _warm_again(runner: Runner, model: BaseModel,
                    loader: DataLoader) -> None:
        hook = next((h for h in runner.hooks if isinstance(h, WarmHeadHook)),
                    None)
        if hook is None:
            runner.logger.warning(
                'BetterGatesHook: the head has learned beside other gates, '
                'and no WarmHeadHook says how to warm it again.')
        elif not hook.again:  # it does so itself, right after this
            hook.warm_again(runner, model, loader)


def same(first: Dict[str, Tensor], second: Dict[str, Tensor]) -> bool:
    """Whether two states hold equal tensors."""
    return all(first[key].equal(value) for key, value in second.items())
