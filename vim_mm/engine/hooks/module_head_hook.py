# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from vim_mm.models.head_origin import add_head_parts
from vim_mm.registry import HOOKS
from vim_mm.zoo import Zoo, ZooError, is_head
from vim_mm.zoo.parts import part_of as part_of_card
from ..divided import ELSEWHERE
from ..loaded import spared
from ..model_parts import part_of, restart_averages


@HOOKS.register_module()
class ModuleHeadHook(Hook):
    """Start neck and head from those a module was trained with.

    For a downstream task that is the task of a module, most of all in
    detection, where much of what was learned lies in the head. Ours, not the
    paper's, which throws midstream heads away. The model needs the neck and
    head of the midstream config. Skipped when a run is resumed; what the
    checkpoint of ``load_from`` holds stays as it is there. Cards of what is
    made of the model name the module and its licence among their parts.

    Runs before WarmHeadHook, which would train the loaded head further on the
    few images, and fit standardising necks anew: leave WarmHeadHook out to
    keep the head as it is, or give it ``epochs=0`` to fit the neck only.

    Args:
        module (str): Name of the module.
        zoo (str): Directory of the zoo.
        task (str, optional): The task of a multi-task model to work on.
            Defaults to None, for a model of one task.
        keep_loaded (bool): Whether what was loaded from ``load_from`` stays
            as it is. Defaults to True.
    """

    priority = 'ABOVE_NORMAL'
    needs_whole = ELSEWHERE

    def __init__(self,
                 module: str,
                 zoo: str,
                 task: Optional[str] = None,
                 keep_loaded: bool = True) -> None:
        self.module = module
        self.zoo = zoo
        self.task = task
        self.keep_loaded = keep_loaded

    def before_train(self, runner: Runner) -> None:
        """Load the head.

        Raises:
            ZooError: If the zoo has no such head, or it does not fit.
        """
        if runner.iter > 0:  # resumed
            return
        with part_of(runner, self.task, 'ModuleHeadHook') as (model, _):
            own = {
                key: value
                for key, value in model.state_dict(keep_vars=True).items()
                if is_head(key)
            }
        zoo = Zoo(self.zoo)
        head = {
            key: value
            for key, value in zoo.load_head(self.module).items()
            if is_head(key)
        }
        self._check(own, head)
        kept = spared(runner, 'ModuleHeadHook', own.values(),
                      self.keep_loaded)
        start = [key for key in head if id(own[key]) not in kept]
        for key in start:
            own[key].data.copy_(head[key])
        if start:
            add_head_parts(
                model,
                part_of_card(zoo.card(self.module)),
                alone=len(start) == len(own))
        restart_averages(runner)
        runner.logger.info(f"ModuleHeadHook: {len(start)} tensors of neck and "
                           f"head start from module '{self.module}'.")

    def _check(self, own: Dict[str, Tensor], head: Dict[str, Tensor]) -> None:
        differences = [
            f"'{key}' is only in {where}" for where, keys in (
                ('the model', own.keys() - head.keys()),
                ("the module's head", head.keys() - own.keys()))
            for key in sorted(keys)
        ] + [
            f"'{key}' is {tuple(head[key].shape)} there and "
            f'{tuple(own[key].shape)} in the model'
            for key in sorted(own.keys() & head.keys())
            if own[key].shape != head[key].shape
        ]
        if differences:
            raise ZooError(
                f"The head of module '{self.module}' does not fit this "
                f'model: {"; ".join(differences[:5])}'
                f'{", …" if len(differences) > 5 else ""}. Use the neck and '
                'head of the config it was trained with, or leave out '
                'ModuleHeadHook.')
