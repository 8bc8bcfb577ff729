# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a trunk's slots look like, learned from one blank image."""

import math
from contextlib import contextmanager
from dataclasses import replace
from typing import (Dict, Iterable, Iterator, List, Optional, Sequence, Set,
                    Tuple)

import torch
from torch import Size, Tensor, nn

from .slots import SlotSpec, match_slots, slot_input


def find_slots(trunk: nn.Module,
               pattern: Optional[str] = None,
               probe_size: int = 224) -> Dict[str, SlotSpec]:
    """Find the slots of a trunk that match one pattern.

    Args:
        trunk (nn.Module): The backbone, in any state; left as it was.
        pattern (str, optional): See :func:`match_slots`.
        probe_size (int): Side of the blank image in pixels.

    Returns:
        dict[str, SlotSpec]: Slots by name, in the trunk's order.

    Raises:
        ValueError: See :func:`match_slots` and :func:`probe_slots`.
    """
    return probe_slots(trunk, match_slots(trunk, pattern), probe_size)


def probe_slots(trunk: nn.Module,
                names: Sequence[str],
                probe_size: int = 224,
                outputs: bool = False) -> Dict[str, SlotSpec]:
    """Learn the shapes of slots from one blank image.

    Widths, layouts and strides are observed rather than declared, so any
    registry backbone works, whatever its attributes are called.

    Args:
        trunk (nn.Module): The backbone, in any state; left as it was.
        names (Sequence[str]): Names of its submodules.
        probe_size (int): Side of the blank image in pixels.
        outputs (bool): Whether to describe the trunk's outputs too, as
            ``outputs.0``, ``outputs.1`` and so on. Defaults to False.

    Returns:
        dict[str, SlotSpec]: Slots by name, in the trunk's order, the outputs
        last.

    Raises:
        ValueError: If a submodule returns neither tokens nor a map, or the
            trunk takes no image of that size.
    """
    modules = dict(trunk.named_modules())
    names = [name for name in modules if name in set(names)]
    seen: Dict[str, Tuple[Size, Optional[Size]]] = {}
    deltas: Dict[str, Tensor] = {}

    def record(name: str):

        def hook(_, args, kwargs, output):
            seen[name] = (slot_input(args, kwargs).shape,
                          getattr(output, 'shape', None))
            if isinstance(output, Tensor):
                deltas[name] = torch.zeros_like(output, requires_grad=True)
                return output + deltas[name]

        return hook

    batches: Set[int] = set()

    def count(_, args, output: Tensor) -> None:
        if output.dim() == 3:
            batches.add(len(output))

    handles = [
        modules[name].register_forward_hook(record(name), with_kwargs=True)
        for name in names
    ] + [
        module.register_forward_hook(count) for module in modules.values()
        if isinstance(module, nn.Linear)
    ]
    try:
        with in_eval(trunk), torch.enable_grad():
            levels = _run(trunk, probe_size)
            total = sum(level.sum() for level in _tensors(levels))
            if total.requires_grad:  # not if no output reads a slot
                total.backward()
    finally:
        for handle in handles:
            handle.remove()
    # a submodule the trunk never calls (a cut-off stage) is no slot
    specs = {
        name: replace(
            _observed(name, modules[name], probe_size, *seen[name],
                      windows=len(batches) > 1),
            is_read=deltas[name].grad is not None)
        for name in names if name in seen
    }
    if outputs:
        specs.update(_outputs(levels, probe_size))
    _check_strides(specs.values(), probe_size)
    return specs


def _check_strides(specs: Iterable[SlotSpec], probe_size: int) -> None:
    # a stage that rounded its size up looks as if it had another stride
    strides = [spec.stride for spec in specs if spec.stride]
    if any(stride % min(strides) for stride in strides):
        raise ValueError(
            f'On an image of {probe_size} px the slots seem to have the '
            f'strides {sorted(set(strides))}, which are no multiples of the '
            'first; set `model.backbone.probe_size` to a multiple of the '
            "trunk's largest stride.")


