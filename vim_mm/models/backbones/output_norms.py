# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Norms that a trunk has only for what a run wants it to give out."""

import inspect
from typing import Dict, Iterator, List, Optional, Sequence

import torch
from mmcv.cnn import is_norm
from torch import nn

from vim_mm.registry import MODELS
from .configs import innermost, with_innermost

#: What stands where no norm is; some classes keep its place.
_NONE = nn.Identity()


def norms_of_outputs(trunk: nn.Module, cfg: Optional[dict],
                     missing: Sequence[str]) -> List[str]:
    """Norms among missing tensors that other outputs would not need.

    Swin, ConvNeXt, DaViT and MViT make one for each of ``out_indices``, a ViT
    one for averaged features. They are told from the norms that were trained
    by building the trunk with other outputs: it then lacks them.

    Args:
        trunk (nn.Module): The backbone.
        cfg (dict, optional): Its config; no norm is known without.
        missing (Sequence[str]): Names of tensors.

    Returns:
        list[str]: Names of norms.
    """
    parts = dict(trunk.named_modules())
    names = dict.fromkeys(key.rpartition('.')[0] for key in missing)
    norms = [name for name in names if is_any_norm(parts[name])]
    if cfg is None or not norms:
        return []
    found: Dict[str, None] = {}
    for twin in _twins(trunk, cfg):
        # a norm of a stage that other outputs cut off went with the stage
        found.update((name, None) for name in norms
                     if isinstance(twin.get(name, _NONE), nn.Identity)
                     and name.rpartition('.')[0] in twin)
    return [name for name in norms if name in found]


def is_any_norm(part: nn.Module) -> bool:
    """Whether a layer is a norm, of torch or of a library's own class."""
    return is_norm(part) or ('norm' in type(part).__name__.lower()
                             and not any(True for _ in part.children()))


def _twins(trunk: nn.Module, cfg: dict) -> Iterator[Dict[str, nn.Module]]:
    """The submodules of the trunk with other outputs than its config says."""
    own = innermost(cfg)
    kind = own['type']
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    known = set(inspect.signature(kind).parameters)
    options = [('out_type', None), ('final_norm', False)]
    for key in ('out_indices', 'out_scales'):
        given = getattr(trunk, key, None) or [0]
        last = given if isinstance(given, int) else max(given)
        options += [(key, [0]), (key, [last])]
    for key, value in options:
        if key not in known.union(own):
            continue
        other = {k: v for k, v in own.items() if k != key}
        if value is not None:
            other[key] = value
        try:
            # what it draws is no one's business
            with torch.random.fork_rng(devices=[]):
                twin = MODELS.build(with_innermost(cfg, other))
        except Exception:  # this class takes no such outputs
            continue
        yield dict(twin.named_modules())
