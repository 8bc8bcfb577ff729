# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Weights of a trunk, loaded as its own library loads them, and checked."""

import os.path as osp
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Mapping, Optional

from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from vim_mm.registry import MODELS
from vim_mm.utils.messages import InputError, cut
from vim_mm.utils.meta import most_parts, without_memory
from vim_mm.utils.plain_config import check_config
from vim_mm.utils.quiet_logs import quiet
from vim_mm.utils.reading import parse_json
from vim_mm.utils.state_dicts import (common_prefix, strip_prefix,
                                      strip_shells, unwrap)
from vim_mm.utils.tensor_files import read_header
from ..moe.ffn import description
from ..moe.foreign_files import check_kind
from .output_norms import is_any_norm, norms_of_outputs
from .weight_errors import mend, need, reading, said

#: What `init_weights` of mmdet's and mmseg's Swin, ViT, BEiT, PVT, ... calls
#: to read a file by itself.
_READERS = {'CheckpointLoader', '_load_checkpoint', 'load_checkpoint'}
#: Scheme under which such a class is handed tensors that are read already.
_HANDED = 'tensors-of://'
_handed: List[Mapping[str, Tensor]] = []


@dataclass
class Loaded:
    """What became of a trunk's tensors; names are the trunk's.

    Attributes:
        missing (list): Those that the file lacks.
        unexpected (list): Those of the file that the trunk lacks.
        mismatches (list): Sentences about those of another shape.
    """
    missing: List[str] = field(default_factory=list)
    unexpected: List[str] = field(default_factory=list)
    mismatches: List[str] = field(default_factory=list)


def load_trunk_weights(trunk: nn.Module,
                       checkpoint: str,
                       prefix: Optional[str] = None,
                       cfg: Optional[dict] = None) -> None:
    """Load a stock checkpoint; every learned tensor must be there.

    A class that reads files by itself (mmdet's and mmseg's Swin, which
    convert official files, mmseg's ViT, which resizes position embeddings)
    does so here, too. Norms that a trunk has only for what it gives out are
    in no stock checkpoint: they stay fresh, and a line names them. Buffers
    that a class computes are no weights.

    Args:
        trunk (nn.Module): The backbone.
        checkpoint (str): Path or URL that mmengine can load, safetensors
            included.
        prefix (str, optional): Prefix of the backbone's names in the file,
            with or without its last dot; by default it is found.
        cfg (dict, optional): The trunk's config, which tells the norms of
            its outputs. Without it none may be missing.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a learned tensor is missing or has another shape, or
            the file says that its weights need other layers, such as another
            activation, which no shape would betray; or if a loader fails.
    """
    state = read_weights(checkpoint)
    with _explaining(trunk, checkpoint):
        state = strip(state, trunk.state_dict(), prefix)
    check_kind(trunk, checkpoint, state, 'model.backbone.trunk')
    with _explaining(trunk, checkpoint):
        loaded = _load(trunk, state, checkpoint)
    check_loaded(trunk, loaded, checkpoint, cfg)


@contextmanager
def _explaining(trunk: nn.Module, checkpoint: str) -> Iterator[None]:
    """Say of any error which file and trunk it is about."""
    try:
        yield
    except Exception as error:  # a library's own loader may raise any
        raise ValueError(
            f"The weights '{checkpoint}' cannot be loaded into this "
            f'{type(trunk).__name__}: {said(error)}.{mend(trunk, error)}'
        ) from error


def read_weights(checkpoint: str) -> Dict[str, Tensor]:
    """The tensors of a file, out of what training wraps them in.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder or an address that cannot be read, or
            holds no tensors.
    """
    checkpoint = osp.expanduser(checkpoint)
    if osp.isdir(checkpoint):
        raise ValueError(
            f"The trunk weights '{checkpoint}' are a folder; name the file in "
            "it, such as 'model.safetensors', in "
            '`model.backbone.trunk.init_cfg.checkpoint`.')
    if '://' not in checkpoint and not osp.isfile(checkpoint):
        raise FileNotFoundError(
            f"The trunk weights '{checkpoint}' do not exist; make them with "
            '`vim-mm convert-trunk`, or point '
            '`model.backbone.trunk.init_cfg.checkpoint` at your file.')
    with reading(checkpoint):
        loaded = CheckpointLoader.load_checkpoint(
            checkpoint, map_location='cpu', logger='silent')
    state = unwrap(loaded)
    if not state:
        raise ValueError(
            f"The weights '{checkpoint}' hold no tensors by name; give the "
            'file of a state dict.')
    return state


def strip(state: Mapping[str, Tensor], own: Mapping[str, Tensor],
          prefix: Optional[str]) -> Dict[str, Tensor]:
    """A file's tensors in the names of the trunk, as far as they have them.

    Args:
        state (Mapping): The tensors of the file.
        own (Mapping): Those of the trunk.
        prefix (str, optional): As in mmengine; found by itself when None.

    Raises:
        ValueError: If no name has the prefix, or several trunks are in it.
    """
    if prefix:
        prefix = prefix if prefix.endswith('.') else f'{prefix}.'
        state = strip_prefix(state, prefix)
        if not state:
            raise ValueError(f"no name in it begins with '{prefix}', the "
                             '`prefix` of `model.backbone.trunk.init_cfg`')
        return state
    found = common_prefix(state, own)
    return strip_shells(state) if found is None else strip_prefix(state, found)


