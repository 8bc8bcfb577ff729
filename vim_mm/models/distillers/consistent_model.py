# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_number
from ..generators import load_upstream_release
from ..recorder import tapping
from .base_distiller import BaseDistiller, blank_padding
from .outside import Outside

RELEASE = 'release'


@MODELS.register_module()
class ConsistentModel(BaseDistiller):
    """A model whose features hardly change when its images are re-represented.

    A variant of OTA's IRF: ``weight * ||F(x) - F(x~)||^2`` is added to the
    losses of the fine-tuning, a mean over the values of a level and over the
    levels. Both sides have gradients. The backbone runs twice, and batch
    norms count both passes. Checkpoints are those of the plain model.

    Args:
        student (dict): Config of the mm* model to fine-tune.
        release (str): Folder of an upstream release.
        weight (float): Of the loss. Defaults to 1.
        data_preprocessor (dict, optional): The model's, if its config has
            none.
    """

    def __init__(self,
                 student: dict,
                 release: str,
                 weight: float = 1.,
                 data_preprocessor: Optional[dict] = None) -> None:
        check_number(weight, 'model.weight')
        super().__init__(student, data_preprocessor)
        self.weight = weight
        self.add_outside(RELEASE, Outside(load_upstream_release(release)))

    def help_weights(self) -> Dict[str, float]:
        """See :meth:`BaseDistiller.help_weights`."""
        return dict(weight=self.weight)

    @torch.no_grad()
    def re_represented(self, inputs: Tensor,
                       data_samples: Optional[list]) -> Tensor:
        """The same batch through encoder, codebook and decoder."""
        release = self.outside[RELEASE].on(inputs.device)
        images = self.inputs_of(RELEASE, inputs, data_samples).clamp(0, 1)
        return blank_padding(
            self.normalizer.normalize(release.reconstruct(images)),
            data_samples)

    def loss(self, inputs: Tensor,
             data_samples: Optional[list]) -> Dict[str, Tensor]:
        """The model's own losses and ``loss_consistency``."""
        with tapping(dict(backbone=self.backbone)) as seen:
            losses = self.student.loss(inputs, data_samples)
        first = seen['backbone'][0].output
        second = self.backbone(self.re_represented(inputs, data_samples))
        gaps = [F.mse_loss(a, b) for a, b in zip(first, second)]
        losses['loss_consistency'] = self.weight * sum(gaps) / len(gaps)
        return losses
