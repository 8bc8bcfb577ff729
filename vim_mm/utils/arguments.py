# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checks of config arguments; errors are one sentence."""

import inspect
from difflib import get_close_matches
from math import isfinite
from numbers import Real
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence


def arguments_of(kind: Callable) -> List[str]:
    """Names of the arguments of a class, with those it passes on.

    Functions that build something, as a registry may hold, have some, too.
    """
    return list(_arguments(kind))


def _arguments(kind: Callable) -> Dict[str, inspect.Parameter]:
    found: Dict[str, inspect.Parameter] = {}
    makers = [kind]
    if isinstance(kind, type):
        # what object takes is nothing, and slow to be told
        makers = [
            cls.__init__ for cls in kind.__mro__
            if cls.__init__ is not object.__init__
        ]
    for maker in makers:
        params = inspect.signature(maker).parameters.values()
        for p in params:
            if p.name != 'self' and p.kind not in (p.VAR_POSITIONAL,
                                                   p.VAR_KEYWORD):
                found.setdefault(p.name, p)
        if all(p.kind != p.VAR_KEYWORD for p in params):
            break
    return found


#: What people, and command lines, write for True or False.
_SWITCHED = ('0', '1', 'false', 'n', 'no', 'none', 'off', 'on', 'true',
             'y', 'yes')


def check_switches(kind: Callable, cfg: Mapping) -> None:
    """Refuse text where a class takes True or False: all text counts as True.

    Some take a word, too, as FPN's ``add_extra_convs`` does. So any text is
    refused only where the class says that it takes no other; elsewhere, that
    which is written for True or False.

    Args:
        kind (Callable): The class, or a function that builds something.
        cfg (Mapping): Its config.

    Raises:
        ValueError: If there is some.
    """
    given = {key: value for key, value in cfg.items()
             if isinstance(value, str) and key not in ('type', '_scope_')}
    try:
        known = _arguments(kind) if given else {}
    except ValueError:  # what is written in C has no signature
        return
    for name in given.keys() & known.keys():
        switch = known[name]
        if isinstance(switch.default, bool) and (
                switch.annotation in (bool, 'bool')
                or given[name].lower() in _SWITCHED):
            raise ValueError(
                f'`{name}` of {kind.__name__} is the text {given[name]!r}, '
                'which counts as True; give True or False.')


def _parameters(kind: Callable) -> List[inspect.Parameter]:
    """What a class, or a function that builds something, is called with."""
    if not isinstance(kind, type):
        return list(inspect.signature(kind).parameters.values())
    if kind.__init__ is object.__init__:  # whose signature takes anything
        return []
    return list(inspect.signature(kind.__init__).parameters.values())[1:]


def required_of(kind: Callable) -> List[str]:
    """Names of the arguments that nothing can be built without."""
    return [
        p.name for p in _parameters(kind) if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def passes_on(kind: Callable) -> bool:
    """Whether a class takes any setting, to hand it to others."""
    return any(p.kind == p.VAR_KEYWORD for p in _parameters(kind))


def check_arguments(kind: Callable,
                    given: Iterable[str],
                    inner: Sequence[str] = ()) -> None:
    """Refuse settings that a class does not take.

    Args:
        kind (Callable): The class, or a function that builds something.
        given (Iterable[str]): Names of the settings.
        inner (Sequence[str]): Arguments that no config gives.

    Raises:
        ValueError: If there are others; names those that there are.
    """
    known = [name for name in arguments_of(kind) if name not in inner]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f'{kind.__name__} takes no {", ".join(unknown)}; '
                         f'{_hint(unknown, known)}it takes '
                         f'{", ".join(known) or "none at all"} '
                         '(`_delete_=True` keeps settings '
                         'of a `_base_` out).')


