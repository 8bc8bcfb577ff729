# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From a trained model to a moe file: how experts are used, what is kept."""

import os.path as osp
from itertools import islice
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner, set_random_seed
from torch import Tensor, nn

from vim_mm.models import build_model
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.checkpoint_notes import read_notes
from vim_mm.models.head_origin import head_parts
from vim_mm.models.moe import (extract, load_moe, read_moe, save_adaptation,
                               save_moe, set_k, tasks_of)
from vim_mm.models.moe.moe_file import check_name
from vim_mm.models.moe.statistics import RoutingStatistics
from vim_mm.models.moe.surgery import K, experts_of
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.models.multitask.single_task import config_tasks, task_config
from vim_mm.models.task_names import check_tasks
from vim_mm.models.tasks import select_task
from vim_mm.utils.arguments import check_number, check_width
from vim_mm.utils.checkpoint_form import state_of
from vim_mm.utils.config import read_config, type_name
from vim_mm.utils.described import card_fields, image_size
from vim_mm.zoo import ModuleCard, Zoo, head_state
from vim_mm.zoo.parts import of_parts, part_of, together

#: how many batches are looked at, if nothing else is said
BATCHES = 50


def extract_moe(cfg: Union[str, Config],
                checkpoint: str,
                path: str,
                tasks: Optional[Sequence[str]] = None,
                threshold: Optional[float] = None,
                k: Optional[K] = None,
                batches: Optional[int] = None) -> nn.Module:
    """Write the trunk of a trained model as a moe file.

    Args:
        cfg (str | Config): Config of the run.
        checkpoint (str): What it left.
        path (str): The file to write.
        tasks (Sequence[str], optional): The tasks to keep; all of a
            multi-task model and the running one of others when None.
        threshold (float, optional): Drop experts that these use less, see
            :func:`extract`. Defaults to None, no other than those that no
            task knows.
        k (int | Mapping[str, int], optional): Experts per token, see
            :func:`set_k`; as trained when None.
        batches (int, optional): Number of training batches of each task to
            count on how often experts run. When None, what training itself
            has counted (``model.routing``), or else :data:`BATCHES`.

    Returns:
        nn.Module: The trunk as it was written.

    Raises:
        ValueError: If something does not fit; nothing is written then.
    """
    cfg = read_config(cfg)
    if batches is not None:
        check_width(batches, 'batches')
    if threshold is not None:
        check_number(threshold, 'threshold')
    check_name(path)
    model, meta = load_trained(cfg, checkpoint)
    trunk = model.backbone
    tasks = runnable(model) if tasks is None else list(tasks)
    check_tasks(tasks, tasks_of(trunk), 'the trunk')
    if k is not None:
        set_k(trunk, k)
        batches = batches or BATCHES  # training has counted for another k
    usage = {} if batches else counted(model)
    if batches or threshold is not None:
        for task in tasks:
            if not all(
                    task in usage.get(each, {}) for each in experts_of(trunk)):
                found = measure_usage(
                    trunk, task,
                    islice(images(cfg, model, task), batches or BATCHES))
                for name, counts in found.items():
                    usage.setdefault(name, {})[task] = counts
    left = extract(trunk, tasks, usage, threshold)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        save_moe(trunk, cfg.model.backbone, path, left,
                 moe_card(cfg, tasks, meta))
    return trunk


def save_adapted(cfg: Union[str, Config],
                 checkpoint: str,
                 zoo: str,
                 name: Optional[str] = None,
                 overwrite: bool = False,
                 **card_fields: Any) -> ModuleCard:
    """Write what a run has made of the trunk of a moe file into a zoo.

    Args:
        cfg (str | Config): Config of the run, whose backbone is a
            ``load_moe``.
        checkpoint (str): What it left.
        zoo (str): Directory of the zoo.
        name (str, optional): Name of the module; that of the task when None.
        overwrite (bool): Replace a module of that name. Defaults to False.
        **card_fields: See :func:`save_adaptation`.

    Returns:
        ModuleCard: As written.

    Raises:
        ValueError: If more than routers and experts was trained, or something
            does not fit; nothing is written then.
    """
    cfg = read_config(cfg)
    model, meta = load_trained(cfg, checkpoint)
    card_fields.setdefault('classes', list(meta.get('classes') or []))
    file = cfg.model.backbone.checkpoint
    return save_adaptation(
        model.backbone,
        load_moe(file),
        name or runnable(model)[0],
        zoo,
        head_state(model) or None,
        overwrite,
        trunk=dict(card_fields.pop('trunk', {}), weights=osp.basename(file)),
        **of_parts(card_fields, together([_parts(cfg), head_parts(model)])))


