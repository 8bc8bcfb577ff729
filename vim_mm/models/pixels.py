# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images as numbers: a network's own normalisation, and RGB from 0 to 1."""

import logging
from dataclasses import dataclass
from typing import Any, Mapping, MutableSet, Sequence, Tuple
from weakref import WeakSet

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

#: Channels of what pipelines load.
BGR, RGB = 'bgr', 'rgb'
#: No pixel of what is normalised is larger.
_SMALL = 10
#: Models of whose images it was said that they are black.
_DARK: MutableSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Normalizer:
    """How a data preprocessor turns pixels into a network's inputs.

    Attributes:
        mean (tuple[float]): Of each input channel, in grey levels (0 to 255).
        std (tuple[float]): The same.
        channels (str): Order of the network's channels, 'rgb' or 'bgr'.
        loaded (str): Order in which the pipeline loads them.
        divisor (int): Height and width of the inputs are multiples of it.
    """

    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    channels: str
    loaded: str
    divisor: int = 1

    @classmethod
    def of(cls, preprocessor: nn.Module) -> 'Normalizer':
        """Read it off a data preprocessor of mmengine or its libraries.

        Without mean and deviation of its own the network reads grey levels.
        """
        mean, std = (0., ) * 3, (1., ) * 3
        if getattr(preprocessor, '_enable_normalize', False):
            mean, std = (
                _three(getattr(preprocessor, name))
                for name in ('mean', 'std'))
        # mmpretrain names the channels; the others say whether they turn
        # them around, which is almost always from BGR
        if not all(each > 0 for each in std):
            raise ValueError(
                f'`data_preprocessor.std` is {std}, by which images are '
                'divided; give numbers above 0.')
        turned = getattr(preprocessor, 'to_rgb', None)
        if turned is None:
            turned = getattr(preprocessor, '_channel_conversion', False)
        return cls(
            mean=mean,
            std=std,
            channels=RGB if turned else BGR,
            loaded=BGR,
            divisor=getattr(preprocessor, 'pad_size_divisor', None) or 1)

    def normalize(self, images: Tensor) -> Tensor:
        """RGB images from 0 to 1, (B, 3, H, W), as the network's inputs."""
        x = images if self.channels == RGB else images.flip(1)
        return (x * 255 - _column(self.mean, x)) / _column(self.std, x)

    def denormalize(self, inputs: Tensor) -> Tensor:
        """The network's inputs as RGB images, 0 to 1 where they were."""
        x = inputs * _column(self.std, inputs) + _column(self.mean, inputs)
        return (x if self.channels == RGB else x.flip(1)) / 255

    def convert(self, inputs: Tensor, other: 'Normalizer') -> Tensor:
        """Inputs of this network as those of another: the same image.

        Equal to ``other.normalize(self.denormalize(inputs))`` with one
        multiplication and one addition; the same tensor where both agree.

        Args:
            inputs (Tensor): (B, 3, H, W).
            other (Normalizer): Of the other network.
        """
        mine = (self.mean, self.std, self.channels)
        if mine == (other.mean, other.std, other.channels):
            return inputs
        mean, std = self.mean, self.std
        if self.channels != other.channels:
            inputs, mean, std = inputs.flip(1), mean[::-1], std[::-1]
        scale = [s / t for s, t in zip(std, other.std)]
        shift = [(m - n) / t for m, n, t in zip(mean, other.mean, other.std)]
        return torch.addcmul(
            _column(shift, inputs), inputs, _column(scale, inputs))


def to_images(loaded: Tensor) -> Tensor:
    """What pipelines load, BGR grey levels, as RGB images from 0 to 1."""
    return loaded.flip(-3).float() / 255


