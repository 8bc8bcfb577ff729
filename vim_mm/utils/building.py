# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs are looked at where models, hooks and loops are built.

Detectors, segmentors and classifiers build their parts one by one from
configs, each from its own library's registry. All of them call
``Registry.build``, so that is where settings of our own types are checked, and
where ``in_channels='auto'`` is noticed; what is to be done then needs torch
and is loaded when the first config asks for it.
"""

import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from functools import wraps
from types import FrameType
from typing import Any, Callable, Optional

from mmengine.registry import Registry

from .config import type_name
from .messages import short
from .misspelt import explained
from .own_types import check_own, explain

AUTO = 'auto'
#: Libraries whose parts have others of their own by default.
_LIBRARIES = ('mmdet', 'mmpretrain', 'mmseg')
#: Necks that pool tokens and read how many of them are no patches.
_POOLING = ('StandardizedPooling', 'TokenPooling')


class RefusedError(ValueError):
    """A constructor of a library has refused its arguments."""


class Assembling(threading.local):
    """The model that is being built, if its config asks; one per thread."""

    now: Optional[Any] = None


assembling = Assembling()


def asks(cfg: Any) -> bool:
    """Whether a config, or one inside it, leaves a setting to the model."""
    if isinstance(cfg, dict):
        return asks_itself(cfg) or any(map(asks, cfg.values()))
    return isinstance(cfg, (list, tuple)) and any(map(asks, cfg))


def asks_itself(cfg: dict) -> bool:
    """Whether a config leaves ``in_channels='auto'``, or a neck its tokens."""
    own, kind = cfg.get('in_channels'), cfg.get('type')
    if isinstance(own, str) and own == AUTO:
        return True
    return (isinstance(kind, str) and kind.rpartition('.')[2] in _POOLING
            and cfg.get('num_extra_tokens') is None)


def watch_builds(load: Callable[[], Callable]) -> None:
    """Let a function build the parts of models whose config asks. Idempotent.

    Args:
        load (Callable): Gives the function, which takes the registry, how it
            builds, and the config.
    """
    original = Registry.build
    if hasattr(original, 'watched'):
        return

    def checked(self: Registry, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        more = kwargs.get('default_args', args[0] if args else None)
        check_own(self, cfg, more or {})
        try:
            return original(self, cfg, *args, **kwargs)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            own = _of_library(self, cfg, error)
            if own is not None:
                return self.build(own, *args, **kwargs)
            better = _better(self, cfg, error)
            if better is None:
                raise
            raise better from error

    @wraps(original)
    def build(self: Registry, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if self.name == 'model' and (assembling.now is not None or asks(cfg)):
            return load()(
                self, lambda part: checked(self, part, *args, **kwargs), cfg)
        return checked(self, cfg, *args, **kwargs)

    build.watched = True
    Registry.build = build


def _of_library(registry: Registry, cfg: Any,
                error: Exception) -> Optional[dict]:
    """A config of the type that the library which asks for it means.

    Parts of a library have types of its own by default, whatever the scope
    of the run is.

    Args:
        registry (Registry): Where the type was looked up.
        cfg: The config of what is to be built.
        error (Exception): What it ended in.

    Returns:
        dict | None: The config with the library's name; None if the type is
        there, or no library asks for it.
    """
    kind = cfg.get('type') if isinstance(cfg, Mapping) else None
    if not isinstance(error, KeyError) or not isinstance(kind, str) \
            or '.' in kind or f'{kind} is not in the' not in str(error):
        return None
    frame: Optional[FrameType] = sys._getframe(2)
    while frame is not None:
        package = frame.f_globals.get('__name__', '').partition('.')[0]
        if package in _LIBRARIES:
            name = f'{package}.{kind}'
            return dict(cfg, type=name) if registry.get(name) else None
        if package not in ('mmengine', 'vim_mm'):
            return None
        frame = frame.f_back
    return None


def _better(registry: Registry, cfg: Any,
            error: Exception) -> Optional[Exception]:
    """The same error in a sentence; None if there is no better one."""
    from .cli import is_user_error  # which needs torch
    if 'must contain the key "type"' in str(error):
        return RefusedError(
            f'A config among the {registry.name}s has no `type`, only '
            f'{short(sorted(cfg))}; name its class.')
    if isinstance(error, (KeyError, TypeError)):
        said = explain(registry, cfg, error)
        better = explained(registry, cfg, error) if said is None \
            else ValueError(said)
        if better is not None:
            return better
    if is_user_error(error) or not str(error) or not isinstance(
            cfg, dict) or 'type' not in cfg:
        return None
    name = type_name(cfg)
    frame = deque(traceback.walk_tb(error.__traceback__), 1)[0][0]
    built = type(frame.f_locals.get('self')).__mro__
    if frame.f_code.co_name != '__init__' or name.rpartition('.')[2] not in [
            each.__name__ for each in built
    ]:
        return None
    # a constructor has looked at its own arguments
    return RefusedError(f'{name} cannot be built as the config says: '
                        f'{str(error).rstrip(".")}.')