def check_near(kind: type, given: Iterable[str]) -> None:
    """Refuse misspelt settings of a class that takes any, and drops them.

    Args:
        kind (type): The class; one that takes no others says so itself.
        given (Iterable[str]): Names of the settings.

    Raises:
        ValueError: If one is nearly the name of an argument.
    """
    # what wraps an `__init__` of the libraries takes former names, too
    if not passes_on(kind) or any(hasattr(cls.__init__, '__wrapped__')
                                  for cls in kind.__mro__):
        return
    known = arguments_of(kind)
    for name in sorted(set(given) - set(known)):
        near = get_close_matches(name, known, 1, 0.85)
        if near and near[0] not in given:
            raise ValueError(f'{kind.__name__} takes no {name}; perhaps '
                             f'{near[0]} is meant.')


def _hint(unknown: Sequence[str], known: Sequence[str]) -> str:
    """What was probably meant by settings that are not known."""
    if 'pretrained' in unknown:
        return ('the model hands its own one on: set `model.pretrained=None` '
                'and name weights in `trunk.init_cfg`; ')
    meant = [
        near for name in unknown
        for near in get_close_matches(name, known, 1, 0.75)
    ]
    return f'perhaps {", ".join(meant)} is meant; ' if meant else ''


def check_is_config(cfg: Any, what: str) -> None:
    """Refuse the bare name of a type where its config is asked for.

    Raises:
        ValueError: If it is no mapping.
    """
    if isinstance(cfg, str):
        raise ValueError(f'`{what}` is {cfg!r}; give a config, such as '
                         f'dict(type={cfg!r}).')
    if not isinstance(cfg, Mapping):
        raise ValueError(f'`{what}` is {cfg!r}; give a config, a dict.')


def check_by_task(given: Any, what: str) -> None:
    """Refuse what is not told apart by task.

    Raises:
        ValueError: If it is no mapping.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f'`{what}` is {given!r}; give a dict by task, such '
                         'as dict(cls=…).')


def check_is_list(names: Any, what: str) -> None:
    """Refuse one name where names are asked for: it has letters, too.

    Raises:
        ValueError: If it is a string, or nothing that holds names.
    """
    if not isinstance(names, Iterable):
        raise ValueError(f'`{what}` is {names!r}; give a list of names, [] '
                         'for none.')
    if isinstance(names, str):
        raise ValueError(f'`{what}` is the name {names!r}; give a list of '
                         f'names, [{names!r}].')


def refuse_init_cfg(part: Any, what: str) -> None:
    """Refuse an ``init_cfg`` of a part where it would never be applied.

    Args:
        part (BaseModule): The part as it was built.
        what (str): Where its config stands.

    Raises:
        ValueError: If it was given one.
    """
    if getattr(part, 'init_cfg', None):
        raise ValueError(
            f'`{what}.init_cfg` would never be applied: what is inside a '
            'ViMBackbone is ready when it is built. Leave it out; to start '
            'from a checkpoint set `model.backbone.init_cfg`.')


def check_width(value: Any, what: str) -> None:
    """Refuse values that are no number of channels, ranks or modules.

    Raises:
        ValueError: If it is no whole number of 1 or more.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f'`{what}` is {value!r}; give a whole number, 1 or '
                         'more.')


def check_positive(value: Any, what: str) -> None:
    """Refuse values that are no number above zero.

    Raises:
        ValueError: If it is another value, infinity or nan.
    """
    if not isinstance(value, Real) or isinstance(
            value, bool) or not 0 < value < float('inf'):
        raise ValueError(f'`{what}` is {value!r}; give a number above 0.')


def check_finite(value: Any, what: str) -> None:
    """Refuse values that are no finite number.

    Raises:
        ValueError: If it is of another type, infinity or nan.
    """
    if not isinstance(value, Real) or isinstance(
            value, bool) or not isfinite(value):
        raise ValueError(f'`{what}` is {value!r}; give a finite number.')


def check_number(value: Any, what: str, below: float = float('inf')) -> None:
    """Refuse values that are no number of zero or more.

    Args:
        value: The value.
        what (str): Where it stands.
        below (float): What it must be below. Defaults to infinity.

    Raises:
        ValueError: If it is another value, infinity or nan.
    """
    if not isinstance(value, (int, float)) or isinstance(
            value, bool) or not 0 <= value < below:
        end = ', 0 or more' if below == float('inf') \
            else f' from 0 to below {below}'
        raise ValueError(f'`{what}` is {value!r}; give a number{end}.')
