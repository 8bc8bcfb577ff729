# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What the cards of published folders have in common."""

import json
import re
import warnings
from dataclasses import asdict, fields
from typing import (Any, ClassVar, Dict, Mapping, NoReturn, Sequence, Type,
                    TypeVar, Union)

from vim_mm.utils.drafts import NotFlushedError
from vim_mm.utils.messages import InputError, cut, printable, short
from vim_mm.utils.reading import JSON_BYTES, ReadError, check_plain, parse_json
from vim_mm.version import __version__

_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]{0,99}')
_SHA256 = re.compile(r'[0-9a-f]{64}')
Self = TypeVar('Self', bound='Card')


class ZooError(InputError):
    """A zoo, a module, its trunk or another published folder is not valid."""


class ZooNotFlushedError(ZooError, NotFlushedError):
    """A zoo was changed, and the disk has not said that it stays so."""


def is_name(name: Any) -> bool:
    """Whether ``name`` may name a module, and so a folder of a zoo."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_name(name: Any, what: str = 'module') -> str:
    """Return ``name`` if it may name a module, or what it is to name.

    Raises:
        ZooError: If it may not. A name becomes a folder, so nothing that could
            leave the zoo's root (slashes, a leading dot) is let through.
    """
    if not is_name(name):
        raise ZooError(
            f'{short(name)} cannot name a {what}: use letters, digits, "_" '
            'and "-", start with a letter or digit, 100 characters at most.')
    return name


def is_sha256(digest: Any) -> bool:
    """Whether this is a sha256 in hexadecimal."""
    return isinstance(digest, str) and _SHA256.fullmatch(digest) is not None


class Card:
    """Contents of a ``card.json``: fields of plain JSON, each of its type.

    A card is a frozen dataclass with this base and with the fields ``name``,
    ``format_version`` and ``vim_mm_version``.

    Attributes:
        WHAT (str): What a card of this class describes, for messages.
        VERSION (int): Version of the format that is read and written.
        TYPES (dict): Type, or types, of each field.
        ON_DISK (Sequence[str]): Fields that must not be empty on disk.
    """

    WHAT: ClassVar[str]
    VERSION: ClassVar[int]
    TYPES: ClassVar[Dict[str, Any]]
    ON_DISK: ClassVar[Sequence[str]]

    def __post_init__(self) -> None:
        check_name(self.name, self.WHAT)
        self._to_plain_json()
        for key, types in self.TYPES.items():
            value = getattr(self, key)
            if not isinstance(value, types) or isinstance(value, bool):
                self._fail(f'its {key!r} is {short(value)}, which is not of '
                           'the right type')
        if self.format_version != self.VERSION:
            self._fail(f'its format_version is {self.format_version}, and '
                       f'vim_mm {__version__} reads and writes '
                       f'{self.VERSION}; use a vim_mm of its time, '
                       f'{self.vim_mm_version}')

    def _fail(self, reason: str) -> NoReturn:
        raise ZooError(f'The card of {self.WHAT} {self.name!r} is invalid: '
                       f'{reason}.')

    def _to_plain_json(self) -> None:
        """Turn config dicts and tuples into plain JSON types."""
        for item in fields(self):
            value = getattr(self, item.name)
            try:
                text = json.dumps(value, allow_nan=False, ensure_ascii=False)
                text.encode()
                plain = json.loads(text)
            except (TypeError, ValueError, RecursionError) as error:
                self._fail(f'its {item.name!r} cannot be written as JSON '
                           f'({error})')
            object.__setattr__(self, item.name, plain)
        try:
            check_plain(dict(vars(self)))
        except ReadError as error:
            self._fail(f'its card could not be read again, as {error}')

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as plain JSON types, in their order."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the text of ``card.json``, for people if it may be long."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + '\n'
        if len(text.encode()) <= JSON_BYTES:
            return text
        return json.dumps(
            self.to_dict(), ensure_ascii=False, separators=(',', ':'))

    @classmethod
    def from_dict(cls: Type[Self], data: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_dict`, also of a newer vim_mm.

        Fields that this version does not know are ignored with a warning; a
        change that old readers must not ignore raises ``format_version``.

        Raises:
            ZooError: If the format is unknown, or a field missing or wrong.
        """
        if not isinstance(data, Mapping):
            raise ZooError(f'A {cls.WHAT} card is a JSON object, and this is '
                           f'{type(data).__name__}.')
        name = short(data.get('name', '(nameless)'))
        version = data.get('format_version')
        if type(version) is not int or version != cls.VERSION:
            raise ZooError(
                f'The card of {cls.WHAT} {name} has the format_version '
                f'{short(version)}, and vim_mm {__version__} reads '
                f'{cls.VERSION}; install the vim_mm that wrote it '
                f'({short(data.get("vim_mm_version"))}) or a newer one.')
        missing = [key for key in cls.ON_DISK if data.get(key) in (None, '')]
        if missing:
            raise ZooError(f'The card of {cls.WHAT} {name} lacks '
                           f'{", ".join(map(repr, missing))}.')
        unknown = sorted(str(key) for key in data if key not in cls.TYPES)
        if unknown:
            warnings.warn(
                f'The card of {cls.WHAT} {name} has fields that vim_mm '
                f'{__version__} does not know and ignores: '
                f'{printable(cut(", ".join(unknown), 200), "")}.')
        return cls(**{key: data[key] for key in cls.TYPES if key in data})

    @classmethod
    def from_json(cls: Type[Self], text: Union[str, bytes]) -> Self:
        """Read the text of a ``card.json``; see :meth:`from_dict`."""
        try:
            data = parse_json(text)
        except ReadError as error:
            raise ZooError(f'The {cls.WHAT} card cannot be used: {error}.'
                           ) from None
        return cls.from_dict(data)