def from_images(images: Tensor) -> Tensor:
    """RGB images from 0 to 1 as pipelines load them: BGR, uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).flip(-3)


def _three(values: Tensor) -> Tuple[float, ...]:
    numbers = values.flatten().tolist()
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(values).view(1, -1, 1, 1)


def _check_padding(preprocessor: Any, images: Any) -> None:
    """Compare images with the size that mmseg pads them to."""
    size = getattr(preprocessor, 'size', None)
    if not hasattr(preprocessor, 'seg_pad_val') or not isinstance(
            size, (list, tuple)) or not isinstance(images, (list, tuple)):
        return
    sides = [tuple(image.shape[-2:]) for image in images]
    said = (f'`data_preprocessor.size` is {tuple(size)}, which images are '
            'padded to (height, width), and one of a batch has')
    for own in sides:
        if own[0] > size[-2] or own[1] > size[-1]:
            raise ValueError(f'{said} {own}, as the pipeline gives it; set it '
                             'to the size that the pipeline crops to.')
    height, width = (max(side) for side in zip(*sides))
    if height * width * 4 < size[-2] * size[-1]:
        print_log(
            f'{said} {(height, width)}: most of what is computed is padding; '
            'set it to the size that the pipeline crops to.',
            logger='current',
            level=logging.WARNING)


def _say_dark(model: nn.Module, high: float) -> None:
    """Say once of a model that its images are black, or nearly."""
    if model not in _DARK:
        _DARK.add(model)
        print_log(
            f'No pixel of a batch is above {high:g}, where white is 255: its '
            'images are black. Look at what the pipeline makes of them: a '
            'stage that divides by 255 and rounds, or a label map in the '
            'place of an image.',
            logger='current',
            level=logging.WARNING)


def check_form(model: nn.Module, data: Any, padded: bool = True) -> None:
    """Refuse a batch that a pipeline has not made for a model.

    Args:
        model (nn.Module): The model, not wrapped.
        data: The batch as the loader gives it.
        padded (bool): Whether images are padded as in training. Defaults to
            True.

    Raises:
        ValueError: If it is not packed, has images of another number of
            channels, larger than they are padded to, or of pixels that are
            normalised already.
    """
    if not isinstance(data, Mapping):
        return
    if 'inputs' not in data and {'img', 'img_path'} & data.keys():
        raise ValueError(
            f'The pipeline gives {sorted(data)}, and a model reads `inputs`; '
            'load the image in it, and let it end with PackInputs '
            '(mmpretrain), PackDetInputs (mmdet) or PackSegInputs (mmseg).')
    preprocessor = getattr(model, 'data_preprocessor', None)
    images = data.get('inputs')
    if padded:
        _check_padding(preprocessor, images)
    if not getattr(preprocessor, '_enable_normalize', False) or not isinstance(
            images, (list, tuple, Tensor)) or not all(
                isinstance(x, Tensor) and x.ndim == 3 for x in images):
        return
    mean = preprocessor.mean.flatten()
    for image in images:
        if len(mean) not in (1, len(image)):
            raise ValueError(
                f'An image has {len(image)} channels, and `mean` and `std` of '
                f'the `data_preprocessor` have {len(mean)}; give a number for '
                'each channel, or load images in colour '
                "(`color_type='color'`).")
    high = max(float(image.max()) for image in images)
    if 0 < mean.max() <= 1 and preprocessor.std.max() <= 1 and high > _SMALL:
        raise ValueError(
            f'The `data_preprocessor` has means of up to '
            f'{float(mean.max()):.3g}, as of pixels from 0 to 1, and those of '
            f'a batch are up to {high:.4g}; multiply `mean` and `std` by 255.')
    deviation = float(preprocessor.std.max())
    dark = high <= _SMALL < max(float(mean.max()) / 2, deviation)
    if dark and high > 0 and images[0].is_floating_point():
        raise ValueError(
            f'No pixel of a batch is above {high:.3g}, and the '
            f'`data_preprocessor` takes away means of up to '
            f'{float(mean.max()):.4g} and divides by up to {deviation:.4g}: '
            'images are normalised twice; take `Normalize` out of the '
            'pipeline, or `mean` and `std` out of the `data_preprocessor`.')
    if dark:
        _say_dark(model, high)
