# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Optional

from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from vim_mm.evaluation.unlike_halves import DEALS
from vim_mm.models.backbones.blank_image import in_eval
from vim_mm.models.fusion import FusionHolder, LearnedFusion
from vim_mm.registry import HOOKS
from vim_mm.utils.arguments import check_width
from vim_mm.utils.seeds import seeded
from ..divided import ELSEWHERE
from ..loaded import spared
from ..model_parts import fusing_part, gates_of, part_of, restart_averages
from ..module_trials import HEAD_OPTIMIZER, ModuleTrials
from ..stopping import stop_if_asked


@HOOKS.register_module()
class ScoreGatesHook(Hook):
    """Start the gates where modules help on held-out images, if any does.

    A softmax over K modules that starts uniform divides each by K although
    it was trained at weight one, gates that learn beside a head which already
    fits the few images get no gradient, and on data that the zoo was not made
    for every module may harm. So before training the bare trunk, each module,
    all at an equal share, and modules that enter one by one at the strength
    that suits them are scored: a head is fitted on one half of the training
    images and judged on the other, where the halves look as unlike as they
    can. The gates of every slot start from what scores best. If nothing is
    better than the bare trunk by more than the noise of that, all weights are
    zero and stay so: the run is that of the frozen trunk. For a fusion in the
    trunk or in the neck. Ours, not the paper's. See :class:`ModuleTrials`.

    Args:
        deals (int): Ways in which the images are split into halves, see
            :func:`unlike_halves`. Defaults to 8.
        num_extra_tokens (int, optional): Class and register tokens in the
            trunk's output, for classification. Defaults to the trunk's own.
        max_pictures (int): Images a process, in whole batches. Defaults to
            2000, like ``zoo.py rank``.
        cache (str, optional): Folder where scores are kept, such as that of
            ``zoo.py rank --cache``, so that none is computed twice. Defaults
            to None.
        task (str, optional): The task of a multi-task model to work on.
            Defaults to None, for a model of one task.
        keep_loaded (bool): Whether gates that were loaded from ``load_from``
            stay as they are. Defaults to True.

    The scores are kept in ``runner.message_hub`` as ``module_scores``, and
    what was chosen as ``module_weights``.
    """

    # before WarmHeadHook, whose features depend on the gates
    priority = 'ABOVE_NORMAL'
    needs_whole = ELSEWHERE

    def __init__(self,
                 deals: int = DEALS,
                 num_extra_tokens: Optional[int] = None,
                 max_pictures: int = 2000,
                 cache: Optional[str] = None,
                 task: Optional[str] = None,
                 keep_loaded: bool = True) -> None:
        check_width(max_pictures, 'ScoreGatesHook.max_pictures')
        self.deals = deals
        self.num_extra_tokens = num_extra_tokens
        self.max_pictures = max_pictures
        self.cache = cache
        self.task = task
        self.keep_loaded = keep_loaded

    def before_train(self, runner: Runner) -> None:
        """Score the task's modules and start its gates.

        Raises:
            ValueError: If the backbone's fusion learns no weights, or no
                process has images that can be scored.
        """
        if runner.iter > 0:  # resumed
            return
        with part_of(runner, self.task, 'ScoreGatesHook') as (model, loader):
            if spared(runner, 'ScoreGatesHook', gates_of(fusing_part(model)),
                      self.keep_loaded):
                return
            self._start(runner, model, loader)
        restart_averages(runner)

    def _start(self, runner: Runner, model: BaseModel,
               loader: DataLoader) -> None:
        part = fusing_part(model)
        if not isinstance(part.fusion, LearnedFusion):
            raise ValueError('ScoreGatesHook starts the weights of a fusion '
                             'such as EnsMoE; set `model.backbone.fusion`.')
        with seeded(0), in_eval(model):
            choice = self.trials(runner, model, loader).choose()
        stop_if_asked()
        runner.logger.info(f'ScoreGatesHook: {choice}')
        if not any(choice.weights.values()) and (reason := must_run(
                model, part)):
            names = part.fusion.task_modules[part.task]
            weights = next(part.fusion.parameters()).new_full(
                (len(names), ), 1 / len(names))
            part.fusion.set_weights(part.task, weights)
            choice.weights = dict(zip(names, weights.tolist()))
            runner.logger.warning(f'ScoreGatesHook: {reason}, so weights '
                                  'start uniform all the same.')
        runner.message_hub.update_info('module_scores', choice.scores)
        runner.message_hub.update_info('module_weights', choice.weights)

    def trials(self, runner: Runner, model: BaseModel,
               loader: DataLoader) -> ModuleTrials:
        """Held-out scores of a model's modules in this run."""
        return trials_of(
            runner,
            model,
            loader,
            num_extra_tokens=self.num_extra_tokens,
            max_pictures=self.max_pictures,
            deals=self.deals,
            cache=self.cache)


def trials_of(runner: Runner, model: BaseModel, loader: DataLoader,
              **kwargs: object) -> ModuleTrials:
    """Trials whose own head is warmed as the run warms it."""
    optimizer = next((hook.optimizer for hook in runner.hooks
                      if type(hook).__name__ == 'WarmHeadHook'),
                     HEAD_OPTIMIZER)
    return ModuleTrials.of_task(
        model, loader, head_optimizer=optimizer, **kwargs)


def must_run(model: BaseModel, part: FusionHolder) -> str:
    """Why a task cannot do without its modules, if it cannot."""
    members = model.backbone.bank.members
    learning = [
        name for name in part.fusion.task_modules[part.task]
        if any(p.requires_grad for p in members[name].parameters())
    ]
    if learning:
        return f'{learning} are about to learn'
    if part is not model.backbone and len(part.stream_names) == 1:
        return ('a neck cannot leave out its only stream (set '
                '`model.backbone.fusion` instead)')
    return ''