def blank_outputs(backbone: nn.Module, probe_size: int = 224) -> object:
    """What a backbone returns for one blank image.

    Args:
        backbone (nn.Module): The backbone, in any state; left as it was.
        probe_size (int): Side of the blank image in pixels.

    Raises:
        ValueError: If it takes no image of that size.
    """
    with in_eval(backbone), torch.no_grad():
        return _run(backbone, probe_size)


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


def _run(trunk: nn.Module, probe_size: int) -> object:
    weight = next(trunk.parameters())
    picture = torch.zeros(
        1, 3, probe_size, probe_size, device=weight.device, dtype=weight.dtype)
    try:
        return trunk(picture)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(
            f'{type(trunk).__name__} refuses an image of {probe_size} px, '
            f'which was to find its slots ({error}); set '
            '`model.backbone.probe_size` to a size it takes, or give a trunk '
            'whose `forward` takes one batch of images.') from error


def _tensors(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for item in outputs:
            yield from _tensors(item)
    else:
        raise ValueError(
            f'The trunk returns a {type(outputs).__name__}, and it is to '
            'return a tensor or a tuple of them; wrap it in a module that '
            'does.')


def _observed(name: str, module: nn.Module, probe_size: int, inputs: Size,
              output: Optional[Size], windows: bool) -> SlotSpec:
    if isinstance(module, nn.Linear):
        return _linear(name, module, probe_size, output, windows)
    if output is not None and len(output) == 4:
        return _map(name, output)
    if output is None or len(output) != 3 or inputs != output:
        raise ValueError(
            f"Submodule '{name}' cannot be a slot: it maps {inputs} to "
            f'{output}, and a slot is a linear layer, maps tokens (B, L, C) '
            'to tokens of the same shape or returns a map (B, C, H, W). '
            'Narrow the pattern.')
    return _tokens(name, output, probe_size)


def _linear(name: str, module: nn.Linear, probe_size: int,
            output: Size, windows: bool) -> SlotSpec:
    spec = SlotSpec(
        name,
        dims=module.out_features,
        is_map=False,
        in_dims=module.in_features,
        is_linear=True)
    # windows of an attention lie in the batch: no grid of the image; where
    # there are some, a single one looks as if it were the image
    if len(output) == 3 and output[0] == 1 and not windows:
        side = math.isqrt(output[1])
        if probe_size % side == 0:
            return replace(
                spec,
                num_extra_tokens=output[1] - side * side,
                stride=probe_size // side)
    return spec


def _map(name: str, shape: Size) -> SlotSpec:
    if shape[1] == shape[2] != shape[3]:  # the probe is a square
        raise ValueError(
            f"'{name}' is a map with its channels last, {tuple(shape)}, and "
            'modules read (B, C, H, W); take a backbone that gives these, '
            "such as mmpretrain's SwinTransformer for timm's.")
    return SlotSpec(name, dims=shape[1], is_map=True)


def _tokens(name: str, shape: Size, probe_size: int) -> SlotSpec:
    side = math.isqrt(shape[1])
    stride, rest = divmod(probe_size, side)
    if rest:
        raise ValueError(
            f"Slot '{name}' has {shape[1]} tokens for an image of "
            f'{probe_size} px, which is no whole stride; set `probe_size` '
            'to a multiple of the patch size.')
    return SlotSpec(
        name,
        dims=shape[2],
        is_map=False,
        num_extra_tokens=shape[1] - side * side,
        stride=stride)


def _outputs(levels: object, probe_size: int) -> Dict[str, SlotSpec]:
    if isinstance(levels, Tensor):
        levels = [levels]
    specs: List[SlotSpec] = []
    for index, level in enumerate(levels):
        name, shape = f'outputs.{index}', getattr(level, 'shape', ())
        if len(shape) == 4:
            specs.append(_map(name, shape))
        elif len(shape) == 3:
            specs.append(_tokens(name, shape, probe_size))
        elif len(shape) == 2:  # one token for the whole image
            specs.append(SlotSpec(name, dims=shape[1], is_map=False))
        else:
            raise ValueError(
                f'A module beside the trunk cannot read its output {index}, '
                f'a {type(level).__name__}: it reads maps (B, C, H, W), '
                'tokens (B, L, C) and vectors (B, C); set the trunk\'s '
                '`out_type`.')
    return {spec.name: spec for spec in specs}
