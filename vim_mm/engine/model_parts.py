# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What hooks that prepare a model before training have in common."""

from contextlib import contextmanager
from typing import Iterator, List, Optional

from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from vim_mm.models.fusion import FusionHolder
from vim_mm.models.tasks import holders, idle


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
    return getattr(model.backbone.trunk, 'num_extra_tokens', 1)


def restart_averages(runner: Runner, model: BaseModel) -> None:
    """Let averaged models, copied before training, start from ``model``."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            hook.ema_model.module.load_state_dict(model.state_dict())
