# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What hooks that prepare a model before training have in common."""

from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Tuple

from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.distillers import BaseDistiller
from vim_mm.models.fusion import FusionHolder, LearnedFusion
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.models.task_names import check_tasks
from vim_mm.models.tasks import holders, idle, select_task
from vim_mm.utils.wrappers import unwrap


def saved_model(model: BaseModel) -> BaseModel:
    """What checkpoints of a run hold: its model, of a distiller the student.

    Args:
        model (BaseModel): The model of a run, wrapped or not.
    """
    model = unwrap(model)
    return model.student if isinstance(model, BaseDistiller) else model


def running_model(model: nn.Module) -> nn.Module:
    """The ordinary model that runs: of several tasks that of the selected."""
    model = unwrap(model)
    return model.models[model.task] if isinstance(
        model, MultiTaskModel) else model


def ordinary(model: BaseModel,
             who: str,
             name: Optional[str] = None) -> BaseModel:
    """The model whose backbone learns, inside one that holds others.

    Semi-supervised detectors hold a student and a frozen teacher, wrappers a
    model. An ordinary model, and one of several tasks, is returned as it is.

    Args:
        model (BaseModel): The model of a run, wrapped or not.
        who (str): The name of the hook that asks, for messages.
        name (str, optional): Name of the submodel that is meant. Defaults to
            None, for the one that learns.

    Raises:
        ValueError: If there is none such, or several are meant.
    """
    model = unwrap(model)
    if isinstance(model, MultiTaskModel) or hasattr(model, 'backbone'):
        return model
    found = {
        key: part
        for key, part in model.named_modules()
        if isinstance(getattr(part, 'backbone', None), ViMBackbone)
    }
    learning = {
        key: part
        for key, part in found.items()
        if any(param.requires_grad for param in part.parameters())
    }
    if name is not None:
        learning = {k: part for k, part in found.items() if k == name}
    if len(learning) != 1:
        raise ValueError(
            f'{who} works on one model with a ViMBackbone that learns, and '
            f'{type(model).__name__} holds {list(learning) or "none"} '
            f'(all: {list(found)}); name it in `task` of the hook where it '
            'has one, or freeze the others.')
    return next(iter(learning.values()))


def is_own(model: nn.Module) -> bool:
    """Whether a model has a part of ours, rather than be a library's own."""
    return any(
        type(part).__module__.partition('.')[0] == 'vim_mm'
        for part in model.modules())


def first_neck(model: BaseModel) -> Optional[nn.Module]:
    """The neck that reads the backbone: the first where several are listed."""
    neck = getattr(model, 'neck', None)
    return neck[0] if isinstance(neck, nn.Sequential) else neck


def fusing_part(model: BaseModel) -> FusionHolder:
    """The part with the fusion: the neck if it weighs streams.

    Without a fusion it is the backbone.

    Raises:
        ValueError: If there is none, or these are streams of other modules
            than the backbone's.
    """
    fusing = [p for p in holders(model) if isinstance(p, FusionHolder)]
    part = fusing[-1] if fusing else model.backbone
    if not isinstance(part, FusionHolder):
        raise ValueError(
            f'The backbone is a {type(part).__name__}, which weighs no '
            'modules; take a vim_mm.ViMBackbone, or leave hooks of gates '
            'out.')
    if part is not model.backbone:
        part.check_streams(model.backbone.bank.names)
    return part


def gates_of(part: FusionHolder) -> List[nn.Parameter]:
    """What weighs the modules of the task that runs, if that is learned."""
    fusion = part.fusion
    return fusion.parameters_of(part.task) if isinstance(
        fusion, LearnedFusion) else []


def fused_features(model: BaseModel, inputs: Tensor) -> tuple:
    """A batch's features, streams weighed: one tuple, one entry a level."""
    features = model.backbone(inputs)
    part = fusing_part(model)
    return features if part is model.backbone else tuple(part.fuse(features))


def shown_gates(model: BaseModel) -> Dict[str, Dict[str, float]]:
    """What the running task gives each module, for people: by slot.

    A softmax with a zero module shows the weight of that, too.
    """
    part = fusing_part(model)
    if part.fusion is None:
        return part.gates()
    return part.fusion.shown_gates(part.task)


@contextmanager
def fused_already(model: BaseModel) -> Iterator[None]:
    """Within this context the features that arrive are of weighed streams."""
    necks = [
        part for part in holders(model)
        if isinstance(part, FusionHolder) and part is not model.backbone
    ]
    kept = [(neck.fusion, neck.stream_names) for neck in necks]
    for neck in necks:
        neck.fusion, neck.stream_names = None, []
    try:
        yield
    finally:
        for neck, (fusion, names) in zip(necks, kept):
            neck.fusion, neck.stream_names = fusion, names


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


def head_parameters(model: BaseModel) -> List[nn.Parameter]:
    """Everything outside the backbone that the running task trains."""
    inside = {id(p) for p in model.backbone.parameters()}
    return [
        param for param in running_parameters(model, model)
        if id(param) not in inside
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
        task (str, optional): The task of a multi-task model, or the name of
            a submodel, see :func:`ordinary`; None for an ordinary one.
        who (str): The name of the hook that asks, for messages.

    Yields:
        tuple[BaseModel, DataLoader]: The task's ordinary model, not wrapped,
        which runs (of a distiller its student), and the ordinary loader of
        its training set. Of a
        distiller it is the student.

    Raises:
        ValueError: If it is not said which task, or there is none such.
    """
    model, loader = saved_model(runner.model), runner.train_dataloader
    if not isinstance(model, MultiTaskModel):
        if task is not None and hasattr(model, 'backbone'):
            raise ValueError(f"{who} is to work on the task '{task}', but the "
                             'model has one task only; leave `task` out.')
        inner = ordinary(model, who, task)
        _check_batches(model, inner, who)
        yield inner, loader
        return
    if task is None:
        raise ValueError(f'{who} works on one task; set its `task` to one of '
                         f'{model.tasks}.')
    check_tasks([task], model.tasks, 'the model')
    check_tasks([task], list(loader.loaders), 'train_dataloader')
    select_task(model, task)
    with model.in_scope(task):
        yield model.of(task), loader.of(task)


def _check_batches(model: BaseModel, inner: BaseModel, who: str) -> None:
    """Refuse a submodel that is not fed what the run's loader gives."""
    kinds = [type(part.data_preprocessor) for part in (model, inner)]
    if kinds[0] is not kinds[1]:
        raise ValueError(
            f'{who} prepares {type(inner).__name__} with ordinary batches, '
            f'and those of {type(model).__name__} are made for its '
            f'{kinds[0].__name__}; prepare in a run of '
            f'{type(inner).__name__} alone, and start from it with '
            '`load_from`.')


def refuse_tasks(runner: Runner, who: str) -> None:
    """Refuse a multi-task model.

    Raises:
        ValueError: If the run has one.
    """
    if isinstance(unwrap(runner.model), MultiTaskModel):
        raise ValueError(f'{who} is for a model of one task; take it out of '
                         'a run of several.')
