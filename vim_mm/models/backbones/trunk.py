# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import logging
from numbers import Real
from typing import Callable, Union

from mmengine.logging import print_log
from torch import nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_is_config
from vim_mm.utils.building import RefusedError
from vim_mm.utils.quiet_logs import quiet
from .configs import innermost, parts_with_weights, pretrained, without_weights
from .timm_weights import build_timm, wraps_timm
from .weights import load_trunk_weights


def build_trunk(cfg: Union[dict, nn.Module]) -> nn.Module:
    """Build a backbone with its weights, frozen and in eval mode.

    The weights are read here and not in ``init_weights``, which runs only
    when training starts: a checkpoint of ours leaves the trunk out, so
    testing needs it too.

    Args:
        cfg (dict | nn.Module): Config of any registry backbone. ``init_cfg``
            of type 'Pretrained' is read strictly, see
            :func:`load_trunk_weights` and :func:`build_timm`. Or a backbone
            that has its weights: it is used in place and not copied, so it is
            frozen wherever else it is used, too.

    Raises:
        FileNotFoundError: If the weights are missing.
        ValueError: If they do not fit the trunk, or there is no such trunk.
    """
    if isinstance(cfg, nn.Module):
        trunk = cfg
    else:
        check_is_config(cfg, 'model.backbone.trunk')
        trunk = _build(dict(cfg))
        size = innermost(cfg).get('img_size')
        if size and not hasattr(trunk, 'img_size'):  # the probe asks for it
            trunk.img_size = size
    if not any(True for _ in trunk.parameters()):
        raise ValueError(f'The trunk {type(trunk).__name__} has no '
                         'parameters; give a backbone.')
    for part in trunk.modules():
        # mmcv's may be numpy's, which no compiler takes
        if isinstance(getattr(part, 'drop_prob', None), Real):
            part.drop_prob = float(part.drop_prob)
    # not chained: train() of some backbones returns None
    trunk.requires_grad_(False)
    trunk.eval()
    return trunk


def _build(cfg: dict) -> nn.Module:
    """Build a trunk from its config and load its weights."""
    source = pretrained(cfg)
    if not source:
        trunk = _made(MODELS.build, cfg)
        _initialise(trunk, cfg)
        return trunk
    if 'checkpoint' not in source:
        raise ValueError('`model.backbone.trunk.init_cfg` names no '
                         '`checkpoint`; give the path of the weights.')
    file, prefix = source['checkpoint'], source.get('prefix')
    cfg = without_weights(cfg)
    if wraps_timm(cfg):
        return _made(build_timm, cfg, file, prefix)
    trunk = _made(MODELS.build, cfg)
    load_trunk_weights(trunk, file, prefix, cfg)
    return trunk


def _made(build: Callable, cfg: dict, *args) -> nn.Module:
    try:
        return build(cfg, *args)
    except (AssertionError, KeyError, RefusedError, RuntimeError,
            TypeError) as error:
        if isinstance(error, RefusedError):
            error = error.__cause__
        said = str(error.args[0] if error.args else error)
        raise ValueError(f'The trunk {cfg.get("type")} cannot be built '
                         f'({said.strip()}); correct '
                         '`model.backbone.trunk`.') from error


def _initialise(trunk: nn.Module, cfg: dict) -> None:
    """Draw the weights of a trunk that is given none."""
    if is_meta(trunk) or getattr(trunk, 'is_init', False):
        return
    if not innermost(cfg).get('pretrained'):
        parts = parts_with_weights(cfg)
        lack = (f'weights for {parts} alone' if parts else
                'no weights (`model.backbone.trunk.init_cfg`)')
        print_log(
            f'The trunk {cfg.get("type")} is given {lack}, so '
            f'{"others" if parts else "they"} are random. Checkpoints have '
            'them with `model.backbone.save_trunk=True` only; without them '
            'what is learned beside them is of no use.',
            logger='current',
            level=logging.WARNING)
    if hasattr(trunk, 'init_weights'):
        with quiet():  # it tells of each parameter
            trunk.init_weights()


def is_meta(trunk: nn.Module) -> bool:
    """Whether the trunk was built without storage, on the meta device."""
    return any(param.is_meta for param in trunk.parameters())
