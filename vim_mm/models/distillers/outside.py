# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Frozen networks that help in training and are no part of the model."""

import logging
from typing import Any, Iterable, Optional, Sequence, Set

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader

from vim_mm.utils.arguments import check_is_config
from vim_mm.utils.checkpoint_form import state_of
from vim_mm.utils.config import read_config
from vim_mm.utils.described import card_fields
from vim_mm.utils.quiet_logs import quiet
from ..build import build_model
from ..checkpoint_notes import read_notes
from ..fit import check_fit
from ..pixels import Normalizer


class Outside:
    """Holds a frozen network beside a model instead of in it.

    So it stays in eval mode, is in no checkpoint, optimizer or data-parallel
    wrapper, and copies of the model (averaged weights) share it. It follows
    the model to its device when it is asked for.

    Args:
        network (BaseModel): Any mm* model. It is frozen.
        classes (Sequence[str], optional): Those that it was trained on, if
            its checkpoint says so. Defaults to None.
        card (dict, optional): What its config says of data and licence.
            Defaults to None.
        fresh (Iterable[str]): Parts for which nothing gave weights. Defaults
            to none.
    """

    def __init__(self,
                 network: BaseModel,
                 classes: Optional[Sequence[str]] = None,
                 card: Optional[dict] = None,
                 fresh: Iterable[str] = ()) -> None:
        network.requires_grad_(False)
        network.eval()
        self._network = network
        self.normalizer = Normalizer.of(network.data_preprocessor)
        self.classes = classes
        self.card = card or {}
        self.fresh = set(fresh)

    @property
    def network(self) -> BaseModel:
        """The network where it is now."""
        return self._network

    def on(self, device: torch.device) -> BaseModel:
        """The network on a device; moves it there once."""
        param = next(self._network.parameters(), None)
        if param is not None and param.device != device:
            self._network.to(device)
        return self._network

    def __deepcopy__(self, _: dict) -> 'Outside':
        return self


def build_outside(cfg: dict, what: str = 'teacher') -> Outside:
    """Build a trained network from its config and checkpoint.

    Args:
        cfg (dict): ``model`` (config of an mm* model), or ``config`` (path of
            a whole config); ``checkpoint`` (path of its weights; None if the
            config's ``init_cfg`` leads to all of them).
        what (str): What it is, for messages.

    Raises:
        ValueError: If it names neither or both, if a checkpoint is of another
            model, or if the model does not normalise its images.
    """
    check_is_config(cfg, what)
    unknown = sorted(set(cfg) - {'model', 'config', 'checkpoint'})
    if unknown or ('model' in cfg) == ('config' in cfg):
        raise ValueError(
            f'`{what}` has the keys {sorted(cfg)}; give `config`, the path of '
            "the config that it was trained with, or `model`, its model's "
            'config, and `checkpoint`, the path of its weights.')
    whole = _whole_config(cfg, what)
    network = build_model(whole)
    file: Optional[str] = cfg.get('checkpoint')
    classes, fresh = None, set()
    if file is None:
        with quiet():  # it tells of each parameter
            network.init_weights()
        fresh = _fresh(network, whole.model)
        if not _names_weights(whole.model):
            print_log(
                f'`{what}` is given no weights, neither by `checkpoint` nor '
                'by an `init_cfg`: they are random, and so is what is learned '
                'from it.',
                logger='current',
                level=logging.WARNING)
    else:
        meta = load_whole(network, file)
        classes = (meta.get('dataset_meta') or {}).get('classes')
    if not getattr(network.data_preprocessor, '_enable_normalize', False):
        raise ValueError(
            f'`{what}` does not say how its images are normalised, so it '
            'would read them as another network does; give its model a '
            '`data_preprocessor` with `mean` and `std`.')
    return Outside(network, classes, card_fields(whole), fresh)


def load_whole(network: BaseModel, file: str) -> dict:
    """Load a checkpoint that must hold all that a model has learned.

    Returns:
        dict: What the checkpoint says of itself, its ``meta``.

    Raises:
        ValueError: If it is of another model.
    """
    loaded: Any = CheckpointLoader.load_checkpoint(file, 'cpu', 'silent')
    state = state_of(loaded, f"The checkpoint '{file}'")
    check_fit(network, state, f"The checkpoint '{file}'", whole=True)
    network.load_state_dict(state, strict=False)
    read_notes(network, loaded, f"The checkpoint '{file}'")
    return loaded.get('meta') or {}


def _fresh(network: BaseModel, cfg: dict) -> Set[str]:
    """Parts of a network for which its config names no weights."""
    if _names_weights(cfg.get('init_cfg')):
        return set()
    return {
        name for name, part in network.named_children()
        if next(part.parameters(), None) is not None
        and not _names_weights(cfg.get(name))
    }


def _names_weights(cfg: Any) -> bool:
    """Whether a config, or one inside it, says where weights are from."""
    if isinstance(cfg, dict):
        own = ('checkpoint', 'checkpoint_path', 'pretrained')
        return any(cfg.get(key) for key in own) or any(
            map(_names_weights, cfg.values()))
    return isinstance(cfg, (list, tuple)) and any(map(_names_weights, cfg))


def _whole_config(cfg: dict, what: str) -> Config:
    if 'config' in cfg:
        return read_config(cfg['config'])
    check_is_config(cfg['model'], f'{what}.model')
    model = dict(cfg['model'])
    # types of a library that names no scope for its parts
    scope = str(model.get('type', '')).rpartition('.')[0] or None
    return Config(dict(model=model, default_scope=scope))
