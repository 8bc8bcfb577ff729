# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The card of a module: what it is, what it fits, and how good it is."""

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Union

from vim_mm.utils.kinds import KINDS
from vim_mm.utils.messages import short
from vim_mm.version import __version__
from .base_card import Card, ZooError, check_name, is_name, is_sha256

__all__ = ['Dims', 'ModuleCard', 'ZooError', 'check_name', 'is_name']

FORMAT_VERSION = 1
#: Slots of a module, and characters of the name of one.
SLOTS, NAME = 10_000, 400
_SLOT = re.compile(r'\w+(\.\w+)*', re.ASCII)
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
    classes=list,
    image_size=(list, type(None)),
    parts=list,
    version=str,
    training=dict,
    num_params=int,
    sha256=str,
    head_sha256=(str, type(None)),
    format_version=int,
    vim_mm_version=str)

Dims = Union[int, List[int]]


def is_part(value: Any) -> bool:
    """Whether a value says what something was made of, and its licence."""
    return isinstance(value, dict) and isinstance(
        value.get('name'), str) and all(
            isinstance(value.get(key), (str, type(None)))
            for key in ('dataset', 'licence'))


@dataclass(frozen=True, kw_only=True)
class ModuleCard(Card):
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
        licence: Licence of the weights, and of all that they were made of.
        classes: Names of the classes it was trained on, in order.
        image_size: Height and width that images were brought to.
        parts: What it was made of, each a dict of ``name``, ``task``,
            ``dataset``, ``licence`` and, of modules, ``sha256``.
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
    classes: List[str] = field(default_factory=list)
    image_size: Optional[List[int]] = None
    parts: List[Dict[str, Any]] = field(default_factory=list)
    version: str = '1'
    training: Dict[str, Any] = field(default_factory=dict)
    num_params: int = 0
    sha256: str = ''
    head_sha256: Optional[str] = None
    format_version: int = FORMAT_VERSION
    vim_mm_version: str = __version__

    WHAT = 'module'
    VERSION = FORMAT_VERSION
    TYPES = _TYPES
    ON_DISK = _ON_DISK

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_adapter_and_trunk()
        self._check_slots()
        self._check_results()
        self._check_data()

    def _check_adapter_and_trunk(self) -> None:
        kind = self.adapter.get('type')
        if not isinstance(kind, str) or kind.split('.')[-1] != self.kind:
            self._fail(f'its kind is {short(self.kind)} but its adapter has '
                       f'the type {short(kind)}')
        for key in ('type', 'fingerprint'):
            if not isinstance(self.trunk.get(key), str):
                self._fail(f"its 'trunk' lacks {key!r}")

    def _check_slots(self) -> None:
        if not self.slots:
            self._fail('it names no slot')
        for slot in self.slots:
            if not isinstance(slot, str) or len(
                    slot) > NAME or not _SLOT.fullmatch(slot):
                self._fail(f'{short(slot)} is not the name of a submodule')
        if len(self.slots) > SLOTS:
            self._fail(f'it names {len(self.slots):,} slots, and {SLOTS:,} '
                       'are the most that a module has')
        if len(set(self.slots)) != len(self.slots):
            self._fail('it names a slot twice')
        if set(self.dims) != set(self.slots):
            self._fail("'dims' and 'slots' name different slots")
        for slot, dims in self.dims.items():
            sizes = dims if isinstance(dims, list) else [dims]
            if not sizes or not all(type(s) is int and s > 0 for s in sizes):
                self._fail(f'the dims of slot {slot!r} are {short(dims)}, not '
                           'positive integers')

    def _check_data(self) -> None:
        if not all(isinstance(name, str) for name in self.classes):
            self._fail(f"its 'classes' are {self.classes!r}, not names")
        size = self.image_size
        if size is not None and (len(size) != 2 or not all(
                type(side) is int and side > 0 for side in size)):
            self._fail(f"its 'image_size' is {size!r}, not a height and a "
                       'width in pixels')
        for part in self.parts:
            if not is_part(part):
                self._fail(f"the part {short(part)} needs a 'name' and a "
                           "'licence'")

    def _check_results(self) -> None:
        if self.task is not None and self.task not in KINDS:
            self._fail(f'its task is {self.task!r}, not one of '
                       f'{", ".join(KINDS)}')
        for metric in self.metrics:
            if not isinstance(metric, dict) or not isinstance(
                    metric.get('name'), str) or not all(
                        type(metric.get(key)) in (int, float)
                        for key in ('value', 'n')):
                self._fail(f"the metric {short(metric)} needs 'name', 'value' "
                           "and 'n' (the number of test images)")
        for key in ('num_train', 'num_params'):
            if (getattr(self, key) or 0) < 0:
                self._fail(f'its {key!r} is negative')
        for key in ('sha256', 'head_sha256'):
            digest = getattr(self, key)
            if digest and not is_sha256(digest):
                self._fail(f'its {key!r} is not a sha256 in hexadecimal')
