# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Features and labels of any kind of task as rows."""

import math
from typing import List, NamedTuple, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from vim_mm.models.layouts import pool_tokens
from vim_mm.utils.kinds import KINDS, find_kind
from .cache import CachedBatch

#: Label of a patch that belongs to no class; 255 may be one.
IGNORED = -1


class LabelledRows(NamedTuple):
    """The rows of some batches that are scored.

    Attributes:
        labels (Tensor): Class of every row, (n, ), or a column for each class
            where images may have several, (n, c).
        picture (Tensor): Image of every row, (n, ).
        kept (list[Tensor]): Which rows of each batch they are.
    """
    labels: Tensor
    picture: Tensor
    kept: List[Tensor]


def rows_of(cached: List[CachedBatch],
            num_extra_tokens: int,
            max_rows: int = 20000,
            all_levels: bool = False) -> Tuple[Tensor, Tensor, Tensor]:
    """Feature rows, their classes and their images, for any kind of task.

    Classification gives one pooled row an image. Detection and segmentation
    give one row a patch of the last map, with the class found at its centre;
    patches outside all boxes are a class of their own.

    Args:
        cached (list[CachedBatch]): From :func:`cache_features`.
        num_extra_tokens (int): Class and register tokens, for pooling.
        max_rows (int): More rows than this are thinned at random, always
            the same ones of data of one size. Defaults to 20000.
        all_levels (bool): Patches have the features of all maps, averaged or
            repeated on the grid of the last one. Defaults to False.

    Returns:
        tuple[Tensor, Tensor, Tensor]: (n, d), (n, ) or (n, c), and (n, ), see
        :class:`LabelledRows`.

    Raises:
        ValueError: If the annotations are of no kind known here.
    """
    rows = label_rows(cached, max_rows)
    x = [
        feature_rows(batch, num_extra_tokens, kept, all_levels)
        for batch, kept in zip(cached, rows.kept)
    ]
    return torch.cat(x), rows.labels, rows.picture


def label_rows(cached: Sequence[CachedBatch],
               max_rows: int = 20000) -> LabelledRows:
    """The classes and images of the rows of batches.

    Args:
        cached (Sequence[CachedBatch]): Of their features the shapes matter.
        max_rows (int): See :func:`rows_of`.

    Raises:
        ValueError: See :func:`rows_of`.
    """
    samples = [s for batch in cached for s in batch.data_samples]
    if kind_of(samples[0]) == 'cls':
        y = _image_labels([s.gt_label for s in samples])
        picture = torch.arange(len(samples))
        sizes = [len(batch.data_samples) for batch in cached]
    else:
        parts = [
            patch_labels(s, _grid(batch), batch.input_shape[-2:])
            for batch in cached for s in batch.data_samples
        ]
        y = torch.cat(parts)
        picture = torch.arange(len(samples)).repeat_interleave(
            torch.tensor([len(part) for part in parts]))
        sizes = [
            len(batch.data_samples) * math.prod(_grid(batch))
            for batch in cached
        ]
    labelled = (y != IGNORED).nonzero()[:, 0] if y.dim() == 1 else picture
    kept = labelled[thinned(len(labelled), max_rows)]
    first, of_batch = 0, []
    for size in sizes:
        inside = (kept >= first) & (kept < first + size)
        of_batch.append(kept[inside] - first)
        first += size
    return LabelledRows(y[kept], picture[kept], of_batch)


def feature_rows(batch: CachedBatch,
                 num_extra_tokens: int,
                 kept: Tensor,
                 all_levels: bool = False) -> Tensor:
    """The features of rows of a batch, (n, d).

    Args:
        batch (CachedBatch): The batch.
        num_extra_tokens (int): See :func:`rows_of`.
        kept (Tensor): Which of its rows.
        all_levels (bool): See :func:`rows_of`.
    """
    if kind_of(batch.data_samples[0]) == 'cls':
        return pool_tokens(batch.features, num_extra_tokens)[kept]
    maps = batch.features if all_levels else batch.features[-1:]
    grid = _grid(batch)
    x = torch.cat([F.adaptive_avg_pool2d(m, grid) for m in maps], 1)
    x = x.flatten(2).transpose(1, 2)  # a view: patches of all images are many
    return x[kept // x.shape[1], kept % x.shape[1]]


def kind_of(sample: object) -> str:
    """The kind of task a data sample is annotated for.

    Raises:
        ValueError: If it is of no kind known here.
    """
    kind = find_kind(sample, 'gt')
    if kind is None:
        known = ', '.join(kind.gt for kind in KINDS.values())
        raise ValueError(f'Modules can be scored on one of {known}; these '
                         f'samples hold {sample.keys()}.')
    return kind


def _grid(batch: CachedBatch) -> Tuple[int, int]:
    return tuple(batch.features[-1].shape[-2:])


def _image_labels(labels: Sequence[Tensor]) -> Tensor:
    """Classes (n, ), or a column for each class if some have not just one."""
    if all(len(each) == 1 for each in labels):
        return torch.cat(list(labels))
    found = [int(label) for each in labels for label in each]
    columns = torch.zeros(len(labels), max(found, default=0) + 1)
    for row, each in zip(columns, labels):
        row[each.long()] = 1
    return columns


def thinned(num: int, limit: int, seed: int = 0) -> Tensor:
    """Ordered indices of at most ``limit`` of ``num`` rows.

    Drawn rather than taken at even steps, which may fall on one column of
    the grid of patches; drawn alike every time, so that features of the same
    images stay comparable.
    """
    if num <= limit:
        return torch.arange(num)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num, generator=generator)[:limit].sort().values


def patch_labels(sample: object, grid: Tuple[int, int],
                 padded: Tuple[int, int]) -> Tensor:
    """Class at the centre of every patch, (H * W, ), or :data:`IGNORED`.

    Args:
        sample: A data sample with ``gt_sem_seg`` or ``gt_instances``.
        grid (tuple[int, int]): H and W, in patches.
        padded (tuple[int, int]): Height and width of the batch in pixels.
    """
    rows = (torch.arange(grid[0]) + .5) * padded[0] / grid[0]
    cols = (torch.arange(grid[1]) + .5) * padded[1] / grid[1]
    if 'gt_sem_seg' in sample:
        seg = sample.gt_sem_seg.data[0]
        # padding beyond the label map counts as ignored
        seg = F.pad(seg, (0, padded[1] - seg.shape[1], 0,
                          padded[0] - seg.shape[0]), value=255)
        classes = seg[rows.long()][:, cols.long()].flatten().long()
        return classes.masked_fill(classes == 255, IGNORED)
    target = torch.zeros(grid, dtype=torch.long)
    # padding and unannotated regions (crowds) are no background
    height, width = sample.img_shape[:2]
    target[(rows > height)[:, None] | (cols > width)] = IGNORED
    if 'ignored_instances' in sample:
        boxes, inside = _inside(sample.ignored_instances, rows, cols)
        target[inside.any(0)] = IGNORED
    boxes, inside = _inside(sample.gt_instances, rows, cols)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    # large boxes first, so that a patch gets the class of its smallest box
    for index in area.argsort(descending=True):
        target[inside[index]] = sample.gt_instances.labels[index] + 1
    return target.flatten()


def _inside(instances: InstanceData, rows: Tensor,
            cols: Tensor) -> Tuple[Tensor, Tensor]:
    """Boxes (n, 4), and which points lie inside each, (n, H, W)."""
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    inside = ((cols > left) & (cols < right) & (rows[:, None] > top)
              & (rows[:, None] < bottom))
    return boxes, inside
