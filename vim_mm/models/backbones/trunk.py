# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import json
import logging
import os.path as osp
from numbers import Real
from typing import Dict, Mapping, Optional, Union

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_is_config
from vim_mm.utils.plain_config import check_config
from ..moe.ffn import description
from ..moe.foreign_files import check_kind


def build_trunk(cfg: Union[dict, nn.Module]) -> nn.Module:
    """Build a backbone with its weights, frozen and in eval mode.

    The weights are read here and not in ``init_weights``, which runs only
    when training starts: a checkpoint of ours leaves the trunk out, so
    testing needs it too.

    Args:
        cfg (dict | nn.Module): Config of any registry backbone. ``init_cfg``
            of type 'Pretrained' is read strictly, see
            :func:`load_trunk_weights`. Or a backbone that has its weights: it
            is used in place and not copied, so it is frozen wherever else it
            is used, too.

    Raises:
        FileNotFoundError: If the weights are missing.
        ValueError: If they do not fit the trunk, or there is no such trunk.
    """
    if isinstance(cfg, nn.Module):
        trunk = cfg
    else:
        check_is_config(cfg, 'model.backbone.trunk')
        trunk = _build(dict(cfg))
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
    if source:
        cfg = _without_weights(cfg)
        if 'checkpoint' not in source:
            raise ValueError('`model.backbone.trunk.init_cfg` names no '
                             '`checkpoint`; give the path of the weights.')
    try:
        trunk = MODELS.build(cfg)
    except (AssertionError, KeyError, RuntimeError, TypeError) as error:
        said = str(error.args[0] if error.args else error)
        raise ValueError(f'The trunk {cfg.get("type")} cannot be built '
                         f'({said.strip()}); correct '
                         '`model.backbone.trunk`.') from error
    if source:
        load_trunk_weights(trunk, source['checkpoint'], source.get('prefix'))
    elif not is_meta(trunk) and not getattr(trunk, 'is_init', False):
        if not innermost(cfg).get('pretrained'):
            print_log(
                f'The trunk {cfg.get("type")} is given no weights '
                '(`model.backbone.trunk.init_cfg`), so they are random, and '
                'checkpoints leave them out: keep them there with '
                '`model.backbone.save_trunk=True`, or what is learned beside '
                'them is of no use.',
                logger='current',
                level=logging.WARNING)
        if hasattr(trunk, 'init_weights'):
            trunk.init_weights()
    return trunk


def innermost(cfg: dict) -> dict:
    """The config of a backbone that others, such as `to_moe`, may wrap."""
    while isinstance(cfg.get('trunk'), dict):
        cfg = cfg['trunk']
    return cfg


def pretrained(cfg: dict) -> dict:
    """The 'Pretrained' entry of a backbone's ``init_cfg``, empty if none."""
    entries = innermost(cfg).get('init_cfg') or []
    if isinstance(entries, dict):
        entries = [entries]
    return next((e for e in entries if e.get('type') == 'Pretrained'), {})


def weights_of(cfg: dict) -> Optional[str]:
    """The file of a backbone's weights, None if its config names none."""
    own = innermost(cfg).get('checkpoint')  # as `load_moe` has
    return pretrained(cfg).get('checkpoint', own)


def _without_weights(cfg: dict) -> dict:
    """A copy of a backbone's config without ``init_cfg``."""
    if isinstance(cfg.get('trunk'), dict):
        return dict(cfg, trunk=_without_weights(cfg['trunk']))
    return {key: value for key, value in cfg.items() if key != 'init_cfg'}


def is_meta(trunk: nn.Module) -> bool:
    """Whether the trunk was built without storage, on the meta device."""
    return any(param.is_meta for param in trunk.parameters())


def load_trunk_weights(trunk: nn.Module,
                       checkpoint: str,
                       prefix: str = None) -> None:
    """Load a stock checkpoint into a trunk; every trunk tensor must be there.

    Args:
        trunk (nn.Module): The backbone.
        checkpoint (str): Path or URL that mmengine can load, safetensors
            included.
        prefix (str, optional): Prefix of the backbone's keys in the file;
            'backbone.' is recognised by itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a tensor is missing or has another shape, or if the
            file says that its weights need other layers, such as another
            activation, which no shape would betray.
    """
    name = type(trunk).__name__
    checkpoint = osp.expanduser(checkpoint)
    if '://' not in checkpoint and not osp.isfile(checkpoint):
        raise FileNotFoundError(
            f"The trunk weights '{checkpoint}' do not exist; make them with "
            '`python tools/model_converters/convert_trunk.py`, or point '
            '`model.backbone.trunk.init_cfg.checkpoint` at your file.')
    loaded = CheckpointLoader.load_checkpoint(
        checkpoint, map_location='cpu', logger='silent')
    state = _strip(loaded.get('state_dict', loaded), trunk, prefix)
    check_kind(trunk, checkpoint, state, 'model.backbone.trunk')
    try:
        missing, unexpected = trunk.load_state_dict(state, strict=False)
    except RuntimeError as error:
        _, first, *others = str(error).splitlines()
        raise ValueError(
            f"The weights '{checkpoint}' are of another trunk than this "
            f'{name}: {first.strip()} {len(others)} more tensors differ. '
            'Name the trunk that they belong to in `model.backbone.trunk`, '
            "or this one's weights in its `init_cfg.checkpoint`.") from error
    _check_recipe(trunk, checkpoint)
    if missing:
        raise ValueError(
            f"The weights '{checkpoint}' lack {len(missing)} tensors of this "
            f'{name}, such as {missing[:3]}; they belong to another trunk, '
            'or need converting first '
            '(tools/model_converters/convert_trunk.py).')
    if unexpected:
        print_log(
            f"'{checkpoint}': {len(unexpected)} tensors are not part of the "
            f'trunk and were left out, such as {unexpected[:3]}.',
            logger='current')


def _strip(state: Mapping[str, Tensor], trunk: nn.Module,
           prefix: str) -> Dict[str, Tensor]:
    if prefix is None:
        own = trunk.state_dict().keys()
        prefix = '' if own & state.keys() else 'backbone.'
    return {
        key[len(prefix):]: value
        for key, value in state.items() if key.startswith(prefix)
    }


def _check_recipe(trunk: nn.Module, checkpoint: str) -> None:
    """Compare layers with those of the config that the file itself names.

    ``convert_trunk.py`` writes it there. Layers that only one of both has (a
    final norm) are a matter of the run, as are sizes of images and dropout.
    """
    if '://' in checkpoint or not checkpoint.endswith('.safetensors'):
        return
    with safe_open(checkpoint, 'pt') as file:
        recipe = json.loads((file.metadata() or {}).get('backbone', 'null'))
    if recipe is None:
        return
    try:
        check_config(recipe, 'the config in it')
    except ValueError as error:
        raise ValueError(f"The weights '{checkpoint}' cannot be used: "
                         f'{error}; get or convert them again.') from None
    with torch.device('meta'):
        right = dict(MODELS.build(recipe).named_modules())
    for name, layer in trunk.named_modules():
        if list(layer.children()) or isinstance(layer, _DropoutNd):
            continue
        own, other = map(description, (layer, right.get(name, layer)))
        if own != other and not issubclass(own[0], _DropoutNd):
            own, other = ('{0.__name__}({1})'.format(*d) for d in (own, other))
            raise ValueError(
                f"The weights '{checkpoint}' were trained with {other} as "
                f"'{name}', but this {type(trunk).__name__} has {own}; "
                f'set `model.backbone.trunk` like {recipe}.')
