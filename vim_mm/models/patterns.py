# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Submodules named by a pattern."""

import re
from typing import List

from torch import nn


def match_names(module: nn.Module,
                pattern: str,
                what: str,
                nested: bool = False) -> List[str]:
    """Names of the submodules that a pattern matches, in their order.

    Args:
        module (nn.Module): Where to look.
        pattern (str): Regular expression that must match a submodule's full
            name.
        what (str): What the pattern is for, in a word.
        nested (bool): Whether all of nested matches count, or the innermost
            ones alone. Defaults to False.

    Raises:
        ValueError: If none matches, or it is no regular expression.
    """
    try:
        fits = re.compile(pattern).fullmatch
    except (re.error, TypeError) as error:
        raise ValueError(f'The {what} pattern {pattern!r} is no regular '
                         f'expression: {error}.') from error
    names = [n for n, _ in module.named_modules() if fits(n)]
    if not nested:
        names = [
            n for n in names if not any(m.startswith(n + '.') for m in names)
        ]
    if not names:
        some = [n for n, _ in module.named_modules() if n.count('.') == 2][:6]
        raise ValueError(
            f'The {what} pattern {pattern!r} matches no submodule of '
            f'{type(module).__name__}; names look like {some}.')
    return names
