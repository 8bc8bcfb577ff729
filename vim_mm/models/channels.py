# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whether neck and heads take what the backbone gives."""

from typing import Any, Iterator, List, Union

import torch
from mmengine.model import BaseModel
from torch import nn

from vim_mm.utils.refusals import refused_by_library
from .backbones import ViMBackbone, blank_outputs
from .backbones.probe import in_eval
from .box_heads import check_box_losses
from .distillers import BaseDistiller
from .layouts import Streams, as_levels, channels_of, check_levels
from .multitask import MultiTaskModel
from .strides import check_padding, check_strides

_HEADS = ('bbox_head', 'rpn_head', 'decode_head', 'auxiliary_head', 'head')
_AUTO = "set its `in_channels='auto'`, or the number of channels there are."
_MAPS = ("take the neck out, or let the trunk give maps "
         "(`out_type='featmap'`).")


def check_channels(model: BaseModel) -> None:
    """Refuse a neck or head that other features were meant for.

    One kept from a base config would end the first step in a message about
    the shape of some weight.

    Args:
        model (BaseModel): A model, not wrapped. Of a student, and of several
            tasks, strides alone are looked at; not at all at a model without
            a part of ours.

    Raises:
        ValueError: If neck or head expect other channels, levels or strides.
    """
    if any(param.is_meta for param in model.parameters()):
        return
    if isinstance(model, MultiTaskModel):
        for each in model.models.values():
            _check_strides(each, model.backbone)
    elif isinstance(model, BaseDistiller):
        _check_strides(model.student, model.student.backbone)
    elif isinstance(getattr(model, 'backbone', None), ViMBackbone):
        _check_whole(model)


def _check_strides(model: BaseModel, backbone: nn.Module) -> None:
    """Look at an ordinary model's strides, if it reads a blank image."""
    size = getattr(backbone, 'blank_size', (224, 224))
    try:
        features = blank_outputs(backbone, size)
        with in_eval(model), torch.no_grad():
            levels = model.neck(features) if model.with_neck else features
    except Exception:  # what it does not read tells nothing
        return
    if not isinstance(levels, Streams):
        check_strides(model, as_levels(levels), size)


def _check_whole(model: BaseModel) -> None:
    backbone = model.backbone
    features = backbone.blank_outputs()
    check_padding(model, features, backbone.blank_size)
    neck = getattr(model, 'neck', None)
    if isinstance(neck, nn.Module):
        features = _through(neck, features)
    if isinstance(features, Streams):
        raise ValueError(
            f'The backbone gives a stream for each of {features.names}, and '
            'no neck weighs them; set `model.backbone.fusion`, or '
            "`model.neck.type='vim_mm.ViMFusionNeck'`.")
    try:
        channels = channels_of(features)
    except ValueError:  # no levels: only its own head knows them
        return
    for head in _heads(model):
        _check_head(head, channels)
    check_strides(model, as_levels(features), backbone.blank_size)
    check_box_losses(model)


def _through(neck: nn.Module, features: Any) -> Any:
    first = features[0] if isinstance(features, Streams) else features
    try:
        with in_eval(neck), torch.no_grad():
            return neck(features)
    except Exception as error:
        if not refused_by_library(error):
            raise
        said = str(error) or 'another number of levels'
        maps = all(level.dim() == 4 for level in as_levels(first))
        raise ValueError(
            f'The neck {type(neck).__name__} does not take what the backbone '
            f'gives, levels of {channels_of(first)} channels'
            f'{"" if maps else " that are no maps"} '
            f'({said.splitlines()[0].rstrip(".")}); '
            f'{_AUTO if maps else _MAPS}') from error


def _heads(model: BaseModel) -> Iterator[nn.Module]:
    for name in _HEADS:
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList):
            yield from head
        elif isinstance(head, nn.Module):
            yield head


def _check_head(head: nn.Module, channels: List[int]) -> None:
    own = getattr(head, 'in_channels', None)
    if not isinstance(own, (int, list, tuple)):
        return
    index = getattr(head, 'in_index', None)
    given: Union[int, List[int]] = channels
    if index is not None:
        places = check_levels(type(head), index, len(channels))
        given = [channels[i] for i in places]
        if isinstance(own, int):  # of several levels: side by side
            given = [sum(given)]
    fits = own in given if isinstance(own, int) else list(own) == given
    if not fits:
        raise ValueError(
            f'{type(head).__name__} reads {own} channels, and what is before '
            f'it gives {given}; {_AUTO}')
