# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From ViM's released checkpoint to a trunk, a zoo and runnable tasks."""

import json
import os
from pathlib import Path
from typing import List, Mapping, Optional, Sequence, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from safetensors import safe_open
from torch import nn

from vim_mm.models import build_model
from vim_mm.registry import MODELS
from vim_mm.utils.checksum import save_checkpoint
from vim_mm.utils.config import read_config
from vim_mm.utils.files import new_folder
from vim_mm.utils.meta import check_shapes, without_memory
from vim_mm.zoo.card import check_name
from vim_mm.zoo.export import head_state, save_module
from .trunks import ConversionError, convert_trunk
from .trunks.vim_release import read_release
from .vim_release_layout import (ReleasedTask, StateDict, hidden_dims,
                                 read_modules, read_tasks, stack_logits)

PathLike = Union[str, os.PathLike]
TRUNK, ZOO = 'trunk.safetensors', 'zoo'


def convert_release(src: PathLike,
                    dst: PathLike,
                    configs: Mapping[str, PathLike],
                    names: Optional[Sequence[str]] = None,
                    tasks: Optional[Sequence[str]] = None,
                    licence: Optional[str] = None,
                    trust: bool = False) -> Path:
    """Convert a checkpoint in the layout of ViM's release.

    ``dst`` then holds ``trunk.safetensors``, ``zoo/`` and for each task
    ``<task>.pth`` (gates, neck and head, as a run would leave them) and
    ``<task>.py``, the config that runs it.

    Args:
        src (PathLike): The released ``pytorch_model.pt``.
        dst (PathLike): The folder to make.
        configs (Mapping[str, PathLike]): Config that runs a task of each
            kind, 'cls' and 'seg'; sizes, names and paths are filled in.
        names (Sequence[str], optional): Names of the modules, in the file's
            order. The file has none: ``module-0``, … when None.
        tasks (Sequence[str], optional): The tasks to convert; all when None.
        licence (str, optional): Licence of the weights, for the cards.
        trust (bool): Whether ``src`` may be a pickle that runs code.

    Returns:
        Path: ``dst``.

    Raises:
        ConversionError: If anything is missing, in excess or does not fit;
            nothing is written then.
    """
    src, dst = Path(src), Path(dst)
    try:
        with new_folder(dst, ConversionError) as draft:
            content = read_release(src, trust)
            modules = read_modules(content)
            names = _module_names(names, len(modules))
            released = read_tasks(content, len(modules), tasks)
            trunk = _convert_trunk(src, draft / TRUNK, trust)
            _save_modules(trunk, modules, names, draft / ZOO, src.name,
                          licence)
            for task in released:
                cfg = _task_config(configs[task.kind], trunk, names, task)
                _save_task(cfg, task, draft, dst)
    except (ArithmeticError, LookupError, RuntimeError, TypeError,
            ValueError) as error:
        # what is said of tensors that the authors would not have written
        text = str(error) if isinstance(error, ValueError) else repr(error)
        if not text.startswith('cannot convert'):
            text = f"cannot convert '{src}': {text}"
        raise ConversionError(text) from None
    print_log(
        f'{dst}: {len(names)} modules, tasks '
        f'{", ".join(task.name for task in released) or "none"}',
        logger='current')
    return dst


def _convert_trunk(src: Path, path: Path, trust: bool) -> dict:
    """Write the trunk; return the config of its backbone with weights."""
    convert_trunk('vim-release', src, path, trust)
    with safe_open(path, 'pt') as file:
        trunk = json.loads(file.metadata()['backbone'])
    trunk['init_cfg'] = dict(type='Pretrained', checkpoint=str(path))
    return trunk


def _module_names(names: Optional[Sequence[str]], number: int) -> List[str]:
    names = list(names or (f'module-{index}' for index in range(number)))
    if len(names) != number or len(set(names)) != number:
        raise ConversionError(f'{len(names)} names are given, {names}, and '
                              f'the file holds {number} modules: give each '
                              'a name of its own, in the order of the file')
    return [check_name(name) for name in names]


def _save_modules(trunk: dict, modules: Sequence[StateDict],
                  names: Sequence[str], zoo: Path, source: str,
                  licence: Optional[str]) -> None:
    backbone = MODELS.build(
        dict(
            type='vim_mm.ViMBackbone',
            trunk=trunk,
            probe_size=trunk['img_size']))
    dims = {name: slot.dims for name, slot in backbone.slots.items()}
    blocks = len({key.rpartition('.attn')[0] for key in modules[0]} - {''})
    if 2 * blocks != len(dims):
        raise ConversionError(f'its modules are made for {blocks} blocks and '
                              f'the trunk has {len(dims) // 2}')
    for name, tensors in zip(names, modules):
        adapter = dict(
            type='vim_mm.ConvPass', hidden_dims=hidden_dims(tensors, name))
        try:
            backbone.bank.add(name, adapter, dims, tensors, trainable=False)
        except ValueError as error:
            raise ConversionError(str(error)) from None
        save_module(
            backbone,
            name,
            str(zoo),
            trunk=dict(weights=TRUNK, description=f'the trunk of {source}'),
            licence=licence,
            training=dict(source=source))


