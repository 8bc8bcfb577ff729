# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from abc import ABCMeta, abstractmethod
from math import lcm
from typing import Dict, List, Optional, Union

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_is_config
from ..pixels import Normalizer
from .outside import Outside

STUDENT = 'student.'


class BaseDistiller(BaseModel, metaclass=ABCMeta):
    """An ordinary mm* model that learns with help, and is saved without.

    The state dict is the student's own, under its own names: checkpoints of
    a run load into the plain model, and a plain model's into a run. Frozen
    networks are held outside of the model (:class:`Outside`). What else
    learns (projectors, a proxy space) is not in the state dict; checkpoints
    keep it beside for resuming (:class:`vim_mm.StudentHook`).

    Sub-classes give ``loss``; prediction is the student's.

    Args:
        student (dict): Config of an mm* model.
        data_preprocessor (dict, optional): The student's, if its config has
            none; a runner passes that of the whole config here.
    """

    def __init__(self,
                 student: dict,
                 data_preprocessor: Optional[dict] = None) -> None:
        check_is_config(student, 'model.student')
        if data_preprocessor is not None:
            student = dict(student)
            student.setdefault('data_preprocessor', data_preprocessor)
        student = MODELS.build(student)
        super().__init__(data_preprocessor=student.data_preprocessor)
        self.student = student
        # read once: that waits for the device
        self.normalizer = Normalizer.of(student.data_preprocessor)
        #: Frozen networks by name.
        self.outside: Dict[str, Outside] = {}
        self._register_state_dict_hook(_leave_help_out)
        self._register_load_state_dict_pre_hook(
            _put_student_back, with_module=True)

    @property
    def backbone(self) -> nn.Module:
        """The student's."""
        return self.student.backbone

    def add_outside(self, name: str, outside: Outside) -> None:
        """Hold a frozen network that reads the student's images.

        The student's are padded from now on to what both can read.

        Args:
            name (str): Its name.
            outside (Outside): The network.

        Raises:
            ValueError: If its images are of grey levels from 0 to 1, and the
                student's from 0 to 255.
        """
        mine, theirs = self.normalizer, outside.normalizer
        if 0 < max(theirs.mean) <= 1 < max(mine.mean) and max(
                theirs.std) <= 1 < max(mine.std):
            raise ValueError(
                f'The `data_preprocessor` of the {name} has means of up to '
                f'{max(theirs.mean):.3g}, as of pixels from 0 to 1, and that '
                f'of the student of up to {max(mine.mean):.4g}; multiply its '
                '`mean` and `std` by 255.')
        self.outside[name] = outside
        own = self.data_preprocessor
        # mmsegmentation pads to `size`, or to `size_divisor`
        field = 'size_divisor' if hasattr(own, 'size_divisor') \
            else 'pad_size_divisor'
        if hasattr(own, field) and getattr(own, 'size', None) is None:
            setattr(own, field,
                    lcm(getattr(own, field) or 1, outside.normalizer.divisor))

    def inputs_of(self,
                  name: str,
                  inputs: Tensor,
                  data_samples: Optional[list] = None) -> Tensor:
        """A batch as another network reads it: same image, own normalisation.

        Args:
            name (str): Name of the network in ``outside``.
            inputs (Tensor): The student's, (B, 3, H, W), with whatever was
                drawn for them (crops, flips, mixing).
            data_samples (list, optional): They know what is padding.

        Raises:
            ValueError: If the network cannot read images of this size.
        """
        theirs = self.outside[name].normalizer
        if any(side % theirs.divisor for side in inputs.shape[-2:]):
            raise ValueError(
                f'Images of {tuple(inputs.shape[-2:])} reach the {name}, '
                f'which reads multiples of {theirs.divisor}; change `size` of '
                "the student's data_preprocessor.")
        converted = self.normalizer.convert(inputs, theirs)
        return converted if converted is inputs else blank_padding(
            converted, data_samples)

    @abstractmethod
    def loss(self, inputs: Tensor,
             data_samples: Optional[list]) -> Dict[str, Tensor]:
        """The losses of a batch, the student's own and those of the help."""

    def check_data(self, metainfo: dict) -> None:
        """Refuse a training set that the help does not fit.

        Args:
            metainfo (dict): What the training set says of itself.
        """

    def help_weights(self) -> Dict[str, float]:
        """The largest weight that each loss of the help ever has, by setting.

        Empty where that is not known.
        """
        return {}

    def learns_alone(self) -> bool:
        """Whether the student's own losses ever count."""
        return True

    def teaches_head(self) -> bool:
        """Whether the help reaches what gives the student's class scores."""
        return True

    def forward(
            self,
            inputs: Tensor,
            data_samples: Optional[list] = None,
            mode: str = 'tensor'
    ) -> Union[Dict[str, Tensor], List, Tensor, tuple]:
        """As of any mm* model: ``mode`` is 'loss', 'predict' or 'tensor'."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode=mode)

    def help_state(self) -> Dict[str, Tensor]:
        """What learns or counts beside the student, by name, on the CPU."""
        tensors = dict(self.named_parameters())
        tensors.update(self._persistent_buffers())
        return {
            key: value.detach().cpu()
            for key, value in tensors.items() if not key.startswith(STUDENT)
        }

    def load_help(self, state: Dict[str, Tensor]) -> None:
        """Load what :meth:`help_state` gave.

        Raises:
            ValueError: If it is of another distiller.
        """
        own = self.help_state()
        if {
                k: v.shape
                for k, v in own.items()
        } != {
                k: v.shape
                for k, v in state.items()
        }:
            raise ValueError(
                'The checkpoint is of a run with other help (projectors, '
                'proxy space) than this config has; resume with the config '
                'that it was trained with, or start from its student with '
                '`load_from`.')
        tensors = dict(self.named_parameters())
        tensors.update(self.named_buffers())
        with torch.no_grad():
            for key, value in state.items():
                tensors[key].copy_(value)

    def _persistent_buffers(self) -> Dict[str, Tensor]:
        return {
            f'{prefix}.{name}' if prefix else name: value
            for prefix, module in self.named_modules()
            for name, value in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        }


def blank_padding(inputs: Tensor, data_samples: Optional[list]) -> Tensor:
    """Zero what lies beyond each image, as data preprocessors pad.

    Args:
        inputs (Tensor): (B, C, H, W), padded below and to the right.
        data_samples (list, optional): With ``img_shape`` in their metainfo.
    """
    full = tuple(inputs.shape[-2:])
    for row, sample in zip(inputs, data_samples or ()):
        height, width = sample.metainfo.get('img_shape', full)[:2]
        if (height, width) != full:
            row[:, height:] = 0
            row[:, :, width:] = 0
    return inputs


def _leave_help_out(model: BaseDistiller, state_dict: dict, prefix: str,
                    _: dict) -> None:
    """State dict hook: the student under its own names, nothing else."""
    _rename(state_dict, f'{prefix}{STUDENT}', prefix, others=prefix)
    metadata = getattr(state_dict, '_metadata', None)
    if metadata is not None:
        _rename(metadata, f'{prefix}{STUDENT}', prefix)


def _put_student_back(model: BaseDistiller, state_dict: dict, prefix: str,
                      *_) -> None:
    """Hook before loading: a plain model's state is the student's."""
    _rename(state_dict, prefix, f'{prefix}{STUDENT}')
    metadata = getattr(state_dict, '_metadata', None)
    if metadata is not None:
        _rename(metadata, prefix, f'{prefix}{STUDENT}')
    # the help is no part of any state dict, so none lacks it
    for key, value in model.named_parameters():
        if not key.startswith(STUDENT):
            state_dict[f'{prefix}{key}'] = value.detach()
    for key, value in model._persistent_buffers().items():
        if not key.startswith(STUDENT):
            state_dict[f'{prefix}{key}'] = value


def _rename(holder: dict,
            old: str,
            new: str,
            others: Optional[str] = None) -> None:
    """Exchange what keys begin with, in place and in order.

    Args:
        holder (dict): With strings as keys.
        old (str): What they begin with.
        new (str): What they begin with afterwards.
        others (str, optional): Of the rest, what begins with this goes.
    """
    items = list(holder.items())
    holder.clear()
    for key, value in items:
        if key.startswith(old):
            holder[new + key[len(old):]] = value
        elif others is None or not key.startswith(others):
            holder[key] = value