def _load(trunk: nn.Module, state: Mapping[str, Tensor],
          checkpoint: str) -> Loaded:
    """Load tensors by the class's own loader, or mmengine's."""
    with watched(trunk) as loaded:
        code = getattr(type(trunk).init_weights, '__code__', None) if hasattr(
            trunk, 'init_weights') else None
        if code is None or not _READERS & set(code.co_names):
            load_state_dict(trunk, state, strict=False, logger='silent')
            return loaded
        # some read only what stands under 'backbone.', and their converters
        # put official names there
        put = 'backbone.' if 'backbone.' in code.co_consts and not getattr(
            trunk, 'convert_weights', False) else ''
        file = _HANDED + checkpoint
        given = dict(
            init_cfg=ConfigDict(type='Pretrained', checkpoint=file))
        if hasattr(trunk, 'pretrained'):  # some look there
            given['pretrained'] = file
        before = {key: getattr(trunk, key) for key in given}
        _handed.append({f'{put}{key}': value for key, value in state.items()})
        try:
            vars(trunk).update(given)
            with quiet():  # it speaks of a file that is none
                trunk.init_weights()
        except RuntimeError as error:
            # of shapes, which are judged later, and are copied but for these
            if 'loading state_dict' not in str(error):
                raise
        finally:
            _handed.pop()
            vars(trunk).update(before)
    return loaded


@CheckpointLoader.register_scheme(prefixes=_HANDED)
def load_from_hand(filename: str, map_location: object = None) -> dict:
    """Loader of mmengine for the tensors that :func:`_load` hands out."""
    return dict(_handed[-1])


@contextmanager
def watched(trunk: nn.Module) -> Iterator[Loaded]:
    """Take down what any ``load_state_dict`` of a trunk says."""
    loaded, lists = Loaded(), []

    def note(*args) -> None:
        lists.append(args[-3:])  # filled while the trunk loads

    handle = trunk._register_load_state_dict_pre_hook(note)
    try:
        yield loaded
    finally:
        handle.remove()
        for missing, unexpected, errors in lists:
            loaded.missing += missing
            loaded.unexpected += unexpected
            loaded.mismatches += [
                error for error in errors
                if error.startswith(('size mismatch', 'While copying'))
            ]
        if not lists:  # its loader found nothing to load
            loaded.missing += trunk.state_dict()


def check_loaded(trunk: nn.Module, loaded: Loaded, checkpoint: str,
                 cfg: Optional[dict]) -> None:
    """Refuse what is not wholly loaded; say what is fresh or left out.

    Raises:
        ValueError: See :func:`load_trunk_weights`.
    """
    name = type(trunk).__name__
    learned = _learned(trunk)
    wrong = [
        line for line in loaded.mismatches
        if line.split()[3].rstrip(':') in learned or line[0] == 'W'
    ]
    if wrong:
        raise ValueError(
            f"The weights '{checkpoint}' are of another trunk than this "
            f'{name}: {wrong[0].strip()} {len(wrong) - 1} more tensors '
            'differ. Name the trunk that they belong to in '
            "`model.backbone.trunk`, or this one's weights in its "
            '`init_cfg.checkpoint`.')
    _check_recipe(trunk, checkpoint)
    missing = [key for key in loaded.missing if key in learned]
    fresh = norms_of_outputs(trunk, cfg, missing) if missing else []
    missing = [k for k in missing if k.rpartition('.')[0] not in fresh]
    if missing:
        raise ValueError(
            f"The weights '{checkpoint}' lack {len(missing)} tensors of this "
            f'{name}, such as {missing[:3]}; they belong to another trunk, '
            f'or need {need(trunk, missing)}.')
    if fresh:
        print_log(
            f"'{checkpoint}' has no norms for what this {name} gives out: "
            f'{fresh} are fresh (they scale by one), and stay so.',
            logger='current')
    if loaded.unexpected:
        print_log(
            f"'{checkpoint}': {len(loaded.unexpected)} tensors are not part "
            'of the trunk and were left out, such as '
            f'{loaded.unexpected[:3]}.',
            logger='current')


def _learned(trunk: nn.Module) -> Dict[str, Tensor]:
    """Parameters, and the statistics of norms; other buffers are computed."""
    learned = dict(trunk.named_parameters())
    for name, part in trunk.named_modules():
        if is_any_norm(part):
            learned.update((f'{name}.{key}', value)
                           for key, value in part.named_buffers(recurse=False)
                           if key != 'num_batches_tracked')
    return learned


def _check_recipe(trunk: nn.Module, checkpoint: str) -> None:
    """Compare layers with those of the config that the file itself names.

    ``convert_trunk.py`` writes it there. Layers that only one of both has (a
    final norm) are a matter of the run, as are sizes of images and dropout.
    """
    if '://' in checkpoint or not checkpoint.endswith('.safetensors'):
        return
    header = read_header(osp.expanduser(checkpoint))
    if 'backbone' not in header.metadata:
        return
    try:
        recipe = parse_json(header.metadata['backbone'])
        if recipe is None:
            return
        check_config(recipe, 'the config in it')
        with without_memory(most_parts(len(header.shapes))):
            right = dict(MODELS.build(recipe).named_modules())
    except Exception as error:  # a stranger's config may lead to any
        raise InputError(
            f"The weights '{checkpoint}' cannot be used: "
            f'{said(error)}; get or convert them again.') from None
    for name, layer in trunk.named_modules():
        if list(layer.children()) or isinstance(layer, _DropoutNd):
            continue
        own, other = map(description, (layer, right.get(name, layer)))
        if own != other and not issubclass(own[0], _DropoutNd):
            own, other = ('{0.__name__}({1})'.format(*d) for d in (own, other))
            raise InputError(
                f"The weights '{checkpoint}' were trained with {other} as "
                f"'{name}', but this {type(trunk).__name__} has {own}; "
                f'set `model.backbone.trunk` like {cut(str(recipe), 600)}.')