def _task_config(path: PathLike, trunk: dict, names: Sequence[str],
                 task: ReleasedTask) -> Config:
    """A kind's config with the sizes that a file has."""
    cfg = read_config(str(path))
    model = cfg.model
    model.backbone.trunk.update(trunk)
    model.backbone.update(
        zoo=str(Path(trunk['init_cfg']['checkpoint']).parent / ZOO),
        modules=list(names),
        probe_size=trunk['img_size'],
        fusion=dict(type='vim_mm.EnsMoE', tasks=[task.name]))
    try:
        classes = _SIZES[task.kind](model, task.head)
    except KeyError as error:
        raise ConversionError(f"the head of task '{task.name}' lacks a "
                              f'tensor, to become {error}') from None
    except (IndexError, ValueError):
        raise ConversionError(f"the head of task '{task.name}' has a weight "
                              'of fewer dimensions than a layer has'
                              ) from None
    if task.classes is not None and len(task.classes) != classes:
        raise ConversionError(f"task '{task.name}' has {classes} classes and "
                              f"{len(task.classes)} names in 'label_map'")
    return cfg


def _set_cls_sizes(model: dict, head: StateDict) -> int:
    classes, dims = head['head.fc.weight'].shape
    model['head'].update(num_classes=classes, in_channels=dims)
    return classes


def _set_seg_sizes(model: dict, head: StateDict) -> int:
    dims = head['neck.resizes.1.weight'].shape[0]
    width = head['neck.inner_neck.lateral_convs.0.conv.weight'].shape[0]
    classes, channels = head['decode_head.conv_seg.weight'].shape[:2]
    model['neck']['in_channels'] = (dims, ) * 4
    model['neck']['inner_neck'].update(
        in_channels=[dims] * 4, out_channels=width)
    model['decode_head'].update(
        in_channels=[width] * 4, channels=channels, num_classes=classes)
    return classes


_SIZES = dict(cls=_set_cls_sizes, seg=_set_seg_sizes)


def _save_task(cfg: Config, task: ReleasedTask, draft: Path,
               dst: Path) -> None:
    _check_parts(cfg, task)
    model = build_model(cfg)
    _fill(model, task)
    save_checkpoint(
        dict(meta=_meta(task), state_dict=model.state_dict()),
        draft / f'{task.name}.pth')
    backbone = cfg.model.backbone
    backbone.zoo = str(dst / ZOO)
    backbone.trunk.init_cfg.checkpoint = str(dst / TRUNK)
    cfg.load_from = str(dst / f'{task.name}.pth')
    cfg.dump(draft / f'{task.name}.py')


def _check_parts(cfg: Config, task: ReleasedTask) -> None:
    """Compare neck and head with the file's before memory is taken.

    Raises:
        ConversionError: If a shape differs.
    """
    own = {}
    with DefaultScope.overwrite_default_scope(
            cfg.get('default_scope')), without_memory():
        for part in ('neck', 'decode_head', 'head'):
            if cfg.model.get(part):
                state = MODELS.build(cfg.model[part]).state_dict()
                own.update((f'{part}.{key}', value.shape)
                           for key, value in state.items())
    both = own.keys() & task.head.keys()
    try:
        check_shapes({key: own[key] for key in both},
                     {key: task.head[key].shape for key in both})
    except ValueError as error:
        raise ConversionError(f"the head of task '{task.name}' cannot be "
                              f'built: {error}') from None


def _meta(task: ReleasedTask) -> dict:
    """Names of the classes, and colours, which mmseg asks for beside them."""
    if task.classes is None:
        return {}
    colours = np.random.default_rng(0).integers(
        256, size=(len(task.classes), 3))
    return dict(
        dataset_meta=dict(classes=task.classes, palette=colours.tolist()))


@torch.no_grad()
def _fill(model: nn.Module, task: ReleasedTask) -> None:
    """Put gates, neck and head into the model, every tensor of them."""
    backbone = model.backbone
    slots = list(backbone.fusion.task_slots[task.name])
    backbone.fusion.set_logits(task.name, stack_logits(task, slots))
    own = {key: value.shape for key, value in head_state(model).items()}
    for key in sorted(own.keys() ^ task.head.keys()):
        what = 'lacks' if key in own else 'has, beyond what is known,'
        raise ConversionError(
            f"the head of task '{task.name}' {what} a tensor, to become "
            f"'{key}': it is of another architecture")
    for key, shape in own.items():
        if task.head[key].shape != shape:
            raise ConversionError(
                f"'{key}' of task '{task.name}' has shape "
                f'{tuple(task.head[key].shape)}, expected {tuple(shape)}')
    model.load_state_dict(task.head, strict=False)
