# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import hashlib
import math
import os.path as osp
import time
from functools import partial
from typing import Dict, List, Optional, Union

import torch
from mmengine.dist import all_gather, get_world_size, master_only
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import BaseLoop, Runner
from torch import Tensor
from torch.utils.data import Dataset

from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.function_notes import trunk_said
from vim_mm.models.head_origin import head_parts
from vim_mm.models.moe import moe_layers
from vim_mm.registry import HOOKS
from vim_mm.utils.described import image_size
from vim_mm.utils.kinds import check_kind
from vim_mm.utils.messages import short
from vim_mm.utils.wrappers import unwrap
from vim_mm.zoo import ModuleCard, Zoo, ZooError, head_state, save_module
from vim_mm.zoo.locking import check_writable
from ..data_sets import num_images
from ..frozen import moved
from ..gradients import Gradients
from ..model_parts import ordinary, refuse_tasks


@HOOKS.register_module()
class ModuleToZooHook(Hook):
    """Leave the module that a midstream run has learned in a zoo.

    The module, its card and, in a file of its own, the head that was trained
    with it are written after training, averaged weights (EMA) if the run
    keeps them. A taken name is refused before training starts.

    Args:
        zoo (str): Directory of the zoo.
        dataset (str): What the module was learned on, for the card.
        task (str): Kind of task: 'cls', 'det' or 'seg'.
        licence (str): Licence of the module.
        overwrite (bool): Replace a module of the same name. Defaults to
            False.
    """

    priority = 'VERY_HIGH'
    needs_whole = ('leave it out, and save the module from a checkpoint, '
                   '`vim-mm zoo save CONFIG CHECKPOINT ZOO`')

    def __init__(self,
                 zoo: str,
                 dataset: str,
                 task: str,
                 licence: str,
                 overwrite: bool = False) -> None:
        self.zoo = zoo
        self.overwrite = overwrite
        for name, value in (('dataset', dataset), ('licence', licence)):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(
                    f'`ModuleToZooHook.{name}` is {short(value)}; give text, '
                    'which the card tells others.')
        self.card = dict(dataset=dataset, task=task, licence=licence)

    def before_train(self, runner: Runner) -> None:
        """Refuse now what could not be written in the end.

        Raises:
            ValueError: If the backbone learns no module, as one whose
                experts are adapted, its task does not weigh it, or the card
                would name another kind of task.
            ZooError: If the zoo cannot be written or holds a module of that
                name, or the card would not be valid.
        """
        refuse_tasks(runner, 'ModuleToZooHook')
        model = ordinary(runner.model, 'ModuleToZooHook')
        backbone = getattr(model, 'backbone', None)
        name = getattr(backbone, 'new_module', None)
        if name is None and moe_layers(unwrap(runner.model)):
            raise ValueError(
                'ModuleToZooHook saves a `new_module` beside a frozen trunk, '
                'and this run trains experts themselves; leave the hook out '
                'and publish routers and experts afterwards, `vim-mm '
                'zoo save CONFIG CHECKPOINT ZOO`.')
        if name is None:
            raise ValueError('ModuleToZooHook has nothing to save: set '
                             '`model.backbone.new_module` to the name of the '
                             'module this run learns.')
        fusion = backbone.fusion
        if fusion is not None and name not in fusion.task_modules[
                backbone.task]:
            raise ValueError(
                f"The task '{backbone.task}' does not weigh the new module "
                f"'{name}', so it would learn nothing; add it to "
                '`fusion.tasks`, or leave ModuleToZooHook out.')
        check_kind(model, self.card['task'], 'ModuleToZooHook.task')
        root = Zoo(self.zoo).root
        if any(hook is not self and isinstance(hook, ModuleToZooHook)
               and Zoo(hook.zoo).root == root for hook in runner.hooks):
            raise ValueError(
                f"Two ModuleToZooHooks save '{name}' in the zoo '{self.zoo}'; "
                'leave one out, or name another zoo.')
        check_writable(root)
        if not self.overwrite and name in Zoo(self.zoo):
            raise ZooError(f"The zoo '{self.zoo}' holds a module '{name}' "
                           'already; remove it (`vim-mm zoo remove`), rename '
                           'the new one, or set overwrite=True.')
        # a card with what is known now; it names a wrong field
        ModuleCard(
            name=name,
            kind='any',
            adapter=dict(type='any'),
            slots=['any'],
            dims=dict(any=1),
            trunk=dict(type='any', fingerprint='any'),
            **self.card)
        self._start = time.time()
        self._fresh = runner.iter, backbone.bank.export(name)
        self._gradients = Gradients(runner,
                                    backbone.bank.members[name].parameters())

    @staticmethod
    def check_steps(loop: Union[BaseLoop, dict]) -> None:
        """Refuse a run without a step, before its schedules are built.

        Args:
            loop (BaseLoop | dict): The training loop, or its config.

        Raises:
            ValueError: If it has none.
        """
        get = loop.get if isinstance(loop, dict) else partial(getattr, loop)
        if 0 in (get('max_epochs', None), get('max_iters', None)):
            raise ValueError(
                'The run has no iteration, so its module would learn nothing; '
                'set `train_cfg.max_epochs` or `train_cfg.max_iters`.')

    def after_train(self, runner: Runner) -> None:
        """Check that all processes agree, then write on the first one.

        Raises:
            RuntimeError: If the processes have learned different modules.
            ZooError: If the module has learned nothing, or its trunk has
                changed.
        """
        model = runner.model
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                model = hook.ema_model.module
        model = ordinary(model, 'ModuleToZooHook')
        name = model.backbone.new_module
        said = moved(runner)
        if said:
            raise ZooError(f"Module '{name}' was not saved. {said}")
        learned = model.backbone.bank.export(name)
        check_agreement(name, learned)
        self._check_learned(runner, model.backbone, learned)
        self._write(runner, model)

    def _check_learned(self, runner: Runner, backbone: ViMBackbone,
                       learned: Dict[str, Tensor]) -> None:
        """Refuse a module that is no better than none.

        Raises:
            ZooError: If no gradient moved it, or it adds nothing.
        """
        name, (first, fresh) = backbone.new_module, self._fresh
        why = None
        if runner.iter > first and not self._gradients.came():
            why = 'no gradient has reached it'
        elif runner.iter > first and all(
                torch.equal(fresh[key], learned[key]) for key in learned):
            why = 'its learning rate is 0'
        elif not runner.iter:
            why = 'the run has made no step'
        if why:
            raise ZooError(
                f"Module '{name}' has learned nothing in "
                f'{runner.iter - first} iterations, so it was not saved: '
                f'{why}. Look for what keeps it from learning, such as images '
                'without labels, activation checkpoints or a rate of zero.')
        if backbone.bank.adds_nothing(name):
            raise ZooError(
                f"Module '{name}' adds nothing to its trunk after "
                f'{runner.iter} iterations, so it was not saved: it is as '
                'fresh as it began. Let the run go on, or look for what keeps '
                'it from learning.')

    @master_only
    def _write(self, runner: Runner, model: BaseModel) -> None:
        save_module(
            model.backbone,
            model.backbone.new_module,
            self.zoo,
            head=head_state(model),
            head_parts=head_parts(unwrap(runner.model)),
            overwrite=self.overwrite,
            num_train=num_images(runner.train_dataloader.dataset),
            metrics=_last_metrics(runner),
            classes=_classes(runner.train_dataloader.dataset),
            image_size=image_size(runner.cfg),
            trunk=trunk_said(model),
            training=dict(
                config=osp.basename(runner.cfg.filename or ''),
                iterations=runner.iter,
                seconds=round(time.time() - self._start, 1)),
            **self.card)
        num = get_world_size()
        agreed = f', identical on all {num} processes' if num > 1 else ''
        runner.logger.info(f"Module '{model.backbone.new_module}' is in the "
                           f"zoo '{self.zoo}'{agreed}.")


