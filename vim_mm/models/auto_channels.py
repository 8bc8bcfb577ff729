# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a neck or head reads, taken from what stands before it.

``in_channels='auto'`` in a neck, an inner neck or a head is filled in while
the whole model is built, before any optimizer sees it: once the backbone is
there, and once the neck is, blank features of their shapes are at hand. A neck
gets the channels of all levels, a head those of the levels that its
``in_index`` names, of the last one by default.
"""

from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping

import torch
from mmengine.model import Sequential
from mmengine.registry import Registry
from torch import nn

from vim_mm.utils.building import AUTO, asks, asks_itself, assembling
from .backbones.blank_image import blank_outputs, in_eval
from .layouts import Streams, channels_of, check_levels

Build = Callable[[Any], nn.Module]


class Assembly:
    """A model that is being built, and what its next part will read.

    Args:
        cfg (Mapping): Config of the model.
    """

    def __init__(self, cfg: Mapping) -> None:
        self.backbone = cfg.get('backbone')
        self.neck = cfg.get('neck')
        rest = dict(cfg, backbone=None, neck=None)
        self.heads_ask = asks(rest)
        self.features: Any = None
        self.num_extra_tokens = 0
        self.in_neck = False

    def build(self, registry: Registry, build: Build, cfg: Any) -> nn.Module:
        """Build one part, whose channels are filled in."""
        if cfg == self.backbone:
            part = build(cfg)
            self.features = _blank(part)
            self.num_extra_tokens = getattr(part, 'num_extra_tokens', 0)
        elif self.neck is not None and cfg == self.neck:
            self.in_neck = True
            part = self._build_neck(registry, build, cfg)
            self.in_neck = False
        else:
            part = build(self._filled(registry, cfg))
        return part

    def _build_neck(self, registry: Registry, build: Build,
                    cfg: Any) -> nn.Module:
        steps = cfg if isinstance(cfg, list) else [cfg]
        parts = []
        for step in steps:
            parts.append(build(self._filled(registry, step)))
            if self.heads_ask or step is not steps[-1]:
                self.features = run(parts[-1], self.features)
        return Sequential(*parts) if isinstance(cfg, list) else parts[0]

    def _filled(self, registry: Registry, cfg: Any) -> Any:
        if not isinstance(cfg, Mapping) or not asks_itself(cfg):
            return cfg
        if self.features is None:
            raise ValueError(
                f"`in_channels='auto'` of {cfg.get('type')} is asked for "
                'before the backbone is built; give the number of channels.')
        filled = cfg.copy()
        kind = self._kind(registry, cfg)
        if hasattr(kind, 'auto_settings'):
            filled.update(
                kind.auto_settings(self.features, cfg, self.num_extra_tokens))
        else:
            filled['in_channels'] = self._channels(cfg)
        return filled

    @staticmethod
    def _kind(registry: Registry, cfg: Mapping) -> Any:
        with registry.switch_scope_and_registry(cfg.get('_scope_')) as own:
            kind = cfg['type']
            return own.get(kind) if isinstance(kind, str) else kind

    def _channels(self, cfg: Mapping) -> Any:
        levels = self.features
        channels = channels_of(
            levels[0] if isinstance(levels, Streams) else levels)
        if self.in_neck:
            return channels
        index = cfg.get('in_index', -1)
        check_levels(cfg['type'], index, len(channels))
        if isinstance(index, (list, tuple)):
            return [channels[i] for i in index]
        return channels[index]


def build_part(registry: Registry, build: Build, cfg: Any) -> nn.Module:
    """Build a model that asks for channels, or a part of it.

    Args:
        registry (Registry): Where its type is looked up.
        build (Callable): Builds from a config without further questions.
        cfg (dict | list): The config.

    Raises:
        ValueError: If no model is there to ask.
    """
    is_model = isinstance(cfg, Mapping) and cfg.get('backbone') is not None
    if not is_model and assembling.now is None:
        if isinstance(cfg, Mapping) and cfg.get('in_channels') != AUTO:
            return build(cfg)  # a wrapper: the model is inside
        raise ValueError(unknown_channels(cfg))
    if not is_model:
        return assembling.now.build(registry, build, cfg)
    before = assembling.now
    assembling.now = Assembly(cfg) if asks(cfg) else None
    try:
        return build(cfg)
    finally:
        assembling.now = before


@contextmanager
def behind(part: nn.Module, cfg: Any) -> Iterator[None]:
    """Within this context what is built reads what a part makes.

    Args:
        part (nn.Module): The part, which reads what arrives so far.
        cfg (dict): Config of what is built.
    """
    now = assembling.now
    if now is None or now.features is None or not asks(cfg):
        yield
        return
    before, now.features = now.features, run(part, now.features)
    try:
        yield
    finally:
        now.features = before


def unknown_channels(cfg: Any) -> str:
    """The sentence for a part that is not told what it will read."""
    return (f"`in_channels='auto'` of {cfg} can only be known where a whole "
            'model is built from its config, after `import vim_mm`; give the '
            'number of channels.')


def run(part: nn.Module, features: Any) -> Any:
    """What a neck makes of blank features; it is left as it was.

    Raises:
        ValueError: If it does not take them.
    """
    try:
        with in_eval(part), torch.no_grad():
            return part(features)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f'{type(part).__name__} does not take what is before it '
            f"({error}), so what reads it cannot have `in_channels='auto'`; "
            'correct its config, or give the number of channels.') from error


def _blank(backbone: nn.Module) -> Any:
    own = getattr(backbone, 'blank_outputs', None)
    if own is not None:
        return own()
    size = getattr(backbone, 'img_size', 224)
    size = size[0] if isinstance(size, (list, tuple)) else size
    return blank_outputs(backbone, size)
