# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Features and labels of any kind of task as rows."""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from vim_mm.models.layouts import pool_tokens
from vim_mm.utils.kinds import KINDS, find_kind
from .cache import CachedBatch

#: Label of a patch that belongs to no class; 255 may be one.
IGNORED = -1


def rows_of(cached: List[CachedBatch],
            num_extra_tokens: int,
            max_rows: int = 20000,
            seed: int = 0,
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
        seed (int): Thins in another way. Defaults to 0.
        all_levels (bool): Patches have the features of all maps, averaged or
            repeated on the grid of the last one. Defaults to False.

    Returns:
        tuple[Tensor, Tensor, Tensor]: (n, d), (n, ) and (n, ).

    Raises:
        ValueError: If the annotations are of no kind known here.
    """
    rows, labels, pictures, start = [], [], [], 0
    for batch in cached:
        sample = batch.data_samples[0]
        kind = find_kind(sample, 'gt')
        if kind == 'cls':
            x = pool_tokens(batch.features, num_extra_tokens)[:, None]
            y = [s.gt_label for s in batch.data_samples]
            if any(len(each) != 1 for each in y):
                raise ValueError('Modules can be scored on images of one '
                                 'class each; some have several, or none.')
            y = torch.stack(y)
        elif kind is not None:
            grid = batch.features[-1].shape[-2:]
            maps = batch.features if all_levels else batch.features[-1:]
            x = torch.cat([F.adaptive_avg_pool2d(m, grid) for m in maps], 1)
            x = x.flatten(2).transpose(1, 2)
            y = torch.stack([
                patch_labels(s, grid, batch.input_shape[-2:])
                for s in batch.data_samples
            ])
        else:
            known = ', '.join(kind.gt for kind in KINDS.values())
            raise ValueError(f'Modules can be scored on one of {known}; these '
                             f'samples hold {sample.keys()}.')
        picture = torch.arange(start, start + len(x))
        start += len(x)
        pictures.append(picture[:, None].expand(x.shape[:2]).flatten())
        rows.append(x)  # a view: patches of all images are many
        labels.append(y.flatten())
    y, picture = torch.cat(labels), torch.cat(pictures)
    labelled = (y != IGNORED).nonzero()[:, 0]
    keep = labelled[thinned(len(labelled), max_rows, seed)]
    x, first = [], 0
    for part in rows:
        last = first + part.shape[0] * part.shape[1]
        index = keep[(keep >= first) & (keep < last)] - first
        x.append(part[index // part.shape[1], index % part.shape[1]])
        first = last
    return torch.cat(x), y[keep], picture[keep]


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
