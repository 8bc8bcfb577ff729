# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The card of a module: what it is, what it fits, and how good it is."""

import json
import re
import warnings
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Dict, List, Mapping, Optional, Union

from vim_mm.utils.kinds import KINDS
from vim_mm.version import __version__

FORMAT_VERSION = 1
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]{0,99}')
_SLOT = re.compile(r'\w+(\.\w+)*', re.ASCII)
_SHA256 = re.compile(r'[0-9a-f]{64}')
# a card on disk is complete; one in memory gets these two when it is saved
_ON_DISK = ('name', 'kind', 'adapter', 'slots', 'dims', 'trunk', 'num_params',
            'sha256')
_TYPES = dict(
    name=str,
    kind=str,
    adapter=dict,
    slots=list,
    dims=dict,
    trunk=dict,
    task=(str, type(None)),
    dataset=(str, type(None)),
    num_train=(int, type(None)),
    metrics=list,
    licence=(str, type(None)),
    version=str,
    training=dict,
    num_params=int,
    sha256=str,
    head_sha256=(str, type(None)),
    format_version=int,
    vim_mm_version=str)

Dims = Union[int, List[int]]


class ZooError(ValueError):
    """A zoo, a module or its trunk is not valid."""


def is_name(name: Any) -> bool:
    """Whether ``name`` may name a module, and so a folder of a zoo."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_name(name: Any) -> str:
    """Return ``name`` if it may name a module.

    Raises:
        ZooError: If it may not. A name becomes a folder, so nothing that could
            leave the zoo's root (slashes, a leading dot) is let through.
    """
    if not is_name(name):
        raise ZooError(
            f'{name!r} cannot name a module: use letters, digits, "_" '
            'and "-", start with a letter or digit, 100 characters at most.')
    return name


@dataclass(frozen=True, kw_only=True)
class ModuleCard:
    """Contents of a module's ``card.json``, checked on construction.

    Args:
        name: Its name, which is also its folder in a zoo.
        kind: The adapter's type without scope, e.g. ``'ConvPass'``.
        adapter: The adapter's config, ``type`` included.
        slots: Names of the trunk's submodules that it plugs into.
        dims: Channels of each slot: one number, or several for a slot that
            is described by more than one.
        trunk: The trunk it was trained beside: ``type``, ``fingerprint`` and
            anything that helps a person find it (``description``,
            ``weights``).
        task: ``'det'``, ``'seg'``, ``'cls'`` or None.
        dataset: What it was trained on.
        num_train: Number of training images.
        metrics: Each a dict of ``name``, ``value`` and ``n``, the number of
            test images behind it.
        licence: Licence of the weights.
        version: Version of the module itself.
        training: Config name, seconds, iterations and the like.
        num_params: Number of floating values; filled in on saving.
        sha256: Of ``module.safetensors``; filled in on saving.
        head_sha256: Of ``head.safetensors`` if there is one; likewise.
        format_version: Version of this format.
        vim_mm_version: The vim_mm that wrote it.

    Raises:
        ZooError: If a field has the wrong type or contradicts another one.
    """

    name: str
    kind: str
    adapter: Dict[str, Any]
    slots: List[str]
    dims: Dict[str, Dims]
    trunk: Dict[str, Any]
    task: Optional[str] = None
    dataset: Optional[str] = None
    num_train: Optional[int] = None
    metrics: List[Dict[str, Any]] = field(default_factory=list)
    licence: Optional[str] = None
    version: str = '1'
    training: Dict[str, Any] = field(default_factory=dict)
    num_params: int = 0
    sha256: str = ''
    head_sha256: Optional[str] = None
    format_version: int = FORMAT_VERSION
    vim_mm_version: str = __version__

    def __post_init__(self) -> None:
        check_name(self.name)
        self._to_plain_json()
        for key, types in _TYPES.items():
            value = getattr(self, key)
            if not isinstance(value, types) or isinstance(value, bool):
                self._fail(f'its {key!r} is {value!r}, which is not of the '
                           'right type')
        self._check_adapter_and_trunk()
        self._check_slots()
        self._check_results()

    def _fail(self, reason: str) -> None:
        raise ZooError(f'The card of module {self.name!r} is invalid: '
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

    def _check_adapter_and_trunk(self) -> None:
        if self.format_version != FORMAT_VERSION:
            self._fail(f'its format_version is {self.format_version}, and '
                       f'vim_mm {__version__} reads and writes '
                       f'{FORMAT_VERSION}; use a vim_mm of its time, '
                       f'{self.vim_mm_version}')
        kind = self.adapter.get('type')
        if not isinstance(kind, str) or kind.split('.')[-1] != self.kind:
            self._fail(f'its kind is {self.kind!r} but its adapter has the '
                       f'type {kind!r}')
        for key in ('type', 'fingerprint'):
            if not isinstance(self.trunk.get(key), str):
                self._fail(f"its 'trunk' lacks {key!r}")

    def _check_slots(self) -> None:
        if not self.slots:
            self._fail('it names no slot')
        for slot in self.slots:
            if not isinstance(slot, str) or not _SLOT.fullmatch(slot):
                self._fail(f'{slot!r} is not the name of a submodule')
        if len(set(self.slots)) != len(self.slots):
            self._fail('it names a slot twice')
        if set(self.dims) != set(self.slots):
            self._fail("'dims' and 'slots' name different slots")
        for slot, dims in self.dims.items():
            sizes = dims if isinstance(dims, list) else [dims]
            if not sizes or not all(type(s) is int and s > 0 for s in sizes):
                self._fail(f'the dims of slot {slot!r} are {dims!r}, not '
                           'positive integers')

    def _check_results(self) -> None:
        if self.task is not None and self.task not in KINDS:
            self._fail(f'its task is {self.task!r}, not one of '
                       f'{", ".join(KINDS)}')
        for metric in self.metrics:
            if not isinstance(metric, dict) or not isinstance(
                    metric.get('name'), str) or not all(
                        type(metric.get(key)) in (int, float)
                        for key in ('value', 'n')):
                self._fail(f"the metric {metric!r} needs 'name', 'value' "
                           "and 'n' (the number of test images)")
        for key in ('num_train', 'num_params'):
            if (getattr(self, key) or 0) < 0:
                self._fail(f'its {key!r} is negative')
        for key in ('sha256', 'head_sha256'):
            digest = getattr(self, key)
            if digest and not _SHA256.fullmatch(digest):
                self._fail(f'its {key!r} is not a sha256 in hexadecimal')

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as plain JSON types, in the order above."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the text of ``card.json``."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + '\n'

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> 'ModuleCard':
        """Read the result of :meth:`to_dict`, also of a newer vim_mm.

        Fields that this version does not know are ignored with a warning; a
        change that old readers must not ignore raises ``format_version``.

        Raises:
            ZooError: If the format is unknown, or a field missing or wrong.
        """
        if not isinstance(data, Mapping):
            raise ZooError('A module card is a JSON object, and this is '
                           f'{type(data).__name__}.')
        name = data.get('name', '(nameless)')
        version = data.get('format_version')
        if type(version) is not int or version != FORMAT_VERSION:
            raise ZooError(
                f'The card of module {name!r} has the format_version '
                f'{version!r}, and vim_mm {__version__} reads '
                f'{FORMAT_VERSION}; install the vim_mm that wrote it '
                f'({data.get("vim_mm_version", "unknown")}) or a newer one.')
        missing = [key for key in _ON_DISK if data.get(key) in (None, '')]
        if missing:
            raise ZooError(f'The card of module {name!r} lacks '
                           f'{", ".join(map(repr, missing))}.')
        unknown = sorted(str(key) for key in data if key not in _TYPES)
        if unknown:
            warnings.warn(
                f'The card of module {name!r} has fields that vim_mm '
                f'{__version__} does not know and ignores: '
                f'{", ".join(unknown)}.')
        return cls(**{key: data[key] for key in _TYPES if key in data})

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> 'ModuleCard':
        """Read the text of a ``card.json``; see :meth:`from_dict`."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ZooError(f'The module card is not valid JSON ({error}).') \
                from None
        return cls.from_dict(data)
