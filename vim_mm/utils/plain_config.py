# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs that come out of files: plain values, and names of known types."""

from importlib import import_module
from typing import Any, Dict, Mapping, Sequence

from mmengine.registry import MODELS as ROOT
from mmengine.registry import WEIGHT_INITIALIZERS as INITIALIZERS
from mmengine.registry import Registry

from .kinds import KINDS
from .messages import short

#: Numbers of layers, channels or pixels that a config may ask for.
LARGEST = 1_000_000


def check_config(config: Any,
                 who: str,
                 roots: Sequence[Registry] = (ROOT, INITIALIZERS)) -> None:
    """Refuse what is no plain value or names a type that is not registered.

    mmengine imports and calls whatever a dotted name of an unregistered type
    leads to.

    Args:
        config: The config.
        who (str): What it is, for messages.
        roots (Sequence[Registry]): Where types are registered. Defaults to
            models and what initialises them.

    Raises:
        ValueError: Names the first such value.
    """
    if isinstance(config, Mapping):
        kind = config.get('type')
        if kind is not None and not (isinstance(kind, str)
                                     and is_registered(kind, roots)):
            raise ValueError(f'{who} names the type {short(kind)}, which no '
                             'library registers')
        scope = config.get('_scope_')
        if scope is not None and scope not in list(_scopes(ROOT)):
            raise ValueError(f'{who} names the scope {short(scope)}, which no '
                             'library has')
        for key, value in config.items():
            if not isinstance(key, str):
                raise ValueError(f'{who} has the key {short(key)}; keys are '
                                 'names')
            check_config(value, who, roots)
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_config(value, who, roots)
    elif not isinstance(config, (str, int, float, bool, type(None))):
        raise ValueError(f'{who} has the value {short(config)}; give plain '
                         'values')
    elif isinstance(config, int) and abs(config) > LARGEST:
        raise ValueError(f'{who} has the number {short(config)}; sizes are '
                         f'{LARGEST:,} at most')


def is_registered(kind: str,
                  roots: Sequence[Registry] = (ROOT, INITIALIZERS)) -> bool:
    """Whether a type's name, with or without scope, is one of a registry."""
    scope, dot, name = kind.rpartition('.')
    for root in roots:
        for key, registry in _scopes(root).items():
            if dot and key != scope:
                continue
            registry.import_from_location()
            if name in registry.module_dict:
                return True
    return False


def _scopes(root: Registry) -> Dict[str, Registry]:
    # registries are known once imported
    for scope in ('vim_mm', *(kind.scope for kind in KINDS.values())):
        import_module(f'{scope}.registry')
    return {root.scope: root, **root.children}
