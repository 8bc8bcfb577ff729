# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Sentences on types and settings of any library that there are not."""

import re
from difflib import get_close_matches
from typing import Any, Mapping, Optional

from mmengine.registry import Registry

from .arguments import check_arguments

# the class stands there from Python 3.10 on
_UNEXPECTED = re.compile(
    r"(\w*)\.?__init__\(\) got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(
    r'(\w*)\.?__init__\(\) missing \d+ required (?:positional|keyword-only) '
    r"arguments?: '(\w+)'")


class UnknownTypeError(KeyError, ValueError):
    """A config names a type that is not registered."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError's is in quotes


class SettingError(TypeError, ValueError):
    """A config has a setting that its type does not take, or lacks one."""


def explained(registry: Registry, cfg: Any,
              error: Exception) -> Optional[Exception]:
    """An error of one sentence for what building from a config ended in.

    Args:
        registry (Registry): Where the type was looked up.
        cfg: The config of what could not be built.
        error (KeyError | TypeError): What it ended in.

    Returns:
        Exception | None: It is of the same class, and a ValueError; None if
        the config is not to blame.
    """
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        return None
    kind = cfg['type']
    if isinstance(error, KeyError):
        if isinstance(kind, str) and f'{kind} is not in the' in str(error):
            return no_type(registry, kind)
        return None
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(cfg.get('_scope_')) as own:
            kind = own.get(kind)
    found = _UNEXPECTED.search(str(error)) or _MISSING.search(str(error))
    if not found or not isinstance(kind, type) or found[1] not in [
            '', *(base.__name__ for base in kind.__mro__)]:
        return None
    if found.re is _MISSING:
        return SettingError(f'{kind.__name__} needs `{found[2]}`, which its '
                            f'config lacks; it has {sorted(cfg)}.')
    try:
        check_arguments(kind, [found[2]])
    except ValueError as refusal:
        return SettingError(str(refusal))
    return None


def no_type(registry: Registry, kind: str) -> UnknownTypeError:
    """The error on a type that a registry does not have."""
    scope, _, name = kind.rpartition('.')
    with registry.switch_scope_and_registry(scope or None) as own:
        known = {**own.root.module_dict, **own.module_dict}
    near = get_close_matches(name, known, 1, 0.75)
    fix = f"perhaps '{f'{scope}.' * bool(scope)}{near[0]}' is meant" if near \
        else ("correct it, name its library ('mmdet.…'), or import the "
              'module that registers it (`custom_imports`)')
    return UnknownTypeError(f"There is no type '{kind}' among the "
                            f'{registry.name}s of {own.scope}; {fix}.')
