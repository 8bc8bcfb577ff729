# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One blank image through a backbone, which is left as it was."""

from contextlib import contextmanager
from typing import Iterator, List, Mapping, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

#: Side of the blank image in pixels, or its height and width.
ProbeSize = Union[int, Sequence[int]]
#: What a trunk may raise for an image of a size that it does not take.
REFUSALS = (ArithmeticError, AssertionError, RuntimeError, TypeError)


def blank_outputs(backbone: nn.Module, probe_size: ProbeSize = 224) -> object:
    """What a backbone returns for one blank image.

    Args:
        backbone (nn.Module): The backbone, in any state; left as it was.
        probe_size (int | Sequence[int]): Side of the blank image in
            pixels, or its height and width.

    Raises:
        ValueError: If it takes no image of that size.
    """
    with in_eval(backbone), torch.no_grad():
        return run_blank(backbone, probe_size)[0]


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Within this context a module is in eval mode, in all its parts."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def run_blank(trunk: nn.Module,
              probe_size: ProbeSize) -> Tuple[object, Tuple[int, int]]:
    """What a trunk makes of a blank image, and the height and width of it.

    Raises:
        ValueError: If it takes no image of that size, nor of its own.
    """
    sizes = [pair(probe_size), *_own_sizes(trunk)]
    errors = []
    for size in sizes:
        try:
            return trunk(blank_image(trunk, size)), size
        except REFUSALS as error:
            errors.append(error)
    raise ValueError(
        f'{type(trunk).__name__} refuses an image of {sizes[0][0]}x'
        f'{sizes[0][1]} px, which was to find its slots ({errors[0]}); set '
        '`model.backbone.probe_size` to a size it takes (height and width, '
        'if they differ), or give a trunk whose `forward` takes one batch of '
        'images.') from errors[0]


def blank_image(trunk: nn.Module, size: Tuple[int, int]) -> Tensor:
    """One image of zeros, of a height and width, for a trunk."""
    weight = next(trunk.parameters())
    return torch.zeros(1, 3, *size, device=weight.device, dtype=weight.dtype)


def pair(size: ProbeSize) -> Tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _own_sizes(trunk: nn.Module) -> List[Tuple[int, int]]:
    """Sizes that a trunk says its images have."""
    sizes = [getattr(part, 'img_size', None) for part in trunk.modules()]
    for part in trunk.modules():
        published = getattr(part, 'pretrained_cfg', None)  # of timm
        if isinstance(published, Mapping):
            sizes.append(tuple(published.get('input_size') or ())[-2:])
    return list(dict.fromkeys(map(pair, filter(_is_size, sizes))))


def _is_size(size: object) -> bool:
    return isinstance(size, int) or (isinstance(size, (list, tuple))
                                     and len(size) == 2)


def tensors_of(outputs: object) -> Iterator[Tensor]:
    """All tensors that a trunk returns, in order.

    Raises:
        ValueError: If it returns anything else.
    """
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for item in outputs:
            yield from tensors_of(item)
    else:
        raise ValueError(
            f'The trunk returns a {type(outputs).__name__}, and it is to '
            'return a tensor or a tuple of them; wrap it in a module that '
            'does.')
