# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Pieces of a config's text."""

from typing import Any, Dict, List, Sequence, Tuple

from vim_mm.utils.kinds import KINDS
from .own_trunk import OwnTrunk

#: Stride that the maps are brought near to, of trunks with one stride.
AIMS = dict(det=8, seg=4)
#: What a neck can enlarge maps by.
SCALES = (4, 2, 1)


class Code(str):
    """A piece of Python, to be written as it is."""

    def __repr__(self) -> str:
        return str(self)


def call(**settings: Any) -> Code:
    """``dict(…)`` of some settings, as configs have it."""
    return Code('dict(' + ', '.join(f'{key}={value!r}'
                                    for key, value in settings.items()) + ')')


def one_a_line(items: Sequence[Any]) -> Code:
    """A list with an item a line, as a comma at its end asks for."""
    return Code('[' + ''.join(f'{item!r}, ' for item in items) + ']')


# ---------------------------------------------------------------- the model


def detector(trunk: OwnTrunk) -> Dict[str, Code]:
    """Neck and head of a detector over the maps of a trunk."""
    levels, read = list(range(len(trunk.strides))), trunk.strides
    if trunk.is_plain:
        scale = enlarged_by(trunk, 'det')
        neck = call(sources=(tuple(levels), ), scales=(scale, ))
        read = [read[0] / scale]
    else:
        levels = [i for i in levels if read[i] >= AIMS['det']]
        read = [read[i] for i in levels]
        neck = call(
            sources=tuple((i, ) for i in levels),
            scales=(1, ) * len(levels),
            inner_neck=call(
                type='mmdet.FPN',
                in_channels='auto',
                out_channels=96,
                num_outs=len(levels)))
    # boxes of a level, in pixels: of all sizes at the ends
    ranges = [[4 * stride, 10 * stride] for stride in read]
    ranges[0][0], ranges[-1][1] = 0, 1e8
    head = call(
        num_classes=Code('len(classes)'),
        strides=[int(s) if s == int(s) else s for s in read],
        regress_ranges=tuple(map(tuple, ranges)))
    return dict(neck=neck, bbox_head=head)


def segmentor(trunk: OwnTrunk) -> Dict[str, Code]:
    """Neck and head of a segmentor over the maps of a trunk."""
    levels = list(range(len(trunk.strides)))
    number = Code('len(classes)')
    if trunk.is_plain:
        scale = enlarged_by(trunk, 'seg')
        return dict(
            neck=call(sources=(tuple(levels), ), scales=(scale, )),
            decode_head=call(num_classes=number, in_index=0))
    return dict(
        neck=call(
            sources=tuple((i, ) for i in levels), scales=(1, ) * len(levels)),
        decode_head=call(
            num_classes=number,
            in_index=levels,
            input_transform='resize_concat'))


def enlarged_by(trunk: OwnTrunk, kind: str) -> int:
    """What maps of one stride are enlarged by for a kind of task."""
    return min(SCALES, key=lambda scale: abs(
        trunk.strides[0] / scale - AIMS[kind]))


def token_lines(trunk: OwnTrunk) -> List[str]:
    """How a plain transformer gives its class token, too, to classifiers."""
    if not trunk.is_plain:
        return []
    if 'out_type' in trunk.cfg:
        return ["trunk.update(out_type='raw')"]
    if trunk.cfg.get('features_only'):
        return [f'del trunk[{key!r}]'
                for key in ('features_only', 'out_indices')
                if key in trunk.cfg]
    return []


def preprocessor(kind: str, norm: Code, divisor: int) -> Code:
    """The data preprocessor of a kind of task.

    Args:
        kind (str): The kind.
        norm (Code): How ``mean`` and ``std`` are given.
        divisor (int): What images are padded to a multiple of.
    """
    more = dict(
        cls=('mmpretrain.ClsDataPreprocessor',
             'num_classes=len(classes), to_rgb=True'),
        det=('mmdet.DetDataPreprocessor',
             f'bgr_to_rgb=True, pad_size_divisor={divisor}'),
        seg=('mmseg.SegDataPreProcessor',
             'bgr_to_rgb=True, pad_val=0, seg_pad_val=255, '
             'size=(size, size), '
             f'test_cfg=dict(size_divisor={divisor})'))
    name, settings = more[kind]
    return Code(f'dict(type={name!r}, {norm}, {settings})')


# ------------------------------------------------------------ the pipelines


def stages(kind: str) -> Tuple[Code, Code]:
    """The pipelines to learn from images, and to judge by them."""
    if kind == 'cls':
        train, test = _cls_stages()
    elif kind == 'det':
        train, test = _dense_stages(kind, 'PackDetInputs', with_bbox=True)
        meta = ('img_id', 'img_path', 'ori_shape', 'img_shape',
                'scale_factor')
        test.append(call(type='mmdet.PackDetInputs', meta_keys=meta))
    else:
        # predictions are resized to the labels, not the labels
        train, test = _dense_stages(kind, 'PackSegInputs')
        test.append(call(type='mmseg.PackSegInputs'))
    return one_a_line(train), one_a_line(test)


def _cls_stages() -> Tuple[List[Code], List[Code]]:
    load, pack = (call(type=f'mmpretrain.{name}')
                  for name in ('LoadImageFromFile', 'PackInputs'))
    size = Code('size')
    crop = call(
        type='mmpretrain.RandomResizedCrop',
        scale=size,
        crop_ratio_range=(0.5, 1.))
    flip = call(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal')
    resize = call(type='mmpretrain.ResizeEdge', scale=size, edge='short')
    centre = call(type='mmpretrain.CenterCrop', crop_size=size)
    return [load, crop, flip, pack], [load, resize, centre, pack]


def _dense_stages(kind: str, pack: str,
                  **load: Any) -> Tuple[List[Code], List[Code]]:
    scope = KINDS[kind].scope
    image = call(type='LoadImageFromFile')
    labels = call(type=f'{scope}.LoadAnnotations', **load)
    resize = call(
        type=f'{scope}.Resize', scale=Code('(size, size)'), keep_ratio=True)
    flip = call(type=f'{scope}.RandomFlip', prob=0.5)
    return ([image, labels, resize, flip, call(type=f'{scope}.{pack}')],
            [image, resize, labels])
