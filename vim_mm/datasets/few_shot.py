# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import copy
import logging
from collections import Counter, deque
from typing import Any, List, Optional, Sequence, Set, Union

import numpy as np
import torch
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.logging import print_log

from vim_mm.registry import DATASETS

#: Classes of each image.
Labels = Sequence[Set[int]]


@DATASETS.register_module()
class FewShot:
    """Few images of a data set, drawn class by class.

    Smaller draws of one seed are part of larger ones: five images a class
    are among the ten, and a tenth of the images is within a fifth.

    With ``per_class`` every class is in at least that many images: exactly
    so many where images have one class, and as few more as a greedy draw
    reaches where they have several (detection, segmentation). A class with
    fewer images gives them all, which one warning says. With ``share`` each
    class gives its share of images; an image of several counts for its
    rarest class, and images without any are a class of their own.

    Classes in segmentation are read from all label maps once, so a list of
    files suits large data sets better.

    Everything else is the data set's own, e.g. its pipeline and metainfo;
    an image that cannot be used is replaced by another of the few.

    Args:
        dataset (dict | BaseDataset | ConcatDataset): The whole data set. It
            is left as it is.
        per_class (int, optional): Images of each class.
        share (float, optional): Share of the images, above 0, at most 1.
            Either this or ``per_class`` is given.
        seed (int): Seed of the draw. Defaults to 0.
        lazy_init (bool): Whether to draw at the first use. Defaults to
            False.

    Raises:
        ValueError: If the number is none, or no image has a label.
        ValueError: If the data set has no subsets.
    """

    def __init__(self,
                 dataset: Union[dict, BaseDataset, ConcatDataset],
                 per_class: Optional[int] = None,
                 share: Optional[float] = None,
                 seed: int = 0,
                 lazy_init: bool = False) -> None:
        _check_size(per_class, share)
        if isinstance(dataset, dict):
            late = dict(lazy_init=True) if lazy_init else {}
            dataset = DATASETS.build(dict(dataset, **late))
        _check_type(dataset)
        self.dataset = dataset
        self.per_class, self.share, self.seed = per_class, share, seed
        self._drawn = False
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        """Read all annotations and draw; nothing the second time."""
        if self._drawn:
            return
        self.dataset.full_init()
        labels = labels_of(self.dataset)
        if not any(labels):
            raise ValueError('FewShot draws by class, and no image has a '
                             "label; take `indices` of the data set's own.")
        if self.per_class is not None:
            chosen = draw_per_class(labels, self.per_class, self.seed)
        else:
            chosen = draw_share(labels, self.share, self.seed)
        self._report(labels, chosen)
        self.dataset = _subset(self.dataset, sorted(chosen))
        self._drawn = True

    def _report(self, labels: Labels, chosen: List[int]) -> None:
        """Warn of classes that give fewer images than they should."""
        asked = self.per_class or 1
        names = self.metainfo.get('classes') or ()
        counts = Counter(c for index in chosen for c in labels[index])
        known = range(len(names)) if names else set().union(*labels)
        few = [
            f'{names[c] if names else c} ({counts[c]})' for c in known
            if counts[c] < asked
        ]
        if few:
            print_log(
                f'FewShot has fewer than {asked} image(s) of {len(few)} '
                f"class(es): {', '.join(few[:5])}"
                f"{', ...' * (len(few) > 5)}.", 'current', logging.WARNING)

    @property
    def metainfo(self) -> dict:
        """What the data set says of itself."""
        return self.dataset.metainfo

    def __getattr__(self, name: str) -> Any:
        # copies and unpickled ones are asked before they have anything
        if name.startswith('_') or 'dataset' not in self.__dict__:
            raise AttributeError(name)
        self.full_init()
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        self.full_init()
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        self.full_init()
        return self.dataset[index]


def _check_size(per_class: Optional[int], share: Optional[float]) -> None:
    if (per_class is None) == (share is None):
        raise ValueError('FewShot needs either `per_class` or `share`.')
    if per_class is not None and (not isinstance(per_class, int)
                                  or per_class < 1):
        raise ValueError(f'`per_class` of FewShot is {per_class!r}; it is a '
                         'number of images, at least 1.')
    if share is not None and not 0 < share <= 1:
        raise ValueError(f'`share` of FewShot is {share!r}; it is above 0 and '
                         'at most 1.')


def _check_type(dataset: Any) -> None:
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            _check_type(part)
    elif not isinstance(dataset, BaseDataset):
        raise ValueError(
            f'FewShot cannot take a part of a {type(dataset).__name__}; give '
            'it the data set itself, and wrap FewShot instead.')