def moe_card(cfg: Config, tasks: Sequence[str],
             meta: Dict[str, Any]) -> Dict[str, Any]:
    """What a moe file says of the data that its trunk was trained on.

    Args:
        cfg (Config): Config of the run; its ``module_card`` names data set
            and licence.
        tasks (Sequence[str]): The tasks in the file.
        meta (dict): What the checkpoint says of the data sets.
    """
    several = config_tasks(cfg)
    metas = meta.get('tasks') or dict.fromkeys(tasks, meta)
    said = card_fields(cfg)
    fields = {key: said.get(key) for key in ('dataset', 'licence')}
    return dict(
        of_parts(fields, _parts(cfg)),
        classes={
            task: list(map(str, metas.get(task, {}).get('classes') or []))
            for task in tasks
        },
        image_size={
            task: image_size(task_config(cfg, task) if several else cfg)
            for task in tasks
        })


def _parts(cfg: Config) -> List[Dict[str, Any]]:
    """What the trunk of a run began with, if that was a moe file."""
    backbone = cfg.model.backbone
    if type_name(backbone) != 'load_moe':
        return []
    card = read_moe(backbone.checkpoint).card
    parts = [*card.get('parts', []), dict(
        name=osp.basename(backbone.checkpoint),
        task=None,
        dataset=card.get('dataset'),
        licence=card.get('licence'))]  # yapf: disable
    if backbone.get('module'):
        parts += part_of(Zoo(backbone.zoo).card(backbone.module))
    return parts


def load_trained(cfg: Config, checkpoint: str) -> Tuple[BaseModel, dict]:
    """The model of a run, with what it left, to look at its experts.

    Returns:
        tuple[BaseModel, dict]: The model, and what the checkpoint says of
        its data set.

    Raises:
        ValueError: If it has no experts, or the checkpoint is of another one.
    """
    model = build_model(cfg)
    trunk = getattr(model, 'backbone', None)
    if trunk is None or isinstance(trunk, ViMBackbone):
        raise ValueError(
            f'Its model is a {type(model).__name__} over '
            f'{type(trunk).__name__}; give the run that trained the '
            'mixture-of-experts trunk itself.')
    experts_of(trunk)
    loaded = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', 'silent')
    state = state_of(loaded, checkpoint)
    missing, _ = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if key.startswith('backbone.')]
    if missing:
        raise ValueError(f'{checkpoint} lacks {len(missing)} tensors of the '
                         f'backbone, such as {missing[:2]}; give a checkpoint '
                         'that a run of this config wrote.')
    read_notes(model, loaded, checkpoint)
    model.eval()
    return model, (loaded.get('meta') or {}).get('dataset_meta') or {}


def runnable(model: BaseModel) -> List[str]:
    """The tasks that a model has heads and data for."""
    if isinstance(model, MultiTaskModel):
        return model.tasks
    layers = experts_of(model.backbone).values()
    return list(dict.fromkeys(layer.task for layer in layers))


def counted(model: BaseModel) -> Dict[str, Dict[str, Tensor]]:
    """How often experts ran, as far as training has counted it."""
    routing = getattr(model, 'routing', None)
    return routing.usage() if routing is not None else {}


@torch.no_grad()
def measure_usage(trunk: nn.Module, task: str,
                  images: Iterable[Tensor]) -> Dict[str, Tensor]:
    """Count how often a task's tokens run each expert.

    Args:
        trunk (nn.Module): The trunk.
        task (str): The task.
        images (Iterable[Tensor]): Batches of normalised images.

    Returns:
        dict[str, Tensor]: Share of tokens, by layer.
    """
    trunk.eval()
    select_task(trunk, task)
    device = get_device()
    trunk.to(device)
    hits: Dict[str, Tensor] = {}
    for batch in images:
        with RoutingStatistics().record(trunk) as seen:
            trunk(batch.to(device))
        for layer, name in seen.ran():
            found = seen.hits(layer, name).double()
            hits[layer] = hits.get(layer, 0) + found
    trunk.cpu()
    k = {name: layer.k for name, layer in experts_of(trunk).items()}
    return {
        name: (counts * k[name] / counts.sum()).float().cpu()
        for name, counts in hits.items()
    }


def images(cfg: Config, model: BaseModel, task: str) -> Iterable[Tensor]:
    """Batches of a task's training images, as its model prepares them.

    Raises:
        ValueError: If the config has no training data for the task.
    """
    loader, scope = cfg.get('train_dataloader'), cfg.get('default_scope')
    own = model
    check_tasks([task], runnable(model), 'the model')
    if isinstance(model, MultiTaskModel):
        own, scope = model.of(task), model.scopes[task]
        loader = (loader or {}).get(task)
    if not loader:
        raise ValueError(f"The config has no `train_dataloader` of task "
                         f"'{task}', on which to count how its experts are "
                         'used; add it.')
    loader = dict(loader, num_workers=0, persistent_workers=False)
    loader['sampler'] = dict(type='DefaultSampler', shuffle=True)
    set_random_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        batches = Runner.build_dataloader(loader, seed=0)
    return (own.data_preprocessor(batch, False)['inputs'] for batch in batches)
