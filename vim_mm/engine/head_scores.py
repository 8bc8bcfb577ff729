# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How well a task's own head does on images that it has not learned from."""

import random
from copy import deepcopy
from itertools import chain
from typing import Dict, List, Sequence

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import OPTIMIZERS
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from vim_mm.evaluation.boxes import Matched, ap50, match
from vim_mm.evaluation.paired import HeldOut, averaged, jackknife
from vim_mm.features.cache import (CachedBatch, alike, cached_loss, replay,
                                   split, to_device)
from vim_mm.utils.progress import track
from .model_parts import first_neck, fused_already, head_parameters

#: Steps of a head on each half; after half as many it has hardly found a box,
#: and which features are better for it is noise.
STEPS = 120
#: Images of a step.
BATCH_SIZE = 8


class OwnHead:
    """Warms a model's own neck and head on one half, judges on the other.

    For detectors, whose boxes no closed-form head predicts. Every setting's
    head starts from the same values and sees the same images in the same
    order; afterwards the model is as before.

    Args:
        model (BaseModel): The detector, not wrapped.
        halves (Tensor): Booleans (splits, images).
        optimizer (dict): Config of the head's optimizer.
    """

    def __init__(self, model: BaseModel, halves: Tensor,
                 optimizer: dict) -> None:
        self.model, self.halves = model, halves
        self.optimizer = optimizer

    def score(self, batches: Sequence[CachedBatch]) -> HeldOut:
        """AP50 of images that the head has not seen, mean over splits.

        Args:
            batches (Sequence[CachedBatch]): Features of all images.
        """
        images = [one for batch in batches for one in split(batch)]
        training = self.model.training
        start = deepcopy(outside_backbone(self.model))
        try:
            with fused_already(self.model):
                return averaged(
                    [self._over(half, images, start) for half in self.halves])
        finally:
            self._restore(start)
            self.model.train(training)

    def _over(self, half: Tensor, images: List[CachedBatch],
              start: Dict[str, Tensor]) -> HeldOut:
        """The score of one split."""
        seen: List[Matched] = [{}] * len(images)
        for held in (half, ~half):
            self._restore(start)
            self._warm([images[i] for i in (~held).nonzero()[:, 0]])
            for i in held.nonzero()[:, 0].tolist():
                seen[i] = self._judge(images[i])
        return jackknife(lambda kept: ap50([seen[i] for i in kept]),
                         len(images))

    @torch.no_grad()
    def _restore(self, start: Dict[str, Tensor]) -> None:
        for key, value in outside_backbone(self.model).items():
            value.copy_(start[key])

    def _warm(self, images: List[CachedBatch]) -> None:
        model, device = self.model, next(self.model.parameters()).device
        params = head_parameters(model)
        neck = first_neck(model)
        if hasattr(neck, 'fit'):
            neck.fit(to_device(image.features, device) for image in images)
        optimizer = OPTIMIZERS.build(dict(self.optimizer, params=params))
        schedule = OneCycleLR(
            optimizer,
            max_lr=optimizer.param_groups[0]['lr'],
            total_steps=STEPS + 1,
            pct_start=0.15)
        order, left = random.Random(0), []
        model.train()
        for _ in track(range(STEPS), 'Trying the head', STEPS):
            if len(left) < min(BATCH_SIZE, len(images)):
                left = order.sample(images, len(images))
            batch, left = left[:BATCH_SIZE], left[BATCH_SIZE:]
            optimizer.zero_grad()
            with torch.enable_grad():
                for group in alike(batch):
                    loss = cached_loss(model, group)
                    (loss * len(group.data_samples) / len(batch)).backward()
            torch.nn.utils.clip_grad_norm_(params, 10.)
            optimizer.step()
            schedule.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _judge(self, image: CachedBatch) -> Matched:
        """Predicted boxes of one image, matched to the true ones."""
        model = self.model.eval()
        device = next(model.parameters()).device
        inputs = torch.zeros((), device=device).expand(image.input_shape)
        samples = to_device(deepcopy(image.data_samples), device)
        for sample in samples:
            # boxes are compared in the pixels that the trunk has seen
            sample.set_metainfo(
                dict(scale_factor=(1., 1.), ori_shape=sample.img_shape))
        with replay(model, to_device(image.features, device)):
            sample, = model.predict(inputs, samples, rescale=False)
        found, true = sample.pred_instances, image.data_samples[0]
        ignored = getattr(true, 'ignored_instances', None)
        return match(
            *map(_array, (found.bboxes, found.scores, found.labels)),
            _array(true.gt_instances.bboxes),
            _array(true.gt_instances.labels),
            np.zeros((0, 4)) if ignored is None else _array(ignored.bboxes))


def _array(values: object) -> np.ndarray:
    return getattr(values, 'tensor', values).detach().cpu().numpy()


def outside_backbone(model: BaseModel) -> Dict[str, Tensor]:
    """The tensors of neck and head."""
    return {
        key: value
        for key, value in chain(model.named_parameters(),
                                model.named_buffers())
        if not key.startswith('backbone.')
    }
