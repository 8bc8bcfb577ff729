# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import re
from typing import List

from torch import nn


def match_modules(model: nn.Module,
                  pattern: str,
                  what: str = 'pattern') -> List[str]:
    """Names of the submodules that a pattern matches, in the model's order.

    Args:
        model (nn.Module): The model.
        pattern (str): Regular expression that must match a submodule's full
            name.
        what (str): What messages call it. Defaults to ``'pattern'``.

    Raises:
        ValueError: If none matches, or it is no regular expression.
    """
    try:
        fits = re.compile(pattern).fullmatch
    except (re.error, TypeError) as error:
        raise ValueError(f'The {what} {pattern!r} is no regular expression: '
                         f'{error}.') from error
    found = [name for name, _ in model.named_modules()]
    names = [name for name in found if fits(name)]
    if not names:
        some = [name for name in found if name.count('.') == 2] or found[1:]
        raise ValueError(
            f'The {what} {pattern!r} matches no submodule of '
            f'{type(model).__name__}; names look like {some[:6]}.')
    return names
