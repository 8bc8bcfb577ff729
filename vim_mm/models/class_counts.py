# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How many classes heads and data sets tell apart, and which labels fit."""

import logging
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import Dataset

from vim_mm.utils.kinds import SOFT_ONLY, find_kind
from vim_mm.utils.messages import short

#: Heads whose classes are those of the data; helpers may tell others apart.
_MAIN = ('head', 'bbox_head', 'decode_head', 'mask_head', 'panoptic_head')
#: Auxiliary heads that tell something else, as edges.
_OTHERS = ('STDCHead', )


def class_counts(dataset: Dataset) -> Tuple[int, ...]:
    """Numbers of classes that a data set may be said to have."""
    meta = getattr(dataset, 'metainfo', None) or {}
    # panoptic ones have things and stuff beside all classes
    keys = sorted((key for key in meta if key.endswith('classes')), key=len)
    return tuple(
        len(meta[key]) for key in keys if isinstance(meta[key], (list, tuple)))


def head_counts(model: nn.Module) -> Iterator[Tuple[str, int]]:
    """The parts of a model that tell classes apart, and how many."""
    for name, part in model.named_modules():
        count = getattr(part, 'num_classes', None)
        # a proposal network tells objects only
        if (name and isinstance(count, int) and 'rpn' not in name
                and not name.startswith('data_preprocessor')):
            yield name, count


def main_heads(model: nn.Module) -> Iterator[Tuple[str, nn.Module]]:
    """The heads of a model that learn the classes of its data."""
    roi_head = getattr(model, 'roi_head', None)
    for prefix, owner in (('', model), ('roi_head.', roi_head)):
        for name in _MAIN:
            head = getattr(owner, name, None)
            several = isinstance(head, nn.ModuleList)
            for each in head if several else [head]:
                if isinstance(getattr(each, 'num_classes', None), int):
                    yield f'{prefix}{name}', each


def _auxiliary(model: nn.Module) -> Iterator[Tuple[str, nn.Module]]:
    """Auxiliary heads of a segmentor, which learn the same classes."""
    given = getattr(model, 'auxiliary_head', None)
    for head in given if isinstance(given, nn.ModuleList) else [given]:
        if isinstance(getattr(head, 'num_classes', None), int) and type(
                head).__name__ not in _OTHERS:
            yield 'auxiliary_head', head


def check_head(model: nn.Module, dataset: Dataset) -> None:
    """Refuse a head that is built for fewer classes than its data has.

    Args:
        model (nn.Module): The model, not wrapped.
        dataset (Dataset): Its training set.

    Raises:
        ValueError: If it is; outputs that no class has, and data without
            names of classes, are named in a line.
    """
    counts = class_counts(dataset)
    unnamed = next(main_heads(model), None) if not counts and isinstance(
        getattr(dataset, 'metainfo', None), Mapping) else None
    if unnamed is not None:
        print_log(
            'The training set names no classes, so they cannot be compared '
            f'with the {unnamed[1].num_classes} of `model.{unnamed[0]}`, nor '
            'can checkpoints name them; give its `metainfo` the `classes`.',
            logger='current',
            level=logging.WARNING)
    heads = [*main_heads(model), *_auxiliary(model)]
    for name, head in heads if counts else ():
        number = head.num_classes
        said = (f'`model.{name}` is built for {number} classes, and the '
                f'training set has {counts[0]}')
        if number < min(counts):
            raise ValueError(f'{said}, so some of them could not be learned; '
                             'set its `num_classes`, or the classes of the '
                             'data set in `metainfo`.')
        if number > max(counts):
            print_log(
                f'{said}: {number - max(counts)} of its outputs learn that '
                'they never occur.',
                logger='current',
                level=logging.WARNING)


def check_labels(model: nn.Module, data: Any, judged: bool = False) -> bool:
    """Refuse a batch with labels that a model's heads have no place for.

    On a CPU such a label ends the run in a message about some index, on a GPU
    in one about the device.

    Args:
        model (nn.Module): The model, not wrapped.
        data: The batch as the loader gives it.
        judged (bool): Whether a model is judged by it, whose maps may be of
            another size, and whose losses are not computed. Defaults to
            False.

    Returns:
        bool: Whether something of it is labelled; True if that is unknown.

    Raises:
        ValueError: If a label or box is none, a map has another size, or a
            loss of scores gets labels.
    """
    samples = data.get('data_samples') if isinstance(data, Mapping) else None
    head: Optional[nn.Module]
    name, head = next(main_heads(model), ('', None))
    if head is None or not isinstance(samples, (list, tuple)):
        return True
    images, labelled = data.get('inputs'), False
    for index, sample in enumerate(samples):
        if _is_soft_only(sample):
            labelled = True  # by a teacher
            continue
        kind = _kind(sample)
        if kind is None:
            return True
        if kind == 'seg' and not judged:
            _check_map(images[index], sample)
        if kind == 'cls' and not judged:
            _check_soft(model, f'model.{name}', head, sample)
            _check_once(sample)
        labels = _labels(kind, head, sample)
        labelled = labelled or bool(labels.numel())
        if labels.numel() and not 0 <= labels.min() <= labels.max() < \
                head.num_classes:
            worst = labels.max() if labels.min() >= 0 else labels.min()
            raise ValueError(
                f'{_place(sample)} has the label {int(worst)}, and '
                f'`{name}` is built for {head.num_classes} classes, labels '
                f'from 0 to {head.num_classes - 1}'
                f'{_besides(kind, head)}; set its `num_classes`, or correct '
                'the annotations.')
    return labelled