def check_agreement(name: str, tensors: Dict[str, Tensor]) -> None:
    """Compare a module's hash over all processes of a distributed run.

    Raises:
        RuntimeError: On every process, if they differ: gradients were not
            exchanged, and what the first one holds is not what was trained.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].numpy().tobytes())
    mine = torch.tensor(list(digest.digest()), dtype=torch.uint8)
    if any(not torch.equal(mine, other) for other in all_gather(mine)):
        raise RuntimeError(
            f"The processes of this run hold different weights of module "
            f"'{name}', so it was not saved; train it inside the "
            'data-parallel wrapper (`model_wrapper_cfg`).')


def _classes(dataset: Dataset) -> List[str]:
    metainfo = getattr(dataset, 'metainfo', {})
    return list(map(str, metainfo.get('classes') or []))


def _last_metrics(runner: Runner) -> List[dict]:
    num: Optional[int] = None
    if runner.val_loop is not None:
        num = len(runner.val_loop.dataloader.dataset)
    metrics = {
        key[len('val/'):]: float(buffer.current())
        for key, buffer in runner.message_hub.log_scalars.items()
        if key.startswith('val/') and not key.endswith('time')
    }
    # a metric without value (mIoU of absent classes) has no place on a card
    return [
        dict(name=name, value=value, n=num) for name, value in metrics.items()
        if math.isfinite(value)
    ]
