# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Callable, Dict, Mapping, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import (arguments_of, check_arguments,
                                    check_is_config, check_width)
from ..layouts import as_levels, as_tokens, pool_tokens
from ..recorder import tapping
from .base_distiller import BaseDistiller
from .losses import refuse_scores
from .outside import build_outside
from .proxy_space import ProxySpace
from .schedule import Schedule
from .soft_only import split

#: What the foundation models make of a batch, by name.
Features = Dict[str, Tensor]
COSINE = dict(type='vim_mm.CosineSmoothL1', cosine=1., smooth_l1=0.)


@MODELS.register_module()
class TDMRDistiller(BaseDistiller):
    """Task-driven model reprogramming (arXiv 2304.02263), our reading.

    Frozen foundation models are never back-propagated: their features, live
    or from a store, lead into a proxy space that has learned the task
    (:class:`ProxySpace`; :class:`vim_mm.ProxyHook` trains it before the
    student). The student then learns the task, and its features and logits
    follow those of the proxy space, with weights that change over the
    training. Features and logits of the student are the input and the output
    of its last layer. A projector, where the widths differ, is on the
    student's side; neither it nor the proxy space is in a checkpoint.

    For classifiers, and for segmentors, where each place of the foundation
    models' map counts as an image does. The settings also give the baselines:
    ``proxy.reprogram=False`` is distillation from a linear probe (logits) or
    a hint (features), ``AFTLoss`` is AFT, and a schedule of zeros is the
    student alone.

    Args:
        student (dict): Config of the classifier or segmentor.
        foundations (Mapping[str, dict]): Foundation models by name, CNNs,
            transformers or both; see :func:`build_outside`.
        proxy (dict): Settings of :class:`ProxySpace`.
        feature_loss (dict): Config of the loss between features.
        logits_loss (dict): Config of the loss between logits.
        schedule (dict): Settings of :class:`Schedule`.
        cotrain (bool): Whether R goes on learning with the student, by the
            labels and by the feature loss. For classifiers. Defaults to
            False.
        share_classifier (bool): Whether the student's last layer takes the
            place of q, from which it starts. Needs ``cotrain`` and a proxy
            space of the student's width. Defaults to False.
        probe_size (int): Side of the image by which the foundation models'
            channels are found. Defaults to 224.
        data_preprocessor (dict, optional): See :class:`BaseDistiller`.
    """

    def __init__(self,
                 student: dict,
                 foundations: Mapping[str, dict],
                 proxy: dict = dict(),
                 feature_loss: dict = COSINE,
                 logits_loss: dict = dict(type='vim_mm.LogitsKL'),
                 schedule: dict = dict(),
                 cotrain: bool = False,
                 share_classifier: bool = False,
                 probe_size: int = 224,
                 data_preprocessor: Optional[dict] = None) -> None:
        super().__init__(student, data_preprocessor)
        check_arguments(Schedule, schedule)
        self.schedule = Schedule(**schedule)
        #: What share of the training is done; hooks tell.
        self.progress = 0.
        #: Gives stored features of a batch's data samples; hooks set it.
        self.recall: Optional[Callable[[list], Features]] = None
        self._fitted = False  # known without waiting for the device
        self.cotrain = cotrain
        self.share_classifier = share_classifier
        self._check(foundations)
        #: Their configs by name.
        self.foundations = dict(foundations)
        for name, cfg in foundations.items():
            self.add_outside(name, build_outside(cfg, f'foundations.{name}'))
        self._build_help(proxy, feature_loss, logits_loss, probe_size)

    def _check(self, foundations: Mapping[str, dict]) -> None:
        check_is_config(foundations, 'model.foundations')
        if not foundations:
            raise ValueError('`model.foundations` is empty; name at least one '
                             'foundation model.')
        if self.cotrain and self.reads_maps:
            raise ValueError('`cotrain` is for classifiers, and the student '
                             'is a segmentor; leave it out.')
        if self.share_classifier and not self.cotrain:
            raise ValueError('`share_classifier` needs `cotrain=True`: a '
                             'classifier that the student trains is no fixed '
                             'end of a fixed proxy space.')

    def _build_help(self, proxy: dict, feature_loss: dict, logits_loss: dict,
                    probe_size: int) -> None:
        check_width(probe_size, 'model.probe_size')
        features = self.look(torch.zeros(1, 3, probe_size, probe_size))
        classes, width = self.classifier.weight.shape[:2]
        check_arguments(ProxySpace, proxy, ('in_channels', 'num_classes'))
        self.proxy = ProxySpace(
            self.tokens(features).shape[-1], classes, **proxy)
        channels = self.proxy.channels
        if self.share_classifier and channels != width:
            raise ValueError(
                f'`share_classifier` needs a proxy space of the width of the '
                f"student's last layer, {width}, and it has {channels}; set "
                f'`proxy.channels={width}`.')
        self.feature_loss = self.logits_loss = self.projector = None
        if self.schedule.feature:
            self.feature_loss = _build_loss(feature_loss, channels)
            refuse_scores(self.feature_loss, '`model.feature_loss`')
            fits = width == channels or getattr(self.feature_loss, 'any_width',
                                                False)
            self.projector = nn.Identity() if fits else nn.Linear(
                width, channels)
        if self.schedule.logits:
            self.logits_loss = _build_loss(logits_loss, channels)
        self.proxy.requires_grad_(self.cotrain)
        if self.share_classifier:
            self.proxy.classifier.requires_grad_(False)

    # ------------------------------------------------------------ the student

    @property
    def classifier(self) -> Union[nn.Linear, nn.Conv2d]:
        """The student's last layer, from features to logits.

        Raises:
            ValueError: If it is no classifier or segmentor.
        """
        head = getattr(self.student, 'head', None)
        layers = [
            layer for layer in (head.modules() if head is not None else ())
            if isinstance(layer, nn.Linear)
        ]
        decoder = getattr(self.student, 'decode_head', None)
        last = getattr(decoder, 'conv_seg', layers[-1] if layers else None)
        if last is None:
            raise ValueError(
                f'The student is a {type(self.student).__name__} without a '
                'linear layer from features to classes; take a classifier of '
                'mmpretrain or a segmentor of mmsegmentation, or '
                'vim_mm.Distiller for other tasks.')
        return last

    @property
    def reads_maps(self) -> bool:
        """Whether the task has a label for each place."""
        return isinstance(self.classifier, nn.Conv2d)

    def train(self, mode: bool = True) -> 'TDMRDistiller':
        """Set the mode of all that learns; a finished proxy space stays."""
        super().train(mode)
        if not self.cotrain:
            self.proxy.eval()
        return self

    # ------------------------------------------------- the foundation models

    @torch.no_grad()
    def look(self,
             inputs: Tensor,
             data_samples: Optional[list] = None,
             only: Optional[Sequence[str]] = None) -> Features:
        """Run the foundation models on a batch as the student reads it.

        Args:
            inputs (Tensor): The student's, (B, 3, H, W).
            data_samples (list, optional): They know what is padding.
            only (Sequence[str], optional): Names of those to run.

        Returns:
            dict[str, Tensor]: Their last features: a vector an image for a
            classifier, (B, C), and a map for a segmentor, (B, C, H, W).

        Raises:
            ValueError: If one gives something else.
        """
        features = {}
        for name in only or self.outside:
            network = self.outside[name].on(inputs.device)
            last = as_levels(
                network.extract_feat(
                    self.inputs_of(name, inputs, data_samples)))[-1]
            if last.dim() not in ((4, ) if self.reads_maps else (2, 4)):
                wanted = 'maps' if self.reads_maps else 'maps or vectors'
                raise ValueError(
                    f"The foundation model '{name}' gives features of shape "
                    f"{tuple(last.shape)}, and {wanted} are needed; set its "
                    "backbone's `out_type`.")
            features[name] = last if self.reads_maps else pool_tokens([last],
                                                                      0)
        return features

    def tokens(self, features: Features) -> Tensor:
        """Features of all foundation models side by side, (B, L, C).

        Maps come onto the grid of the first one.
        """
        parts = list(features.values())
        if self.reads_maps:
            parts = [_on_grid(part, parts[0]) for part in parts]
        return as_tokens(torch.cat(parts, dim=1))

    # --------------------------------------------------------------- training

    def loss(self, inputs: Tensor,
             data_samples: Optional[list]) -> Dict[str, Tensor]:
        """The losses of a batch: the student's own, and those of the proxy.

        Raises:
            ValueError: If the proxy space has not been trained, or images
                have no labels.
        """
        if split(data_samples)[0] is not None:
            raise ValueError(
                'A proxy space learns from labels, and some images are '
                '`soft_only`; leave them out, or take vim_mm.Distiller.')
        if self.feature_loss is None and self.logits_loss is None:
            return self.student(inputs, data_samples, mode='loss')
        with tapping({'last': self.classifier}, inputs=True) as seen:
            losses = self.student(inputs, data_samples, mode='loss')
        (call, ) = seen['last']
        self._check_fitted()
        features = self._features(inputs, data_samples)
        with torch.set_grad_enabled(self.cotrain):
            proxy = self.proxy(self.tokens(features))
            logits = self._classify(proxy)
        by_feature, by_logits = self.schedule.at(self.progress)
        like = next(iter(features.values()))
        if self.feature_loss is not None:
            own = self.projector(self.own_tokens(call.args[0], like))
            losses['loss_feature'] = by_feature * self.feature_loss(own, proxy)
        if self.logits_loss is not None:
            losses['loss_logits'] = by_logits * self.logits_loss(
                self.own_tokens(call.output, like), logits.detach())
        if self.cotrain:
            losses['loss_proxy'] = F.cross_entropy(logits[:, 0],
                                                   _labels(data_samples))
        return losses

    def start_sharing(self) -> None:
        """Let the student's last layer start as the proxy classifier."""
        if self.share_classifier:
            self.classifier.load_state_dict(self.proxy.classifier.state_dict())

    def _features(self, inputs: Tensor, data_samples: list) -> Features:
        if self.recall is None:
            return self.look(inputs, data_samples)
        return {
            name: value.to(inputs.device, non_blocking=True)
            for name, value in self.recall(data_samples).items()
        }

    def _classify(self, proxy: Tensor) -> Tensor:
        classifier = self.classifier if self.share_classifier \
            else self.proxy.classifier
        return classifier(proxy)

    def own_tokens(self, features: Tensor, like: Tensor) -> Tensor:
        """What the student's last layer read or gave, place by place."""
        if self.reads_maps:
            features = _on_grid(features, like)
        return as_tokens(features)

    def _check_fitted(self) -> None:
        if not self._fitted and not self.proxy.fitted:
            raise ValueError('The proxy space has not been trained; add '
                             "dict(type='vim_mm.ProxyHook') to "
                             '`custom_hooks`.')
        self._fitted = True


def _on_grid(features: Tensor, like: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(features, like.shape[-2:])


def _labels(data_samples: list) -> Tensor:
    """Classes of a batch, or their shares where images were mixed."""
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    return torch.cat([sample.gt_label for sample in data_samples])


def _build_loss(cfg: dict, channels: int) -> nn.Module:
    check_is_config(cfg, 'a loss of the distiller')
    kind = MODELS.get(cfg['type']) or nn.Identity  # which is refused below
    inner = dict(channels=channels) if 'channels' in arguments_of(kind) else {}
    return MODELS.build(dict(cfg, **inner))
