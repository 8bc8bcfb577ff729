# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Backbones found by the names of their linear layers."""

import re
from typing import Dict, Iterable, NamedTuple, Optional, Sequence, Tuple, Union

from .peft_layouts import LAYOUTS, TRUNKS, PeftLayout, Place

#: What stands behind all blocks of a backbone, for classes or other models:
#: no map depends on it.
HEADS = re.compile(r'(heads?|pooler|classifier|fc|fc_norm|attn_pool|'
                   r'pre_logits|head_\w+|\w+_head)(\..*)?')
#: What wraps the whole of a trunk: mmpretrain's and timm's own wrappers.
_WRAPPERS = ('timm_model.model.', 'timm_model.', 'model.', '')


class OwnNames:
    """The names of a trunk's own linears, as a layout.

    Adapters of the same network have them, whatever network it is.

    Args:
        linears (Iterable[str]): The names.
    """

    tower = blocks = ''
    numbers = 0

    def __init__(self, linears: Iterable[str]) -> None:
        linears = list(linears)
        wrapper = next(w for w in _WRAPPERS
                       if all(name.startswith(w) for name in linears))
        tails = {self._dotted(name[len(wrapper):]) for name in linears}
        self.tails = {tail for tail in tails if not HEADS.fullmatch(tail)}

    @staticmethod
    def _dotted(name: str) -> str:
        # timm's features_only makes 'stages_0' of 'stages.0'
        return re.sub(r'_(\d+)\.', r'.\1.', name)

    def locate(self, name: str) -> Optional[Place]:
        """Where a linear of the same network is, None if it has none."""
        for start in (0, *(dot.end() for dot in re.finditer(r'\.', name))):
            tail = self._dotted(name[start:])
            if tail in self.tails:
                return Place(name[:start], (), (tail, ))
        return None


class Found(NamedTuple):
    """A backbone found by the names of its linears.

    Attributes:
        layout (PeftLayout | OwnNames): Its layout.
        prefix (str): What stands before the backbone's names.
        places (dict[str, Place]): Its linears.
    """

    layout: Union[PeftLayout, OwnNames]
    prefix: str
    places: Dict[str, Place]


def find_backbone(
    names: Iterable[str],
    layouts: Sequence[Union[PeftLayout, OwnNames]] = (*LAYOUTS.values(),
                                                      *TRUNKS)
) -> Optional[Found]:
    """The layout and prefix under which most linears have a place.

    Where several name what is there alike, any is right for it, but one of
    fewer numbers or a longer prefix reads part of a name as a prefix.

    Args:
        names (Iterable[str]): Names of linears.
        layouts (Sequence): The layouts to try.

    Returns:
        Found | None: The backbone, None if no linear has a place.
    """
    found: Dict[Tuple[int, str], Found] = {}
    for name in names:
        for number, layout in enumerate(layouts):
            if place := layout.locate(name):
                prefix = place.prefix + layout.tower
                found.setdefault((number, prefix), Found(
                    layout, prefix, {})).places[name] = place
    return max(
        found.values(),
        key=lambda each:
        (len(each.places), each.layout.numbers, -len(each.prefix)),
        default=None)
