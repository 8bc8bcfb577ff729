# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What hooks that prepare a model before training have in common."""

from contextlib import contextmanager
from typing import Iterator, List, Optional, Tuple

from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vim_mm.features.cache import unwrap
from vim_mm.models.distillers import BaseDistiller
from vim_mm.models.fusion import FusionHolder
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.models.task_names import check_tasks
from vim_mm.models.tasks import holders, idle, select_task


def first_neck(model: BaseModel) -> Optional[nn.Module]:
    """The neck that reads the backbone: the first where several are listed."""
    neck = getattr(model, 'neck', None)
    return neck[0] if isinstance(neck, nn.Sequential) else neck


def fusing_part(model: BaseModel) -> FusionHolder:
    """The part with the fusion: the neck if it weighs streams.

    Without a fusion it is the backbone.

    Raises:
        ValueError: If these are streams of other modules than the backbone's.
    """
    fusing = [p for p in holders(model) if isinstance(p, FusionHolder)]
    part = fusing[-1] if fusing else model.backbone
    if part is not model.backbone:
        part.check_streams(model.backbone.bank.names)
    return part


def fused_features(model: BaseModel, inputs: Tensor) -> tuple:
    """A batch's features, streams weighed: one tuple, one entry a level."""
    features = model.backbone(inputs)
    part = fusing_part(model)
    return features if part is model.backbone else tuple(part.fuse(features))


def weighs_levels(model: BaseModel) -> bool:
    """Whether each gate reaches one level of the features alone.

    So it is where streams are weighed in a neck, and beside the trunk.
    """
    part, bank = fusing_part(model), model.backbone.bank
    return part is not model.backbone or any(
        map(bank.is_beside, part.fusion.task_modules[part.task]))


@contextmanager
def learning_only(model: BaseModel,
                  params: List[nn.Parameter]) -> Iterator[None]:
    """Within this context nothing of the model learns but ``params``."""
    kept = {id(param) for param in params}
    others = [
        param for param in model.parameters()
        if param.requires_grad and id(param) not in kept
    ]
    for param in others:
        param.requires_grad_(False)
    try:
        yield
    finally:
        for param in others:
            param.requires_grad_(True)


def running_parameters(model: BaseModel,
                       part: nn.Module) -> List[nn.Parameter]:
    """What learns in a part of the model when the selected task runs."""
    left_out = set(map(id, idle(model)))
    return [
        param for param in part.parameters()
        if param.requires_grad and id(param) not in left_out
    ]


def extra_tokens(model: BaseModel, given: Optional[int] = None) -> int:
    """Class and register tokens in the trunk's output, if not given."""
    if given is not None:
        return given
    return model.backbone.num_extra_tokens


def restart_averages(runner: Runner) -> None:
    """Let averaged models, copied before training, start from the model."""
    state = unwrap(runner.model).state_dict()
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            hook.ema_model.module.load_state_dict(state)


# ------------------------------------------------------------ several tasks


@contextmanager
def part_of(runner: Runner, task: Optional[str],
            who: str) -> Iterator[Tuple[BaseModel, DataLoader]]:
    """Within this context one task of a run can be worked on.

    Args:
        runner (Runner): The run.
        task (str, optional): The task of a multi-task model; None for an
            ordinary one.
        who (str): The name of the hook that asks, for messages.

    Yields:
        tuple[BaseModel, DataLoader]: The task's ordinary model, not wrapped,
        which runs (of a distiller its student), and the ordinary loader of
        its training set. Of a
        distiller it is the student.

    Raises:
        ValueError: If it is not said which task, or there is none such.
    """
    model, loader = unwrap(runner.model), runner.train_dataloader
    if isinstance(model, BaseDistiller):
        model = model.student
    if not isinstance(model, MultiTaskModel):
        if task is not None:
            raise ValueError(f"{who} is to work on the task '{task}', but the "
                             'model has one task only; leave `task` out.')
        yield model, loader
        return
    if task is None:
        raise ValueError(f'{who} works on one task; set its `task` to one of '
                         f'{model.tasks}.')
    check_tasks([task], model.tasks, 'the model')
    check_tasks([task], list(loader.loaders), 'train_dataloader')
    select_task(model, task)
    with model.in_scope(task):
        yield model.of(task), loader.of(task)


def refuse_tasks(runner: Runner, who: str) -> None:
    """Refuse a multi-task model.

    Raises:
        ValueError: If the run has one.
    """
    if isinstance(unwrap(runner.model), MultiTaskModel):
        raise ValueError(f'{who} is for a model of one task; take it out of '
                         'a run of several.')