# -------------------------------------------------------------------- labels


def labels_of(dataset: Union[BaseDataset, ConcatDataset]) -> Labels:
    """The classes of each image of an initialised data set.

    Raises:
        ValueError: If images have no annotation that FewShot knows.
    """
    if isinstance(dataset, ConcatDataset):
        return [each for part in dataset.datasets for each in labels_of(part)]
    loader = next((stage for stage in dataset.pipeline.transforms
                   if getattr(stage, 'with_seg', False)), None)
    return [
        _labels(dataset.get_data_info(index), loader, dataset)
        for index in range(len(dataset))
    ]


def _labels(info: dict, loader: Any, dataset: BaseDataset) -> Set[int]:
    if 'gt_label' in info:
        return set(np.atleast_1d(info['gt_label']).tolist())
    if 'instances' in info:
        return {
            each['bbox_label']
            for each in info['instances'] if not each.get('ignore_flag')
        }
    if 'seg_map_path' in info:
        return _classes_in_map(info, loader, dataset)
    raise ValueError(
        f'Images of {type(dataset).__name__} have neither `gt_label`, '
        '`instances` nor `seg_map_path`, by which FewShot draws; take '
        "`indices` of the data set's own.")


def _classes_in_map(info: dict, loader: Any,
                    dataset: BaseDataset) -> Set[int]:
    """Classes in a label map, as the data set's own pipeline reads it."""
    if loader is None:
        raise ValueError(
            'FewShot reads label maps with the `LoadAnnotations` of the data '
            "set's pipeline, and there is none; add it.")
    found = np.unique(loader.transform(info)['gt_seg_map'])
    ignored = getattr(dataset, 'ignore_index', 255)
    return {int(each) for each in found} - {ignored, 255}


# ---------------------------------------------------------------------- draw


def draw_per_class(labels: Labels, number: int, seed: int) -> List[int]:
    """Indices of images such that each class is in ``number`` of them.

    Round after round the rarest classes are served first, as their images
    often show the common ones as well.

    Args:
        labels (Sequence[set[int]]): The classes of each image.
        number (int): Images of each class; all of a class with fewer.
        seed (int): Seed of the draw.

    Returns:
        list[int]: The indices, as drawn.
    """
    queues: dict = {}
    for index in _shuffled(len(labels), seed):
        for each in labels[index]:
            queues.setdefault(each, deque()).append(index)
    by_rarity = sorted(queues, key=lambda each: (len(queues[each]), each))
    chosen: List[int] = []
    taken: Set[int] = set()
    counts: Counter = Counter()
    for turn in range(1, number + 1):
        for each in by_rarity:
            queue = queues[each]
            while counts[each] < turn and queue:
                index = queue.popleft()
                if index not in taken:
                    taken.add(index)
                    chosen.append(index)
                    counts.update(labels[index])
    return chosen


def draw_share(labels: Labels, share: float, seed: int) -> List[int]:
    """Indices of a share of the images, with classes in their proportions.

    Args:
        labels (Sequence[set[int]]): The classes of each image; one of
            several counts for its rarest.
        share (float): Share of the images; one image at least.
        seed (int): Seed of the draw.

    Returns:
        list[int]: The indices, as drawn.
    """
    images = Counter(each for classes in labels for each in classes)
    rarest = [
        min(classes, key=lambda each: (images[each], each), default=None)
        for classes in labels
    ]
    sizes, seen = Counter(rarest), Counter()
    places = []
    for index in _shuffled(len(labels), seed):
        group = rarest[index]
        # how far through its group an image stands
        places.append(((seen[group] + 0.5) / sizes[group], index))
        seen[group] += 1
    places.sort(key=lambda place: place[0])  # stable: else as shuffled
    return [index for _, index in places[:max(1, round(share * len(labels)))]]


def _shuffled(number: int, seed: int) -> List[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(number, generator=generator).tolist()


def _subset(dataset: Union[BaseDataset, ConcatDataset],
            indices: List[int]) -> Union[BaseDataset, ConcatDataset]:
    """A copy that holds the images of sorted indices alone."""
    if isinstance(dataset, BaseDataset):
        return dataset.get_subset(indices)
    ends = dataset.cumulative_sizes
    parts = [
        _subset(part, [i - start for i in indices if start <= i < end])
        for part, start, end in zip(dataset.datasets, [0, *ends], ends)
    ]
    few = copy.copy(dataset)
    few.datasets = [part for part in parts if len(part)]
    few.cumulative_sizes = few.cumsum(few.datasets)
    return few
