# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Tensor names of one library in those of another."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

__all__ = ['Layout', 'fuse_qkv']

#: Towers that a file may hold, for one to be found, and looks at names.
TOWERS, LOOKS = 16, 200_000


@dataclass(frozen=True)
class Layout:
    """One publisher's naming of the tensors of a backbone.

    A name in ``stem`` or ``parts`` stands for a tensor or for a module whose
    tensors keep their leaf names.

    Attributes:
        publisher (str): Who names tensors so.
        mark (str): A key, without prefix, that only this layout has.
        stem (Mapping): Names outside the blocks to the other library's.
        blocks (str): Name of a block, with '{}' for each of its numbers.
        parts (Mapping): Names in a block to the other library's.
        layers (str): What the other library calls a block.
        dropped (Mapping): Patterns of names in the tower that a trunk does
            not take, to what they are.
        outside (str): What a whole model has beside its tower.
    """

    publisher: str
    mark: str
    stem: Mapping[str, str]
    blocks: str
    parts: Mapping[str, str]
    layers: str = 'layers.{}'
    dropped: Mapping[str, str] = field(default_factory=dict)
    outside: str = 'what is no part of the trunk'

    def places(self, state: Mapping[str, Tensor]) -> dict[str, int]:
        """Where towers may stand in a file.

        Whole models, wrappers and other towers put anything before a name.

        Returns:
            dict[str, int]: Prefixes, and how many tensors each finds.

        Raises:
            ValueError: If there are too many.
        """
        prefixes = {
            key.removesuffix(self.mark)
            for key in state if f'.{key}'.endswith(f'.{self.mark}')
        }
        if len(prefixes) > TOWERS or (len(prefixes) > 1 and
                                      len(prefixes) * len(state) > LOOKS):
            raise ValueError(f'it holds {len(prefixes)} towers: save the '
                             'tensors of one')
        return {
            prefix:
            sum(
                self.rename(key[len(prefix):]) is not None for key in state
                if key.startswith(prefix))
            for prefix in sorted(prefixes)
        }

    def drop_reason(self, key: str) -> Optional[str]:
        """Why a trunk does not take a tensor, None if it does."""
        for pattern, what in self.dropped.items():
            if re.fullmatch(pattern, key):
                return what
        return None

    def rename(self, key: str) -> Optional[str]:
        """The other library's name of a tensor, None if there is none."""
        table, head = self.stem, ''
        if block := _in_block(self.blocks).fullmatch(key):
            *numbers, key = block.groups()
            table, head = self.parts, f'{self.layers.format(*numbers)}.'
        if key in table:
            return head + table[key]
        module, _, leaf = key.rpartition('.')
        return f'{head}{table[module]}.{leaf}' if module in table else None


@lru_cache
def _in_block(blocks: str) -> re.Pattern:
    """What a name inside a block looks like."""
    blocks = re.escape(blocks).replace(re.escape('{}'), r'(\d+)')
    return re.compile(rf'{blocks}\.(.+)')


def fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack separate ``attn.q``, ``attn.k`` and ``attn.v`` as ``attn.qkv``.

    Raises:
        ValueError: If one of the three is missing, or of another shape.
    """
    fused = {}
    for key, tensor in state.items():
        part = re.fullmatch(r'(.+\.attn\.)([qkv])\.(weight|bias)', key)
        if part is None:
            fused[key] = tensor
            continue
        names = [f'{part[1]}{x}.{part[3]}' for x in 'qkv']
        if missing := [n for n in names if n not in state]:
            raise ValueError(f"no tensor in the file became '{missing[0]}': "
                             'it is cut short, fetch it again')
        if part[2] == 'q':
            if len({state[n].shape for n in names}) > 1:
                raise ValueError(f"'{key}' and what belongs to it have other "
                                 'shapes: it is damaged')
            fused[f'{part[1]}qkv.{part[3]}'] = torch.cat(
                [state[n] for n in names])
    return fused
