# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The trunk inside the checkpoint that the authors of ViM released.

One pickle holds the trunk, all modules and every task. Its trunk is CLIP's
visual tower in OpenAI's names, without their ``visual.`` in front.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from vim_mm.utils.checkpoint import UntrustedPickleError, load_from_local
from .clip import CLIP
from .family import StateDict
from .sources import ConversionError

__all__ = ['VIM_RELEASE', 'read_release']

TRUNK = 'backbone_weights'
PARTS = (TRUNK, 'meta_info', 'ViM_weights', 'ViM_agg_weights', 'head_weights')


def read_release(path: Path, trust: bool = False) -> dict[str, Any]:
    """Read the released pickle, restricted to tensors and plain containers.

    Args:
        path (Path): The file.
        trust (bool): Whether a file that holds more may be read all the same,
            which can run any code.

    Returns:
        dict: Its parts, see :data:`PARTS`.

    Raises:
        CheckpointError: If the file is damaged.
        ConversionError: If it would run code and is not trusted, or lacks a
            part.
    """
    if not path.is_file():
        raise ConversionError('there is no such file: check the path')
    try:
        content = load_from_local(str(path), map_location='cpu')
    except UntrustedPickleError as error:
        if not trust:
            raise ConversionError(
                f'{str(error).partition(": if you trust")[0]}. If you trust '
                'its origin pass --trust (`trust=True`)') from None
        print_log(
            f'{path} is read UNSAFELY, as --trust asks: it can run any code '
            'on this machine',
            logger='current',
            level=logging.WARNING)
        content = torch.load(path, map_location='cpu', weights_only=False)
    if not isinstance(content, dict):
        raise ConversionError('the file holds no dictionary: take the file '
                              'of the release, pytorch_model.pt')
    missing = [part for part in PARTS if part not in content]
    if missing:
        raise ConversionError(
            f"the file lacks '{missing[0]}', its first keys are "
            f'{list(content)[:5]}: take the file of the release, '
            'pytorch_model.pt, as it was published')
    return content


def read_tower(path: Path, trust: bool = False) -> StateDict:
    """The trunk's tensors, in the names of OpenAI's whole CLIP."""
    tower = read_release(path, trust)[TRUNK]
    if not isinstance(tower, dict) or not all(
            isinstance(value, Tensor) for value in tower.values()):
        raise ConversionError(f"its '{TRUNK}' are no state dict (names to "
                              'tensors): take the file as it was published')
    return {f'visual.{key}': value for key, value in tower.items()}


VIM_RELEASE = replace(
    CLIP, read=read_tower, licence='that of the released checkpoint')
