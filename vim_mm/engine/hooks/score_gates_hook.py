# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Any, Dict, List, Optional

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vim_mm.evaluation.ridge import held_out_scores
from vim_mm.evaluation.unlike_halves import DEALS
from vim_mm.features.module_rows import TRUNK, module_rows
from vim_mm.models.fusion import FusionHolder, LearnedFusion
from vim_mm.registry import HOOKS
from ..loaded import spared
from ..model_parts import (extra_tokens, fusing_part, gates_of, part_of,
                           restart_averages)

#: The score of weighing no module at all, where a fusion can.
ZERO = 'zero module'


@HOOKS.register_module()
class ScoreGatesHook(Hook):
    """Start the gates from each module's few-shot score, not from uniform.

    A softmax over K modules that starts uniform divides each by K although
    it was trained at weight one, and gates that learn beside a head which
    already fits the few images get no gradient. So before training every
    module is scored alone: one pass over the training images, a closed-form
    ridge head on one half of them, its accuracy on the other, where the
    halves look as unlike as they can. The gates of every slot start from the
    scores: a softmax at logits ``score / temperature``, :class:`LinearMoE`
    by their ranks. For a fusion in the trunk or in the neck. Ours, not the
    paper's.

    Args:
        temperature (float): A softmax's scores are divided by it. Defaults to
            0.1.
        deals (int): Ways in which the images are split into halves, see
            :func:`unlike_halves`. Defaults to 8.
        num_extra_tokens (int, optional): Class and register tokens in the
            trunk's output, for classification. Defaults to the trunk's own.
        max_pictures (int): Images a process, in whole batches. Defaults to
            2000, like ``zoo.py rank``.
        task (str, optional): The task of a multi-task model to work on.
            Defaults to None, for a model of one task.
        keep_loaded (bool): Whether gates that were loaded from ``load_from``
            stay as they are. Defaults to True.

    The scores are kept in ``runner.message_hub`` as ``module_scores``.
    """

    # before WarmHeadHook, whose features depend on the gates
    priority = 'ABOVE_NORMAL'

    def __init__(self,
                 temperature: float = 0.1,
                 deals: int = DEALS,
                 num_extra_tokens: Optional[int] = None,
                 max_pictures: int = 2000,
                 task: Optional[str] = None,
                 keep_loaded: bool = True) -> None:
        self.temperature = temperature
        self.deals = deals
        self.num_extra_tokens = num_extra_tokens
        self.max_pictures = max_pictures
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
        with self._part(runner) as (model, _):
            part = fusing_part(model)
            if spared(runner, 'ScoreGatesHook', gates_of(part),
                      self.keep_loaded):
                return
            self._start(runner, part)
        restart_averages(runner)

    def _part(self, runner: Runner) -> Any:
        return part_of(runner, self.task, 'ScoreGatesHook')

    def _start(self, runner: Runner, part: FusionHolder) -> None:
        if not isinstance(part.fusion, LearnedFusion):
            raise ValueError('ScoreGatesHook starts the weights of a fusion '
                             'such as EnsMoE; set `model.backbone.fusion`.')
        scores = self._averaged(runner)
        runner.message_hub.update_info('module_scores', scores)
        runner.logger.info('ScoreGatesHook: ' +
                           ', '.join(f'{name} {score:.3f}'
                                     for name, score in scores.items()))
        values = torch.tensor(
            list(scores.values()), device=_device(part.fusion))
        part.fusion.set_scores(part.task, values, self.temperature)

    def _averaged(self, runner: Runner) -> Dict[str, float]:
        """Scores over the processes whose images could be scored.

        Each has its own share, in which no class may occur twice; it must not
        leave the others waiting.
        """
        with self._part(runner) as (model, _):
            part = fusing_part(model)
        names = self._names(part)
        try:
            scores, reason = self.scores(runner), None
            values = [*scores.values(), 1.]
        except ValueError as error:
            values, reason = [0.] * (len(names) + 1), error
        total = torch.tensor(values, device=_device(part.fusion))
        all_reduce(total)
        *total, count = total.tolist()
        if not count:
            raise reason
        return {name: value / count for name, value in zip(names, total)}

    @staticmethod
    def _names(part: FusionHolder) -> List[str]:
        zero = getattr(part.fusion, 'zero_module', False)
        return part.fusion.task_modules[part.task] + [ZERO] * zero

    def scores(self, runner: Runner) -> Dict[str, float]:
        """Held-out score of every module of the task, alone, in this process.

        A fusion's zero module has the score of the bare trunk.

        Raises:
            ValueError: If the images cannot be scored.
        """
        with self._part(runner) as (model, loader):
            part, training = fusing_part(model), model.training
            model.eval()
            rows = module_rows(model, loader,
                               part.fusion.task_modules[part.task],
                               extra_tokens(model, self.num_extra_tokens),
                               self.max_pictures)
            model.train(training)
        scores = held_out_scores(rows, self.deals)
        scores[ZERO] = scores.pop(TRUNK)
        return {name: scores[name] for name in self._names(part)}


def _device(fusion: LearnedFusion) -> torch.device:
    return next(fusion.parameters()).device
