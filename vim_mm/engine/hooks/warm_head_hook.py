# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import math
import random
from typing import AbstractSet, Iterator, List, Optional

import torch
from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from vim_mm.features.cache import (CachedBatch, cache_features, cached_loss,
                                   steady_norms, to_device)
from vim_mm.features.places import Disk, Memory
from vim_mm.models.fusion import FusionHolder
from vim_mm.models.generators import load_upstream_release, re_represent
from vim_mm.models.tasks import holders, let_learn
from vim_mm.registry import HOOKS
from vim_mm.utils.arguments import check_positive, check_width
from vim_mm.utils.seeds import seeded
from ..divided import ELSEWHERE
from ..loaded import spared
from ..model_parts import (first_neck, head_parameters, learning_only, part_of,
                           restart_averages)
from ..rates import check_optimizer
from ..stopping import stop_if_asked


@HOOKS.register_module()
class WarmHeadHook(Hook):
    """Train neck and head on cached trunk features before modules join.

    Fresh adapters add exactly nothing, so until they have learned the trunk's
    features are all there is: they are computed once, and the head trains on
    them at almost no cost. Without this, adapters spend a short schedule
    chasing a head that is still random. Works with any mm* model that has a
    ``backbone`` and a ``loss``; skipped when a run is resumed. What the
    checkpoint of ``load_from`` holds of neck and head stays as it is there.

    Before a fine-tuning of the whole model it is the first half of LP-FT, and
    on images of a ``release`` the first half of OTA's IRF: the head is fitted
    where the backbone's features are those of its training, so that it
    distorts them less. The backbone stays in eval mode, bit for bit.

    Args:
        epochs (int): Epochs over the cached features.
        optimizer (dict): Config of the optimizer. Defaults to AdamW with
            learning rate 1e-3, which a one-cycle schedule scales.
        clip_grad (float, optional): Maximum gradient norm. Defaults to 10.
        views (int): Passes over the training set, each with augmentation of
            its own. Defaults to 1.
        max_batches (int, optional): Batches a pass and process, for data
            sets whose features do not fit. Defaults to None: all that half
            of the free memory has room for, or nine tenths of the disk.
        folder (str, optional): Where features are kept while the head
            learns, on a disk from which they are mapped into memory; nothing
            is left there. Defaults to None, which is memory.
        evaluate (bool): Validate once after the warm-up: what the frozen
            trunk achieves by itself, logged as epoch 0. Defaults to False.
        task (str, optional): The task of a multi-task model to work on.
            Defaults to None, for a model of one task.
        release (str, optional): Folder of an upstream release. The head
            learns on images that it re-represents. Defaults to None, the
            original images.
        scale (float): Images are enlarged by this factor to be
            re-represented, which keeps more detail. Defaults to 1.
        keep_loaded (bool): Whether what was loaded from ``load_from`` stays
            as it is. Defaults to True.
        again (bool): Warm once more after the last iteration, as
            BetterGatesHook lets it where it changes gates, so that runs which
            are compared have learned equally long. Defaults to False.
    """

    priority = 'NORMAL'
    needs_whole = ELSEWHERE

    def __init__(self,
                 epochs: int,
                 optimizer: dict = dict(
                     type='AdamW', lr=1e-3, weight_decay=1e-4),
                 clip_grad: Optional[float] = 10.,
                 views: int = 1,
                 max_batches: Optional[int] = None,
                 folder: Optional[str] = None,
                 evaluate: bool = False,
                 task: Optional[str] = None,
                 release: Optional[str] = None,
                 scale: float = 1.,
                 keep_loaded: bool = True,
                 again: bool = False) -> None:
        if max_batches is not None:
            check_width(max_batches, 'WarmHeadHook.max_batches')
        check_optimizer(optimizer, 'WarmHeadHook.optimizer')
        check_positive(scale, 'WarmHeadHook.scale')
        self.epochs = epochs
        self.optimizer = optimizer
        self.clip_grad = clip_grad
        self.views = views
        self.max_batches = max_batches
        self.folder = folder
        self.evaluate = evaluate
        self.task = task
        self.release = release and load_upstream_release(release)
        self.scale = scale
        self.keep_loaded = keep_loaded
        self.again = again

    def before_train(self, runner: Runner) -> None:
        """Cache features, fit standardisers, train the head."""
        if runner.iter > 0:  # resumed
            return
        with part_of(runner, self.task, 'WarmHeadHook') as (model, loader):
            kept = spared(runner, 'WarmHeadHook', _outside(model),
                          self.keep_loaded)
            self.warm(runner, model, loader, kept)
        restart_averages(runner)
        if self.evaluate and runner.val_loop is not None:
            runner.val_loop.run()

    def after_train_iter(self, runner: Runner, batch_idx: int, **_) -> None:
        """Warm again after the last iteration, where that is asked for."""
        if not self.again or not self.is_last_train_iter(runner):
            return
        with part_of(runner, self.task, 'WarmHeadHook') as (model, loader):
            self.warm_again(runner, model, loader)
        restart_averages(runner)

    def warm_again(self, runner: Runner, model: BaseModel,
                   loader: DataLoader) -> None:
        """Warm neck and head beside gates that stay as they are.

        Args:
            runner (Runner): The run.
            model (BaseModel): The model, not wrapped.
            loader (DataLoader): Of the images.
        """
        gates = [
            gate for part in holders(model)
            if isinstance(part, FusionHolder) and part.fusion is not None
            for gate in part.fusion.parameters_of(part.task)
            if gate.requires_grad
        ]
        # weights in a neck would learn with it
        let_learn(gates, False)
        with seeded(runner.seed or 0):
            self.warm(runner, model, loader)
        let_learn(gates, True)

    def warm(self,
             runner: Runner,
             model: BaseModel,
             loader: DataLoader,
             kept: AbstractSet[int] = frozenset()) -> None:
        """Warm neck and head of a model of a run.

        Args:
            runner (Runner): The run.
            model (BaseModel): The model, not wrapped.
            loader (DataLoader): Of the images.
            kept (set[int]): The ``id`` of each tensor that stays as it is.
        """
        learns = [
            param for param in head_parameters(model)
            if self.epochs and id(param) not in kept
        ]
        neck = first_neck(model)
        inner = getattr(neck, 'inner_neck', neck)
        fits = hasattr(inner, 'fit') and kept.isdisjoint(
            map(id, inner.buffers()))
        if not learns and not fits:
            return
        cached = self._cache(runner, model, loader)
        stop_if_asked()
        if fits:
            device = next(model.parameters()).device
            neck.fit(to_device(batch.features, device) for batch in cached)
        if learns:
            model.train()
            keep_statistics(model, kept)
            with steady_norms(model), learning_only(model, learns):
                self._train_head(runner, model, cached, learns)
            model.train()

    def _cache(self, runner: Runner, model: BaseModel,
               loader: DataLoader) -> List[CachedBatch]:
        what = 're-represented ' if self.release else ''
        runner.logger.info('WarmHeadHook: caching trunk features of '
                           f'{len(loader.dataset)} {what}images')
        change = None
        if self.release:
            self.release.to(next(model.parameters()).device)
            change = self._re_represent
        place = Memory() if self.folder is None else Disk(self.folder)
        return cache_features(model, loader, self.views, self.max_batches,
                              change, place)

    def _re_represent(self, data: dict) -> dict:
        images = re_represent(self.release, data['inputs'], self.scale)
        return dict(data, inputs=images)

    def _train_head(self, runner: Runner, model: BaseModel,
                    cached: List[CachedBatch],
                    params: List[nn.Parameter]) -> None:
        optimizer = OPTIMIZERS.build(dict(self.optimizer, params=params))
        schedule = OneCycleLR(
            optimizer,
            max_lr=optimizer.param_groups[0]['lr'],
            total_steps=self.epochs * len(cached) + 1,
            pct_start=0.15)
        # a generator of its own: the run's augmentation is not shifted
        order = random.Random(runner.seed)
        for epoch in range(self.epochs):
            order.shuffle(cached)
            total = 0.
            for batch in cached:
                optimizer.zero_grad()
                loss = cached_loss(model, batch)
                loss.backward()
                average_gradients(params)
                if self.clip_grad is not None:
                    nn.utils.clip_grad_norm_(params, self.clip_grad)
                optimizer.step()
                schedule.step()
                stop_if_asked()
                total += loss.detach()
            if (epoch + 1) % max(1, self.epochs // 5) == 0:
                loss = float(total) / len(cached)
                runner.logger.info(
                    f'WarmHeadHook: epoch {epoch + 1}/{self.epochs} on '
                    f'cached features, loss {loss:.4f}')
                if not math.isfinite(loss):
                    raise ValueError(
                        f'The loss of WarmHeadHook is {loss}; lower the `lr` '
                        'of its `optimizer`.')
        optimizer.zero_grad(set_to_none=True)


def average_gradients(params: List[nn.Parameter]) -> None:
    """Average over processes; a head one of them left unused counts zero."""
    for param in params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
    all_reduce_params([param.grad for param in params], op='mean')


def keep_statistics(model: BaseModel, kept: AbstractSet[int]) -> None:
    """Let norms stay as they are whose running statistics are to be kept."""
    for part in model.modules():
        if isinstance(part, _BatchNorm) and id(part.running_mean) in kept:
            part.eval()


def _outside(model: BaseModel) -> Iterator[Tensor]:
    """All tensors of a model but those of its backbone."""
    for name, part in model.named_children():
        if name != 'backbone':
            yield from part.parameters()
            yield from part.buffers()
