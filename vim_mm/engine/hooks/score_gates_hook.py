# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Optional

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vim_mm.models.fusion import LearnedFusion
from vim_mm.registry import HOOKS
from ..feature_cache import unwrap
from ..model_parts import restart_averages
from ..module_rows import TRUNK, module_rows
from ..transfer_score import held_out_score
from ..unlike_halves import unlike_halves


@HOOKS.register_module()
class ScoreGatesHook(Hook):
    """Start the gates from each module's few-shot score, not from uniform.

    A softmax over K modules that starts uniform divides each by K although
    it was trained at weight one, and gates that learn beside a head which
    already fits the few pictures get no gradient. So before training every
    module is scored alone: one pass over the training pictures, a closed-form
    ridge head on one half of them, its accuracy on the other, where the
    halves look as unlike as they can. The gates of every slot start from the
    scores: a softmax at logits ``score / temperature``, :class:`LinearMoE`
    by their ranks. Ours, not the paper's.

    Args:
        temperature (float): A softmax's scores are divided by it. Defaults to
            0.1.
        deals (int): Ways in which the pictures are dealt into halves, see
            :func:`unlike_halves`. Defaults to 8.
        num_extra_tokens (int): Class and register tokens in the trunk's
            output, for classification. Defaults to 1.
        max_batches (int, optional): Batches a process, for large data sets.
            Defaults to None, which is all.

    The scores are kept in ``runner.message_hub`` as ``module_scores``.
    """

    # before WarmHeadHook, whose features depend on the gates
    priority = 'ABOVE_NORMAL'

    def __init__(self,
                 temperature: float = 0.1,
                 deals: int = 8,
                 num_extra_tokens: int = 1,
                 max_batches: Optional[int] = None) -> None:
        self.temperature = temperature
        self.deals = deals
        self.num_extra_tokens = num_extra_tokens
        self.max_batches = max_batches

    def before_train(self, runner: Runner) -> None:
        """Score the task's modules and start its gates.

        Raises:
            ValueError: If the backbone's fusion learns no weights.
        """
        if runner.iter > 0:  # resumed
            return
        backbone = unwrap(runner.model).backbone
        if not isinstance(backbone.fusion, LearnedFusion):
            raise ValueError('ScoreGatesHook starts the weights of a fusion '
                             'such as EnsMoE; set `model.backbone.fusion`.')
        scores = self.scores(runner)
        # each process has scored its own share of the pictures
        values = torch.tensor(
            list(scores.values()), device=backbone.trunk_fingerprint.device)
        all_reduce(values, op='mean')
        scores = dict(zip(scores, values.tolist()))
        runner.message_hub.update_info('module_scores', scores)
        runner.logger.info('ScoreGatesHook: ' + ', '.join(
            f'{name} {score:.3f}' for name, score in scores.items()))
        backbone.fusion.set_scores(backbone.task, values, self.temperature)
        restart_averages(runner, unwrap(runner.model))

    def scores(self, runner: Runner) -> Dict[str, float]:
        """Held-out score of every module of the task, alone.

        A fusion's zero module has the score of the bare trunk.
        """
        model = unwrap(runner.model)
        fusion, task = model.backbone.fusion, model.backbone.task
        training = model.training
        model.eval()
        rows = module_rows(model, runner.train_dataloader,
                           fusion.task_modules[task], self.num_extra_tokens,
                           self.max_batches)
        model.train(training)
        halves = unlike_halves(*rows[TRUNK], self.deals)
        scores = {
            name: held_out_score(x, labels, halves)
            for name, (x, labels, _) in rows.items()
        }
        trunk = scores.pop(TRUNK)
        if getattr(fusion, 'zero_module', False):
            scores['zero module'] = trunk
        return scores
