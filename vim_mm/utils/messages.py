# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Text that may come from a stranger's file, made fit for a terminal.

A name or a description can hold escape sequences, which a terminal obeys, and
be as long as its file.
"""

from typing import Any, Iterable, List

#: Characters of a message; what is longer loses its middle.
MESSAGE = 1200
#: Characters of a value inside a message.
VALUE = 80
#: Lines of a list of what is alike; of more the number is said.
LINES = 20


class InputError(ValueError):
    """What is wrong with a file, in a sentence that is safe to print."""

    def __init__(self, message: Any = '') -> None:
        super().__init__(cut(printable(str(message)), MESSAGE))


def printable(text: str, keep: str = '\n') -> str:
    """The text with what is no visible character written as an escape.

    Args:
        text (str): The text.
        keep (str): Characters that stay. Defaults to the line break.
    """
    if text.isprintable():
        return text
    return ''.join(
        char if char.isprintable() or char in keep else
        repr(char)[1:-1] for char in text)


def cut(text: str, limit: int) -> str:
    """The text, without its middle if it is longer than ``limit``."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f'{text[:head]} … {text[len(text) - limit + head + 3:]}'


def short(value: Any) -> str:
    """A value for the inside of a message."""
    return cut(repr(value), VALUE)


def first_lines(lines: Iterable[str], limit: int = LINES) -> List[str]:
    """The first of many lines, and how many more there are.

    Args:
        lines (Iterable[str]): All of them.
        limit (int): How many stay. Defaults to :data:`LINES`.
    """
    lines = list(lines)
    more = len(lines) - limit
    return [*lines[:limit], f'… and {more:,} more'] if more > 0 else lines
