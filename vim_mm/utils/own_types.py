# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Configs of vim_mm's own types, looked at before anything is built.

A config that inherits another keeps settings of the type that stood there
before, and a typo is one more setting. Python would say so by a traceback from
deep inside a library.
"""

from difflib import get_close_matches
from typing import Any, Iterator, Mapping, Optional

from mmengine.registry import DefaultScope, Registry

from .arguments import (check_arguments, check_near, check_switches, passes_on,
                        required_of)
from .config import class_of

SCOPE = 'vim_mm'


def check_own(registry: Registry, cfg: Any, given: Mapping) -> None:
    """Refuse settings that a type of ours does not take, or lacks.

    Of any type, text is refused where True or False is meant, and a misspelt
    setting where a class takes any and passes over it.

    Args:
        registry (Registry): Where the type is looked up.
        cfg: The config of what is to be built.
        given (Mapping): What the builder adds to it.

    Raises:
        ValueError: Names the settings, and those there are.
    """
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        return
    kind = cfg['type']
    names = set(cfg) - {'type', '_scope_'}
    found = class_of(cfg, registry) if names else None
    if found is not None:
        check_switches(found, cfg)
    if isinstance(found, type):
        check_near(found, names)
    if isinstance(kind, str):
        if not kind.startswith(f'{SCOPE}.') and SCOPE not in _scopes(
                registry, cfg):
            return
        with registry.switch_scope_and_registry(cfg.get('_scope_')) as own:
            kind = own.get(kind)
    # a class, or a function that builds something
    if getattr(kind, '__module__', '').split('.')[0] != SCOPE:
        return
    names |= set(given)
    if not passes_on(kind):
        check_arguments(kind, names)
    missing = [name for name in required_of(kind) if name not in names]
    if missing:
        raise ValueError(f'{kind.__name__} needs `{missing[0]}`, which its '
                         f'config lacks; it has {sorted(cfg)}.')


def explain(registry: Registry, cfg: Any,
            error: Exception) -> Optional[str]:
    """A sentence on a type of ours that is not found, or not named at all.

    Args:
        registry (Registry): Where the type was looked up.
        cfg: The config of what could not be built.
        error (KeyError | TypeError): What the building ended in.
    """
    kind = cfg.get('type') if isinstance(cfg, Mapping) else None
    if not isinstance(kind, str):
        return None
    if isinstance(error, TypeError):
        if "'trunk'" not in str(error) or 'trunk' not in cfg:
            return None
        return (f"`trunk` is a setting of 'vim_mm.ViMBackbone', and the type "
                f"of this backbone is {kind!r}; set its `type`, and "
                '`_delete_=True` to keep settings of a `_base_` out.')
    if f'{kind} is not in the' not in str(error):
        return None
    scope, _, name = kind.rpartition('.')
    own = registry.root.children.get(SCOPE)
    if own is None or scope not in ('', SCOPE):
        return None
    own.import_from_location()
    near = get_close_matches(name, own.module_dict, 1, 0.8)
    if not near:
        return None
    return (f"There is no type {kind!r} here; write '{SCOPE}.{near[0]}'.")


def _scopes(registry: Registry, cfg: Mapping) -> Iterator[Optional[str]]:
    """The scopes that a bare type may be of."""
    yield registry.scope
    yield cfg.get('_scope_')
    current = DefaultScope.get_current_instance()
    yield current and current.scope_name
