# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs that come out of files: plain values, and names of known types."""

from importlib import import_module
from typing import Any, Dict, Mapping

from mmengine.registry import MODELS as ROOT
from mmengine.registry import WEIGHT_INITIALIZERS as INITIALIZERS
from mmengine.registry import Registry

from .kinds import KINDS


def check_config(config: Any, who: str) -> None:
    """Refuse what is no plain value or names a type that is not registered.

    mmengine imports and calls whatever a dotted name of an unregistered type
    leads to.

    Raises:
        ValueError: Names the first such value.
    """
    if isinstance(config, Mapping):
        kind = config.get('type')
        if kind is not None and not (isinstance(kind, str)
                                     and is_registered(kind)):
            raise ValueError(f'{who} names the type {kind!r}, which no '
                             'library registers')
        scope = config.get('_scope_')
        if scope is not None and scope not in _scopes(ROOT):
            raise ValueError(f'{who} names the scope {scope!r}, which no '
                             'library has')
        for key, value in config.items():
            if not isinstance(key, str):
                raise ValueError(f'{who} has the key {key!r}; keys are '
                                 'names')
            check_config(value, who)
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_config(value, who)
    elif not isinstance(config, (str, int, float, bool, type(None))):
        raise ValueError(f'{who} has the value {config!r}; give plain '
                         'values')


def is_registered(kind: str) -> bool:
    """Whether a type's name, with or without scope, is one of a registry."""
    scope, dot, name = kind.rpartition('.')
    for root in (ROOT, INITIALIZERS):
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