def label_counts(model: nn.Module, data: Any) -> Dict[str, Tensor]:
    """How often each class of a model's first head is in a batch.

    Args:
        model (nn.Module): The model, not wrapped.
        data: A batch that :func:`check_labels` has let pass.

    Returns:
        dict[str, Tensor]: By name of the head; empty if that is unknown.
    """
    samples = data.get('data_samples') if isinstance(data, Mapping) else None
    head: Optional[nn.Module]
    name, head = next(main_heads(model), ('', None))
    if head is None or not isinstance(samples, (list, tuple)):
        return {}
    counts = torch.zeros(head.num_classes, dtype=torch.long)
    for sample in samples:
        kind = _kind(sample)
        if kind is None or _is_soft_only(sample):
            return {}
        labels = _labels(kind, head, sample).flatten().long().cpu()
        counts += torch.bincount(labels, minlength=head.num_classes)
    return {name: counts}


def check_no_soft(data: Any) -> None:
    """Refuse images without labels to learn from, where no teacher is.

    Args:
        data: A batch as the loader gives it.

    Raises:
        ValueError: If there is one.
    """
    samples = data.get('data_samples') if isinstance(data, Mapping) else None
    for sample in samples if isinstance(samples, (list, tuple)) else ():
        if _is_soft_only(sample):
            raise ValueError(
                f'{_place(sample)} is of a vim_mm.SoftOnly, which a student '
                'learns from by its teacher alone, and the model is no '
                'Distiller; take that data set out.')


def _is_soft_only(sample: Any) -> bool:
    """Whether a student learns from a sample by its teacher alone."""
    return isinstance(sample, BaseDataElement) and bool(
        sample.get(SOFT_ONLY, False))


def _kind(sample: Any) -> Optional[str]:
    """The kind of a sample's annotation, None for those of no plain form."""
    kind = find_kind(sample, 'gt') if isinstance(sample,
                                                 BaseDataElement) else None
    if kind == 'seg' and 'data' not in sample.gt_sem_seg:
        return None  # mmdet's own
    if kind == 'cls' and not isinstance(sample.gt_label, Tensor):
        return None
    return kind


def _labels(kind: str, head: nn.Module, sample: BaseDataElement) -> Tensor:
    """The labels of a sample that count."""
    if kind == 'cls':
        return sample.gt_label
    if kind == 'det':
        boxes = sample.gt_instances.get('bboxes')
        boxes = getattr(boxes, 'tensor', boxes)
        if boxes is not None and not torch.isfinite(boxes).all():
            raise ValueError(f'{_place(sample)} has a box that is not finite, '
                             f'{boxes[~boxes.isfinite().all(1)][0].tolist()}; '
                             'correct its annotation.')
        return torch.as_tensor(sample.gt_instances.get('labels', []))
    labels = sample.gt_sem_seg.data
    return labels[labels != getattr(head, 'ignore_index', 255)]


def _check_soft(model: nn.Module, name: str, head: nn.Module,
                sample: BaseDataElement) -> None:
    """Refuse a loss of scores where a label is all that there is.

    Where a batch has as many images as there are classes, its labels are
    taken for scores without a word.
    """
    mixed = getattr(getattr(model, 'data_preprocessor', None),
                    'batch_augments', None)
    makes = 'MultiLabelClsHead' in [k.__name__ for k in type(head).__mro__]
    if getattr(getattr(head, 'loss_module', None), 'use_soft', False) \
            and not (mixed or makes or 'gt_score' in sample):
        raise ValueError(
            f'`{name}.loss.use_soft` is True, a loss of scores, and '
            f'{_place(sample).replace("The", "the", 1)} has a label alone; '
            'set it to False, or mix images by `batch_augments`.')


def _check_once(sample: BaseDataElement) -> None:
    """Refuse zeros and ones in the place of the numbers of classes."""
    labels = sample.gt_label.flatten().tolist()
    if len(set(labels)) < len(labels):
        raise ValueError(
            f'{_place(sample)} has the labels {short(labels)}, one of them '
            'twice: `gt_label` lists the numbers of its classes; give zeros '
            'and ones as `gt_score`.')


def _check_map(image: Any, sample: BaseDataElement) -> None:
    labels = sample.gt_sem_seg.data
    size, own = (tuple(x.shape[-2:]) for x in (image, labels))
    if size == tuple(labels.shape[:2]) and labels.dim() == 3:
        raise ValueError(
            f'{_place(sample)} has a label map of {labels.shape[2]} channels; '
            'give maps of one, whose pixels are the numbers of classes.')
    if size != own:
        raise ValueError(
            f'{_place(sample)} has a label map of {own[0]}x{own[1]} px, and '
            f'as the pipeline gives it {size[0]}x{size[1]} px itself; give '
            'maps of the size of their images.')


def _place(sample: BaseDataElement) -> str:
    known: List[Any] = [
        sample.metainfo.get(key) for key in ('img_path', 'img_id')
    ]
    return f'The image {next((k for k in known if k is not None), "")}'


def _besides(kind: str, head: nn.Module) -> str:
    if kind != 'seg':
        return ''
    return f' ({getattr(head, "ignore_index", 255)} is ignored)'
