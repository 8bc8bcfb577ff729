# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Adapters from configs, which may be a stranger's."""

from typing import Any, Dict, Mapping, Sequence, Type, Union

import torch

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_arguments, check_is_config
from vim_mm.utils.messages import VALUE, cut, short
from vim_mm.utils.meta import shapes, without_memory
from .base_adapter import BaseAdapter

#: width of a slot, or the widths of its input and output
Dims = Union[int, Sequence[int]]


def adapter_class(cfg: Mapping) -> Type[BaseAdapter]:
    """The class of one of our registered kinds, and nothing else.

    The config may come from a stranger's card. A registry would also import
    and call whatever a dotted ``type`` names, so only names of our own
    adapters are let through.

    Raises:
        ValueError: If it is no config, or its type is no adapter.
    """
    check_is_config(cfg, 'adapter')
    if cfg.get('type') is None:
        raise ValueError('`adapter` has no `type`, so it is no kind of '
                         "adapter; give one, such as 'ConvPass'.")
    kind = str(cfg['type'])
    MODELS.import_from_location()
    cls = MODELS.module_dict.get(kind.replace('vim_mm.', '', 1))
    if not (isinstance(cls, type) and issubclass(cls, BaseAdapter)):
        known = sorted({
            value.__name__ for value in MODELS.module_dict.values()
            if isinstance(value, type) and issubclass(value, BaseAdapter)
        })
        raise ValueError(f"'{kind}' is no kind of adapter; known are {known}.")
    return cls


def build_adapter(cfg: dict, dims: Dims) -> BaseAdapter:
    """Build an adapter of one of our registered kinds.

    Args:
        cfg (dict): Config of the adapter, without ``dims``.
        dims (int | Sequence[int]): Width of its slot, or the widths of the
            slot's input and output where these differ.

    Raises:
        ValueError: If its type is no adapter, or does not take such a slot
            or such settings.
    """
    cls, args = adapter_class(cfg), dict(cfg)
    del args['type']
    check_arguments(cls, args, inner=('dims', ))
    if not isinstance(dims, int) and not cls.linear:
        raise ValueError(
            f'{cls.__name__} cannot sit beside a layer that maps {dims[0]} '
            f'channels to {dims[1]}; narrow its `slots` pattern, or use LoRA.')
    try:
        return cls(dims=dims, **args)
    except ValueError:
        raise
    except Exception as error:  # what settings of a wrong type lead to
        raise ValueError(
            f'{cls.__name__} cannot be built from {short(args)}: '
            f'{cut(str(error), VALUE)}.') from error


def shapes_of(cfg: dict, dims: Mapping[str, Dims]) -> Dict[str, torch.Size]:
    """Shapes of the tensors of a module, found without memory.

    Args:
        cfg (dict): Config of its adapters.
        dims (Mapping[str, Dims]): Width of each slot it occupies.

    Returns:
        dict: By ``'<slot>.<param>'``.

    Raises:
        ValueError: See :func:`build_adapter`.
    """
    # many slots are alike
    known: Dict[Any, Dict[str, torch.Size]] = {}
    found: Dict[str, torch.Size] = {}
    with without_memory():
        for slot, width in dims.items():
            key = width if isinstance(width, int) else tuple(width)
            if key not in known:
                adapter = build_adapter(cfg, width)
                known[key] = shapes(adapter.state_dict())
            found.update((f'{slot}.{name}', shape)
                         for name, shape in known[key].items())
    return found
