# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Published tensor names of vision transformers, and the one of mmpretrain."""

from collections.abc import Iterable, Mapping, Sequence
from math import isqrt

from mmengine.logging import print_log
from torch import Tensor

from vim_mm.utils.tensor_names import Layout, fuse_qkv
from .sources import ConversionError, OtherLayout

__all__ = ['convert_vit', 'vit_backbone']

# No tensor tells the number of heads. Small, base, large and DINOv2's giant
# have heads of 64; SO400M, huge, giant and gigantic have 16, as in timm.
HEAD_DIMS = 64
SIXTEEN_HEADS = (1152, 1280, 1408, 1664)


def convert_vit(state: Mapping[str, Tensor],
                layouts: Sequence[Layout]) -> dict[str, Tensor]:
    """Rename, fuse and reshape to ``mmpretrain.VisionTransformer``.

    Args:
        state (Mapping): The published tensors.
        layouts (Sequence[Layout]): The layouts of the family.

    Returns:
        dict[str, Tensor]: The tensors of the bare backbone, final norm
        included.

    Raises:
        ConversionError: If no layout fits or a tensor has no place.
    """
    layout, prefix = _detect(state, layouts)
    converted, unknown, dropped = {}, [], {}
    for whole, tensor in state.items():
        key = whole.removeprefix(prefix)
        if not whole.startswith(prefix):
            what, name = layout.outside, None
        else:
            what, name = layout.drop_reason(key), layout.rename(key)
        if what:
            dropped[what] = dropped.get(what, 0) + 1
        elif name:
            converted[name] = tensor
        else:
            unknown.append(whole)
    if unknown:
        raise OtherLayout(
            f"{len(unknown)} keys, such as '{unknown[0]}', have no place in "
            'mmpretrain.VisionTransformer')
    for what, count in dropped.items():
        print_log(f'left out {what} ({count} tensors)', logger='current')
    try:
        converted = fuse_qkv(converted)
    except ValueError as error:
        raise ConversionError(str(error)) from None
    for name in {'cls_token', 'pos_embed'} & converted.keys():
        if not converted[name].numel():
            raise ConversionError(f"its tensor '{name}' is empty: it is "
                                  'damaged')
        dims = converted[name].shape[-1:] or (1, )
        converted[name] = converted[name].reshape(1, -1, *dims)
    return converted


def vit_backbone(state: Mapping[str, Tensor], **cfg) -> dict:
    """Config of the ``mmpretrain.VisionTransformer`` for given tensors.

    Args:
        state (Mapping): Converted tensors.
        **cfg: What tensors cannot tell, e.g. the activation.

    Returns:
        dict: The config; width, depth, patch and image size (pixels) are
        read off the tensors.

    Raises:
        ConversionError: If a tensor that tells a size is missing.
    """
    try:
        patch = state['patch_embed.projection.weight'].shape[-1]
        _, tokens, dims = state['pos_embed'].shape
        hidden = state['layers.0.ffn.layers.0.0.weight'].shape[0]
    except KeyError as error:
        raise ConversionError(
            f'no tensor in the file became {error}: it is cut short or of '
            'another family') from None
    except (IndexError, ValueError):
        raise ConversionError(
            'its tensors have other axes than those of a vision transformer: '
            'it is damaged or of another family') from None
    if not tokens or isqrt(tokens - 1)**2 != tokens - 1:
        raise OtherLayout(f"its 'pos_embed' has {tokens} tokens, which are no "
                          'square behind a class token')
    if dims not in SIXTEEN_HEADS and dims % HEAD_DIMS:
        raise ConversionError(
            f'how many heads a transformer of width {dims} has is not known: '
            'take one of tiny, small, base, large, huge or giant size')
    depth = count_blocks(state, 'layers.')
    arch = dict(
        embed_dims=dims,
        num_layers=depth,
        num_heads=16 if dims in SIXTEEN_HEADS else dims // HEAD_DIMS,
        feedforward_channels=hidden)
    return dict(
        type='mmpretrain.VisionTransformer',
        arch=arch,
        img_size=isqrt(tokens - 1) * patch,
        patch_size=patch,
        **cfg)


def count_blocks(names: Iterable[str], start: str) -> int:
    """How many blocks there are, which are numbered from zero.

    Args:
        names (Iterable[str]): Names of tensors.
        start (str): What comes before the number of a block.

    Raises:
        ConversionError: If a number is missing.
    """
    found = {
        name[len(start):].partition('.')[0]
        for name in names if name.startswith(start)
    }
    missing = [n for n in map(str, range(len(found))) if n not in found]
    if missing:
        raise ConversionError(f'it lacks block {missing[0]} and has others: '
                              'it is damaged')
    return len(found)


def _detect(state: Mapping[str, Tensor],
            layouts: Sequence[Layout]) -> tuple[Layout, str]:
    """The layout of a file, and the prefix of the tower's names."""
    found = {
        (number, prefix): count
        for number, layout in enumerate(layouts)
        for prefix, count in layout.places(state).items()
    }
    best = [place for place in found if found[place] == max(found.values())]
    if len(best) > 1:
        raise ConversionError(
            'it holds several towers, under '
            f'{[prefix for _, prefix in best]}: save the tensors of one')
    if best:
        return layouts[best[0][0]], best[0][1]
    marks = ' or '.join(f"'{x.mark}' ({x.publisher})" for x in layouts)
    raise OtherLayout(
        f'its layout is unknown: no key {marks}, but {len(state)} keys such '
        f"as '{next(iter(state))}'")
