# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from copy import deepcopy
from itertools import islice
from typing import Iterator, List, Optional

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from vim_mm.evaluation.ridge import held_out_loss
from vim_mm.evaluation.unlike_halves import DEALS, unlike_halves
from vim_mm.features.cache import CachedBatch, preprocess, to_device, unmixed
from vim_mm.features.loaders import check_filled, finite
from vim_mm.features.rows import rows_of
from vim_mm.registry import HOOKS
from vim_mm.utils.arguments import check_positive, check_width
from vim_mm.utils.progress import track
from vim_mm.utils.seeds import seeded
from ..better_gates import keep_better
from ..divided import ELSEWHERE
from ..loaded import spared
from ..model_parts import (extra_tokens, fused_features, fusing_part, gates_of,
                           learning_only, part_of, restart_averages,
                           running_parameters, weighs_levels)
from ..rates import check_optimizer
from ..stopping import stop_if_asked
from .score_gates_hook import must_run, trials_of
from .warm_head_hook import average_gradients


@HOOKS.register_module()
class HoldOutGatesHook(Hook):
    """Learn the gates on images that the head has not seen. Ours.

    A head that already fits the few images leaves the gates no gradient.
    So before training the images of a step are split into halves that look
    unlike to the model as it is (:func:`unlike_halves`), a ridge head is
    solved on one half in closed form, and its error on the other is
    back-propagated into the gates, through the head too. Works for
    classification, detection and segmentation, for every fusion that learns,
    in the trunk or in the neck; nothing else of the model moves. The head
    reads the last map, and where each gate reaches one level alone (streams
    weighed in a neck, modules beside the trunk) all maps, resized to the last
    one. After ScoreGatesHook it goes on from the
    gates that one has set, and leaves alone a task whose modules that one has
    found no use for; WarmHeadHook comes after both. What was learned is
    compared with the start and with the bare trunk, see :func:`keep_better`.

    A step's gradient is exact, but needs the memory of one batch only: the
    head's gradient is taken at cached features, then every batch runs again.

    Args:
        steps (int): Number of steps. Defaults to 15.
        batches (int): Batches of the training set in a step, of every
            process: the more images, the less the gradient depends on which
            they are, and each half should show every class several times.
            Defaults to 16, which with few images is all of them.
        deals (int): Ways in which a step's images are split into halves,
            see :func:`unlike_halves`. More cost next to nothing, since
            features are computed once. Defaults to 8.
        optimizer (dict): Config of the optimizer of the gates. Defaults to
            Adam with learning rate 0.3, for logits; :class:`LinearMoE`
            wants about 0.05.
        l2 (float): Ridge penalty, see :func:`ridge_scores`. Defaults to 0.1.
        num_extra_tokens (int, optional): Class and register tokens in the
            trunk's output, for classification. Defaults to the trunk's own.
        keep_better (bool): Whether gates that do not help more than their
            start, or than no module, go back to it. Defaults to True.
        task (str, optional): The task of a multi-task model to work on.
            Defaults to None, for a model of one task.
        keep_loaded (bool): Whether gates that were loaded from ``load_from``
            stay as they are. Defaults to True.
    """

    # after ScoreGatesHook (ABOVE_NORMAL, 40), before WarmHeadHook (50)
    priority = 45
    needs_whole = ELSEWHERE

    def __init__(self,
                 steps: int = 15,
                 batches: int = 16,
                 deals: int = DEALS,
                 optimizer: dict = dict(type='Adam', lr=0.3),
                 l2: float = 0.1,
                 num_extra_tokens: Optional[int] = None,
                 keep_better: bool = True,
                 task: Optional[str] = None,
                 keep_loaded: bool = True) -> None:
        check_optimizer(optimizer, 'HoldOutGatesHook.optimizer')
        check_width(steps, 'HoldOutGatesHook.steps')
        check_width(batches, 'HoldOutGatesHook.batches')
        check_positive(l2, 'HoldOutGatesHook.l2')
        self.steps = steps
        self.batches = batches
        self.deals = deals
        self.optimizer = optimizer
        self.l2 = l2
        self.num_extra_tokens = num_extra_tokens
        self.keep_better = keep_better
        self.task = task
        self.keep_loaded = keep_loaded

    def before_train(self, runner: Runner) -> None:
        """Train the current task's gates.

        Raises:
            ValueError: If there are no gates that learn.
        """
        if runner.iter > 0:  # resumed
            return
        with part_of(runner, self.task, 'HoldOutGatesHook') as (model, loader):
            if spared(runner, 'HoldOutGatesHook', gates_of(fusing_part(model)),
                      self.keep_loaded):
                return
            self._learn(runner, model, loader)
        restart_averages(runner)

    def _learn(self, runner: Runner, model: BaseModel,
               loader: DataLoader) -> None:
        part = fusing_part(model)
        fusion = part.fusion
        if fusion is not None and fusion.is_off(part.task):
            runner.logger.info('HoldOutGatesHook: the task weighs no module, '
                               'so there is nothing to learn.')
            return
        start = None if fusion is None else deepcopy(fusion.state_dict())
        params = [] if fusion is None else running_parameters(model, fusion)
        if not params:
            raise ValueError('HoldOutGatesHook trains the weights of a '
                             'fusion such as EnsMoE; set '
                             '`model.backbone.fusion` to one that learns.')
        optimizer = OPTIMIZERS.build(dict(self.optimizer, params=params))
        training = model.training
        model.eval()
        # the first training step would apply what is left in other gradients
        with learning_only(model, params):
            self._train(runner, model, loader, params, optimizer)
        optimizer.zero_grad(set_to_none=True)
        if self.keep_better:
            with seeded(runner.seed or 0):
                trials = trials_of(
                    runner,
                    model,
                    loader,
                    num_extra_tokens=self.num_extra_tokens,
                    deals=self.deals,
                    alone=False)
                said = keep_better(trials, start, part, must_run(model, part))
            runner.logger.info(f'HoldOutGatesHook: {said}')
        model.train(training)

    def _train(self, runner: Runner, model: BaseModel, loader: DataLoader,
               params: List[nn.Parameter], optimizer: Optimizer) -> None:
        groups = self._groups(finite(loader))
        steps = track(islice(groups, self.steps), 'Learning gates', self.steps)
        for step, group in enumerate(steps, 1):
            optimizer.zero_grad()
            loss = self._average(model, group, params)
            optimizer.step()
            stop_if_asked()
            if step % max(1, self.steps // 5) == 0:
                runner.logger.info(f'HoldOutGatesHook: step {step}/'
                                   f'{self.steps}, held-out loss {loss:.4f}')

    def _average(self, model: BaseModel, group: List[dict],
                 params: List[nn.Parameter]) -> float:
        """Gradients over the processes whose images have two halves.

        One whose images have none must not leave the others waiting.
        """
        able, loss, reason = torch.ones(1, device=params[0].device), 0., None
        try:
            loss = self.backward(model, group)
        except ValueError as error:
            able, reason = able * 0, error
        all_reduce(able, op='mean')
        if not able:
            raise reason
        average_gradients(params)
        for param in params:
            param.grad /= able
        return loss

    def _groups(self, dataloader: DataLoader) -> Iterator[List[dict]]:
        check_filled(dataloader)
        size = min(self.batches, len(dataloader))
        while True:
            batches = iter(dataloader)
            while len(group := list(islice(batches, size))) == size:
                yield group

    def backward(self, model: BaseModel, group: List[dict]) -> float:
        """Add the gradient of one step to what the features depend on.

        Args:
            model (BaseModel): In eval mode, not wrapped.
            group (list[dict]): Batches of a dataloader.

        Returns:
            float: The held-out loss of this process.
        """
        with unmixed(model):
            batches = [preprocess(model, data) for data in group]
        cached = [self._cache(model, batch) for batch in batches]
        x, y, picture = rows_of(
            cached,
            extra_tokens(model, self.num_extra_tokens),
            all_levels=weighs_levels(model))
        halves = unlike_halves([x], y, picture, self.deals)
        loss = held_out_loss(x, y, halves, self.l2)
        loss.backward()
        for batch, leaves in zip(batches, cached):
            features = fused_features(model, batch['inputs'])
            pairs = [(level, leaf.grad.to(level))
                     for level, leaf in zip(features, leaves.features)
                     if leaf.grad is not None and level.requires_grad]
            torch.autograd.backward(*zip(*pairs))
        return float(loss.detach())

    @staticmethod
    @torch.no_grad()
    def _cache(model: BaseModel, batch: dict) -> CachedBatch:

        def leaf(level: Tensor) -> Tensor:
            return level.detach().cpu().requires_grad_()

        features = fused_features(model, batch['inputs'])
        return CachedBatch(
            features=tuple(map(leaf, features)),
            data_samples=to_device(batch['data_samples'], torch.device('cpu')),
            input_shape=batch['inputs'].shape)
