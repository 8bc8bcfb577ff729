# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Names and numbers of ``paramwise_cfg``, against the parameters of a model.

mmengine passes over names that it does not know, and over keys that are in no
parameter's name: a rate that was meant for a part is then never used.
"""

import logging
import re
from difflib import SequenceMatcher
from typing import Any, Iterable, Mapping, Optional, Set

from mmengine.logging import print_log
from torch import nn

from vim_mm.utils.arguments import check_number
from vim_mm.utils.keys import PARAMWISE, RATES
from vim_mm.utils.known_keys import check_names
from vim_mm.utils.messages import short

_WHERE = 'optim_wrapper.paramwise_cfg'
_DEFAULT = 'DefaultOptimWrapperConstructor'
#: Where one name is taken for another that is misspelt.
_NEAR = 0.85
#: Of words that are no longer any two letters may change places by chance.
_SHORT = 3


def check_paramwise(optim_wrapper: Mapping) -> Mapping[str, Mapping]:
    """Refuse names and numbers that are none.

    Args:
        optim_wrapper (dict): Config of the optimizer wrapper.

    Returns:
        dict: Its ``custom_keys``.

    Raises:
        ValueError: If a name is misspelt, or a factor is no number.
    """
    given = _dict(optim_wrapper.get('paramwise_cfg'), _WHERE)
    check_names(f'{_WHERE}.', given, PARAMWISE)
    constructor = optim_wrapper.get('constructor') or _DEFAULT
    unread = sorted(set(given) - set(PARAMWISE))
    if unread and getattr(constructor, '__name__', constructor) == _DEFAULT:
        _warn(f'`{_WHERE}` has {short(unread)}, which {_DEFAULT} does not '
              f'read; it reads {", ".join(PARAMWISE)}.')
    _check_factors(given, _WHERE)
    keys = _dict(given.get('custom_keys'), f'{_WHERE}.custom_keys')
    for name, own in keys.items():
        if not isinstance(name, str):
            raise ValueError(f'`{_WHERE}.custom_keys` has the key {name!r}; '
                             "give a part of a parameter's name.")
        where = f"{_WHERE}.custom_keys['{name}']"
        check_names(f'{where}.', _dict(own, where), RATES)
        _check_factors(own, where)
    return keys


def _dict(given: Any, where: str) -> Mapping:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f'`{where}` is {short(given)}; give a dict, such as '
                         'dict(lr_mult=0.1) for a part of the model.')
    return given


def _check_factors(given: Mapping, where: str) -> None:
    for key, value in given.items():
        if key.endswith('_mult'):
            check_number(value, f'{where}.{key}')


def check_custom_keys(model: nn.Module, keys: Mapping[str, Mapping]) -> None:
    """Name keys of rates that move nothing; refuse those that are misspelt.

    Keys that a config inherits may be of parts that its model has not.

    Args:
        model (nn.Module): The model, not wrapped.
        keys (Mapping[str, dict]): The ``custom_keys``.

    Raises:
        ValueError: If a key is nearly the name of a part.
    """
    learns = {n: p.requires_grad for n, p in model.named_parameters()}
    lost = []
    for key, own in keys.items():
        held = [each for name, each in learns.items() if key in name]
        if held and not any(held) and 'lr_mult' in own:
            _warn(f"`paramwise_cfg.custom_keys['{key}']` is the rate of "
                  f'{len(held)} parameters that are frozen, so it moves '
                  'nothing.')
        if any(held) and own.get('lr_mult') == 0:
            _warn(f"`paramwise_cfg.custom_keys['{key}'].lr_mult` is 0: "
                  f'{sum(held)} parameters stay as they are, unless the '
                  'schedule sets rates itself, as OneCycleLR does.')
        near = None if held else _meant(key, learns)
        if near is not None:
            raise ValueError(
                f"`paramwise_cfg.custom_keys['{key}']` is the rate of no "
                f"parameter; perhaps '{near}' is meant.")
        if not held:
            lost.append(key)
    if lost:
        _warn(f'`paramwise_cfg.custom_keys` has {short(lost)}, which are in '
              "no parameter's name, so they change no rate; a key is a part "
              f"of a name, such as '{next(iter(learns), '')}'.")


def _meant(key: str, names: Iterable[str]) -> Optional[str]:
    """The part of a parameter's name that a key is misspelt for."""
    parts = key.strip('.').split('.')  # '.norm' begins a word
    for path in sorted(_paths(names, len(parts))):
        pairs = [pair for pair in zip(parts, path.split('.'))
                 if pair[0] != pair[1]]
        if len(pairs) == 1 and _alike(*pairs[0]):
            return path
    return None


def _paths(names: Iterable[str], length: int) -> Set[str]:
    """All parts of names that have so many words."""
    found: Set[str] = set()
    for name in names:
        words = name.split('.')
        for start in range(len(words) - length + 1):
            found.add('.'.join(words[start:start + length]))
    return found


def _alike(one: str, other: str) -> bool:
    """Whether a word is another one with a slip, or two letters changed."""
    if re.sub(r'\d+', '', one) == re.sub(r'\d+', '', other):
        return False  # layers that are counted
    if len(one) > _SHORT and sorted(one) == sorted(other):
        return True
    return SequenceMatcher(None, one, other).ratio() >= _NEAR


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)
