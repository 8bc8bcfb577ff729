# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a trunk's slots look like, learned from one blank image."""

from dataclasses import dataclass, replace
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from torch import Size, Tensor, nn

from .blank_image import ProbeSize, in_eval, run_blank, tensors_of
from .prefix_tokens import declared_prefix, prefix_of, token_grid
from .slots import SlotSpec, match_slots
from .watch import Watch


def find_slots(trunk: nn.Module,
               pattern: Optional[str] = None,
               probe_size: ProbeSize = 224) -> Dict[str, SlotSpec]:
    """Find the slots of a trunk that match one pattern.

    Args:
        trunk (nn.Module): The backbone, in any state; left as it was.
        pattern (str, optional): See :func:`match_slots`.
        probe_size (int | Sequence[int]): Side of the blank image in pixels,
            or its height and width. A trunk of another fixed size is given
            that.

    Returns:
        dict[str, SlotSpec]: Slots by name, in the trunk's order.

    Raises:
        ValueError: See :func:`match_slots` and :func:`probe_slots`.
    """
    return probe_slots(trunk, match_slots(trunk, pattern), probe_size)


def probe_slots(trunk: nn.Module,
                names: Sequence[str],
                probe_size: ProbeSize = 224,
                outputs: bool = False) -> Dict[str, SlotSpec]:
    """Learn the shapes of slots from one blank image.

    Widths, layouts and strides are observed rather than declared, so any
    registry backbone works, whatever its attributes are called.

    Args:
        trunk (nn.Module): The backbone, in any state; left as it was.
        names (Sequence[str]): Names of its submodules.
        probe_size (int | Sequence[int]): Side of the blank image in pixels,
            or its height and width. A trunk of another fixed size is given
            that.
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
    watch = Watch(modules, names)
    with watch, in_eval(trunk), torch.enable_grad():
        levels, picture = run_blank(trunk, probe_size)
        total = sum(level.sum() for level in tensors_of(levels))
        if total.requires_grad:  # not if no output reads a slot
            total.backward()
    watch.check_all_seen()
    probe = Probe(picture, declared_prefix(trunk), len(watch.batches) > 1)
    # a submodule the trunk never calls (a cut-off stage) is no slot
    specs = {
        name:
        replace(
            _observed(name, modules[name], probe, *watch.seen[name]),
            is_read=watch.deltas[name].grad is not None,
            is_called=name not in watch.used)
        for name in names if name in watch.seen
    }
    if outputs:
        specs.update(_outputs(levels, probe))
    _check_strides(specs.values(), picture)
    return specs


@dataclass(frozen=True)
class Probe:
    """What the blank image was, and what is known of the trunk.

    Attributes:
        picture (tuple): Height and width in pixels.
        prefix (int, optional): Tokens before the patches, as the trunk says.
        windows (bool): Whether it splits the image into windows.
    """
    picture: Tuple[int, int]
    prefix: Optional[int]
    windows: bool

    def __str__(self) -> str:
        return '{}x{} px'.format(*self.picture)


def _check_strides(specs: Iterable[SlotSpec], picture: Sequence[int]) -> None:
    # a stage that rounded its size up looks as if it had another stride
    strides = [spec.stride for spec in specs if spec.stride]
    if any(stride % min(strides) for stride in strides):
        raise ValueError(
            f'On an image of {picture[0]}x{picture[1]} px the slots seem to '
            f'have the strides {sorted(set(strides))}, which are no multiples '
            'of the first; set `model.backbone.probe_size` to a multiple of '
            "the trunk's largest stride.")


def find_prefix(trunk: nn.Module, probe_size: ProbeSize = 224) -> int:
    """Class and register tokens before the patches in a trunk's outputs.

    Args:
        trunk (nn.Module): The backbone, in any state; left as it was.
        probe_size (int | Sequence[int]): See :func:`probe_slots`.

    Raises:
        ValueError: If it takes no image of that size.
    """
    with in_eval(trunk), torch.no_grad():
        levels, picture = run_blank(trunk, probe_size)
    return prefix_of(trunk, list(tensors_of(levels)), picture)


def _observed(name: str, module: nn.Module, probe: Probe, inputs: Size,
              output: Optional[Size]) -> SlotSpec:
    if isinstance(module, nn.Linear):
        return _linear(name, module, probe, output)
    if output is not None and len(output) == 4:
        return _map(name, output, probe)
    if output is None or len(output) != 3 or inputs != output:
        raise ValueError(
            f"Submodule '{name}' cannot be a slot: it maps {inputs} to "
            f'{output}, and a slot is a linear layer, maps tokens (B, L, C) '
            'to tokens of the same shape or returns a map (B, C, H, W). '
            'Narrow the pattern.')
    return _tokens(name, output, probe)


def _linear(name: str, module: nn.Linear, probe: Probe,
            output: Size) -> SlotSpec:
    spec = SlotSpec(
        name,
        dims=module.out_features,
        is_map=False,
        in_dims=module.in_features,
        is_linear=True)
    # windows of an attention lie in the batch: no grid of the image; where
    # there are some, a single one looks as if it were the image
    if len(output) == 3 and output[0] == 1 and not probe.windows:
        grid = token_grid(output[1], probe.picture, probe.prefix)
        if grid:
            return replace(spec, stride=grid[0], num_extra_tokens=grid[1])
    return spec


def _map(name: str, shape: Size, probe: Probe) -> SlotSpec:
    height, width = probe.picture

    def is_grid(rows: int, cols: int) -> bool:
        return rows * width == cols * height

    if is_grid(*shape[1:3]) and not is_grid(*shape[2:]):
        raise ValueError(
            f"'{name}' is a map with its channels last, {tuple(shape)}, and "
            'modules read (B, C, H, W); take a backbone that gives these, '
            "such as mmpretrain's SwinTransformer for timm's.")
    return SlotSpec(name, dims=shape[1], is_map=True)


def _tokens(name: str, shape: Size, probe: Probe) -> SlotSpec:
    grid = token_grid(shape[1], probe.picture, probe.prefix)
    if grid is None:
        raise ValueError(
            f"Slot '{name}' has {shape[1]} tokens for an image of {probe}, "
            'which is no whole stride; set `probe_size` to a multiple of the '
            'patch size.')
    return SlotSpec(
        name,
        dims=shape[2],
        is_map=False,
        stride=grid[0],
        num_extra_tokens=grid[1])


def _outputs(levels: object, probe: Probe) -> Dict[str, SlotSpec]:
    if isinstance(levels, Tensor):
        levels = [levels]
    specs: List[SlotSpec] = []
    for index, level in enumerate(levels):
        name, shape = f'outputs.{index}', getattr(level, 'shape', ())
        if len(shape) == 4:
            specs.append(_map(name, shape, probe))
        elif len(shape) == 3:
            specs.append(_tokens(name, shape, probe))
        elif len(shape) == 2:  # one token for the whole image
            specs.append(SlotSpec(name, dims=shape[1], is_map=False))
        else:
            raise ValueError(
                f'A module beside the trunk cannot read its output {index}, '
                f'a {type(level).__name__}: it reads maps (B, C, H, W), '
                'tokens (B, L, C) and vectors (B, C); set the trunk\'s '
                '`out_type`.')
    return {spec.name: spec for spec in specs}
