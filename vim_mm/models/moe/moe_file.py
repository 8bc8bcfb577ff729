# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One file with a mixture-of-experts trunk of any structure.

A moe file is a safetensors file of the trunk's tensors. Its header holds the
config of the trunk as it was first built, the tasks and ``k`` of each layer,
and how often experts ran. How many experts and routers there are is told by
the tensors themselves, see :mod:`.structure`.
"""

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import (Any, Dict, Iterator, List, Mapping, Optional, Sequence,
                    Tuple, Union)

import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from vim_mm.utils.checksum import BLANK, NAME, is_intact, save_tensors
from vim_mm.utils.messages import InputError, short
from vim_mm.utils.plain_config import check_config
from vim_mm.utils.reading import parse_json
from vim_mm.utils.tensor_files import (FLOATS, Header, TensorFileError,
                                       load_tensors, read_header)
from vim_mm.version import __version__
from ..task_names import check_task_name
from .structure import Structure, holds_experts, structure_in
from .surgery import Usage, experts_of

FORMAT = 1
_KEY = 'moe'
#: weights come from the file; nothing else is to be fetched
_SOURCES = ('init_cfg', 'pretrained', 'weights', 'checkpoint')


class MoEFileError(InputError):
    """A moe file that cannot be used."""


@dataclass(frozen=True)
class LayerInfo:
    """What a moe file says of a layer of experts.

    Attributes:
        structure (Structure): Its experts and routers.
        tasks (list[str]): The tasks of the routers, in order.
        k (int): Experts per token.
        gate_scale (float): What gates are multiplied by.
    """
    structure: Structure
    tasks: List[str]
    k: int
    gate_scale: float


@dataclass(frozen=True)
class MoEFile:
    """The header of a moe file.

    Attributes:
        path (str): Where it is.
        backbone (dict): Config of the trunk as it was first built.
        layers (dict[str, LayerInfo]): By their names in the trunk.
        shapes (dict[str, tuple[int]]): Of all tensors, by name.
        usage (dict): How often experts ran, by layer and task.
        num_params (int): Number of floating values.
        card (dict): What it says of its data; empty if nothing.
    """
    path: str
    backbone: Dict[str, Any]
    layers: Dict[str, LayerInfo]
    shapes: Dict[str, Tuple[int, ...]]
    usage: Dict[str, Dict[str, Tensor]]
    num_params: int
    card: Dict[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> List[str]:
        """The tasks that have a router in some layer."""
        return list(
            dict.fromkeys(task for layer in self.layers.values()
                          for task in layer.tasks))

    def tensors(self) -> Dict[str, Tensor]:
        """The trunk's tensors, on the CPU.

        Raises:
            MoEFileError: If the file is damaged.
        """
        if is_intact(self.path) is False:
            raise MoEFileError(
                f'{self.path} is damaged: its bytes are not those that its '
                'checksum is of; get or write it again.')
        with _explained(self.path):
            return load_tensors(self.path)


# ------------------------------------------------------------------ writing


def save_moe(backbone: nn.Module,
             config: Mapping,
             path: Union[str, Path],
             usage: Optional[Usage] = None,
             card: Optional[Mapping] = None) -> None:
    """Write a trunk and its structure into one file.

    To leave tasks or experts out, extract them first, see :func:`extract`.

    Args:
        backbone (nn.Module): The trunk.
        config (Mapping): Its config, as in a model; one of ``load_moe`` stands
            for what its file was first built from. What names weights is left
            out.
        path (str | Path): The file, whose name ends in ``.safetensors``.
        usage (Usage, optional): How often experts ran.
        card (Mapping, optional): What it says of its data, as plain JSON:
            ``dataset``, ``licence``, ``classes`` and ``image_size`` by task,
            ``parts``.

    Raises:
        ValueError: If the trunk has no layer of experts, or the config is not
            made of plain values and names of registered types.
    """
    check_name(path)
    layers = experts_of(backbone)
    header = dict(
        format=FORMAT,
        vim_mm_version=__version__,
        backbone=_first_config(config),
        layers={
            name:
            dict(tasks=layer.tasks, k=layer.k, gate_scale=layer.gate_scale)
            for name, layer in layers.items()
        },
        usage={
            name: {
                task: counts.tolist()
                for task, counts in usage[name].items() if task in layer.tasks
            }
            for name, layer in layers.items() if name in (usage or {})
        },
        card=dict(card or {}),
        **{NAME: BLANK})
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in backbone.state_dict().items()
    }
    # one entry: safetensors writes several in any order
    save_tensors(tensors, {_KEY: json.dumps(header)}, path)


def check_name(path: Union[str, Path]) -> None:
    """Refuse a name that no moe file has.

    Raises:
        MoEFileError: If it does not end in ``.safetensors``.
    """
    if Path(path).suffix != '.safetensors':
        raise MoEFileError(f"A moe file's name ends in .safetensors; {path} "
                           'does not.')


def _first_config(config: Mapping) -> dict:
    """Config that a trunk of this kind is built from, without weights."""
    kind = str(config.get('type'))
    if kind.split('.')[-1] == 'load_moe':
        return read_moe(config['checkpoint']).backbone
    config = _without_sources(config)
    scope = DefaultScope.get_current_instance()
    if scope is not None:
        config.setdefault('_scope_', scope.scope_name)
    try:
        check_config(config, 'the config of the backbone')
    except ValueError as error:
        raise MoEFileError(f'No moe file can be written: {error}.') from None
    return config


def _without_sources(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {
            key: _without_sources(value)
            for key, value in config.items() if key not in _SOURCES
        }
    if isinstance(config, (list, tuple)):
        return [_without_sources(value) for value in config]
    return config


# ------------------------------------------------------------------ reading


def read_moe(path: Union[str, Path]) -> MoEFile:
    """Read and check the header of a moe file.

    Args:
        path (str | Path): The file.

    Raises:
        FileNotFoundError: If there is none.
        MoEFileError: If it is damaged, or no moe file.
    """
    if not isinstance(path, (str, Path)):
        raise MoEFileError(f'{path!r} is no path of a moe file; give the '
                           'name of one, which ends in .safetensors.')
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'There is no moe file {path}; check the path '
                                'or write it (`vim-mm moe extract`).')
    header = header_of(path)
    text, shapes = header.metadata.get(_KEY), header.shapes
    if text is None and not holds_experts(shapes):
        raise MoEFileError(
            f'{path} is no moe file: it holds no experts; they start from a '
            'dense file if it is the `init_cfg.checkpoint` of the trunk of a '
            '`vim_mm.to_moe`.')
    if text is None:
        raise MoEFileError(f'{path} is no moe file: it does not say how its '
                           'trunk is built; write one with `vim-mm moe '
                           'extract`.')
    try:
        notes = parse_json(text)
        if notes['format'] != FORMAT:
            raise ValueError(f'it has the format {short(notes["format"])}, '
                             f'and vim_mm {__version__} reads {FORMAT}')
        check_config(dict(notes['backbone']), 'its config')
        if _without_sources(notes['backbone']) != notes['backbone']:
            raise ValueError('its config names weights elsewhere')
        layers = _layers(notes['layers'], shapes)
        card = dict(notes.get('card', {}))
        usage = {
            name: {
                task: _counts(counts)
                for task, counts in tasks.items()
            }
            for name, tasks in notes['usage'].items()
        }
    except (ArithmeticError, AttributeError, LookupError, RuntimeError,
            TypeError, ValueError) as error:
        said = error if isinstance(error, ValueError) else repr(error)
        raise MoEFileError(f'{path} cannot be used: {str(said).rstrip(".")}; '
                           'get or write it again.') from error
    num = sum(
        torch.Size(shape).numel() for name, shape in shapes.items()
        if header.dtypes[name] in FLOATS)
    return MoEFile(path, notes['backbone'], layers, shapes, usage, num, card)


def header_of(path: str) -> Header:
    """The header of a safetensors file.

    Raises:
        MoEFileError: If it is none.
    """
    with _explained(path):
        return read_header(path)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except TensorFileError as error:
        raise MoEFileError(
            f'{path} is truncated or no safetensors file ({error}); get it '
            'again, or write a moe file from a config and its checkpoint '
            '(`vim-mm moe extract`).') from error


def _layers(infos: Mapping,
            shapes: Mapping[str, Sequence[int]]) -> Dict[str, LayerInfo]:
    # a layer looks at its own tensors alone: the longest name that fits
    own: Dict[str, Dict[str, Sequence[int]]] = {name: {} for name in infos}
    for name, shape in shapes.items():
        parts = name.split('.')
        starts = ('.'.join(parts[:end]) for end in range(len(parts), 0, -1))
        owner = next((start for start in starts if start in own), None)
        if owner is not None:
            own[owner][name] = shape
    return {name: _layer(info, own[name], name)
            for name, info in infos.items()}


def _counts(counts: Any) -> Tensor:
    """How often experts ran, as a row."""
    row = torch.tensor(counts, dtype=torch.double)
    if row.ndim != 1:
        raise ValueError(f'its usage {short(counts)} is no row of numbers')
    return row


def _layer(info: Mapping, shapes: Mapping[str, Sequence[int]],
           name: str) -> LayerInfo:
    structure = structure_in(shapes, f'{name}.')
    tasks = list(info['tasks'])
    if not name.isprintable():
        raise ValueError(f'its layer {short(name)} has no printable name')
    for task in tasks:
        check_task_name(task)
        if not task.isprintable():
            raise ValueError(f'its task {short(task)} has no printable name')
    if set(tasks) != structure.routers.keys() or not structure.groups:
        raise ValueError(f"its tensors of '{name}' have the routers "
                         f'{sorted(structure.routers)} and '
                         f'{structure.num_experts} experts, and its header '
                         f'names {tasks}')
    k, scale = info['k'], info['gate_scale']
    if type(k) is not int or type(scale) not in (int, float):
        raise ValueError(f"'{name}' has k {short(k)} and gate_scale "
                         f'{short(scale)}')
    return LayerInfo(structure, tasks, k, scale)
