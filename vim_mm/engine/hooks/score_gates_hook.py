# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Optional

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vim_mm.models.fusion import LearnedFusion
from vim_mm.registry import HOOKS
from ..feature_cache import cache_features, unwrap
from ..model_parts import restart_averages
from ..transfer_score import cross_validated_score, rows_of


@HOOKS.register_module()
class ScoreGatesHook(Hook):
    """Start the gates from each module's few-shot score, not from uniform.

    A softmax over K modules that starts uniform divides each by K although
    it was trained at weight one, and gates that learn beside a head which
    already fits the few pictures get no gradient. So before training every
    module is scored alone (one cached pass, a closed-form ridge head,
    cross-validated on the training pictures), and the gates of every slot
    start from the scores: a softmax at logits ``score / temperature``,
    :class:`LinearMoE` by their ranks. Ours, not the paper's.

    Args:
        temperature (float): A softmax's scores are divided by it. Defaults to
            0.1.
        folds (int): Folds of the cross-validation. Defaults to 5.
        num_extra_tokens (int): Class and register tokens in the trunk's
            output, for classification. Defaults to 1.
        max_batches (int, optional): Batches a module and process, for data
            sets whose features do not fit into memory. Defaults to None.

    The scores are kept in ``runner.message_hub`` as ``module_scores``.
    """

    # before WarmHeadHook, whose features depend on the gates
    priority = 'ABOVE_NORMAL'

    def __init__(self,
                 temperature: float = 0.1,
                 folds: int = 5,
                 num_extra_tokens: int = 1,
                 max_batches: Optional[int] = None) -> None:
        self.temperature = temperature
        self.folds = folds
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
        """Cross-validated score of every module of the task, alone.

        A fusion's zero module has the score of the bare trunk.
        """
        model = unwrap(runner.model)
        backbone, scores = model.backbone, {}
        alone = {n: [n] for n in backbone.fusion.task_modules[backbone.task]}
        if getattr(backbone.fusion, 'zero_module', False):
            alone['zero module'] = []  # the bare trunk
        for name, modules in alone.items():
            with backbone.only(*modules):
                cached = cache_features(
                    model,
                    runner.train_dataloader,
                    max_batches=self.max_batches)
            scores[name] = cross_validated_score(
                *rows_of(cached, self.num_extra_tokens), folds=self.folds)
        return scores
