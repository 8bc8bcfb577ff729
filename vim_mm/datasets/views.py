# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import json
from hashlib import blake2b
from pathlib import PurePath
from typing import (Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple,
                    Union)

import cv2
import PIL
import torchvision
from torch import Tensor
from torch.utils.data import Dataset

from vim_mm.registry import DATASETS
from vim_mm.utils.seeds import VIEW, seeded


class View(NamedTuple):
    """Which augmented image of a data set this is.

    Attributes:
        sample (str): Name of the image: its path below the data root, or its
            number where the data set knows no path.
        view (int): Number of the augmentation.
        pixels (int): Digest of what the pipeline made of it.
    """
    sample: str
    view: int
    pixels: int


@DATASETS.register_module()
class Views:
    """Every image of a data set in a fixed number of augmentations.

    All that a pipeline draws for a view (crops, flips, colours) is a function
    of the seed, the image's name and the view's number. So the same view can
    be drawn again in any epoch, process and worker, and in any subset of the
    data, and the numbers that others draw do not change. An epoch has each
    image once in each view.

    The views' names are put into the data samples' metainfo, from where
    :func:`views_of` reads them.

    Args:
        dataset (dict | Dataset): The data set to augment, or its config. Its
            items are packed: ``inputs`` and ``data_samples``.
        views (int): Augmentations of an image. Defaults to 1.
        seed (int): Another seed draws other views. Defaults to 0.
        lazy_init (bool): Whether to load annotations later. Defaults to
            False.
    """

    def __init__(self,
                 dataset: Union[dict, Dataset],
                 views: int = 1,
                 seed: int = 0,
                 lazy_init: bool = False) -> None:
        if views < 1:
            raise ValueError(f'`views` is {views}; an image has at least one.')
        if seed < 0:
            raise ValueError(f'`seed` is {seed}; seeds are not negative.')
        #: The pipelines, from the outside in, as the config has them.
        self.pipelines = list(_pipelines(dataset))
        self.dataset = DATASETS.build(dataset) if isinstance(
            dataset, dict) else dataset
        self.views = views
        self.seed = seed
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        """What the data set says of itself."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Load the annotations, where the data set does that itself."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    def get_data_info(self, index: int) -> dict:
        """The annotation of an image; the same for all its views."""
        return self.dataset.get_data_info(index % len(self.dataset))

    def __len__(self) -> int:
        return self.views * len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        """A view; first come all images in the first one.

        Raises:
            ValueError: If the pipeline does not pack what it made.
        """
        view, sample = divmod(index, len(self.dataset))
        if view >= self.views:
            raise IndexError(f'There are {len(self)} views, none of number '
                             f'{index}.')
        name = self.name(sample)
        with seeded(self.seed, VIEW, view, _digest(name.encode())):
            item = self.dataset[sample]
        inputs = item.get('inputs') if isinstance(item, dict) else None
        if not isinstance(inputs, Tensor) or 'data_samples' not in item:
            raise ValueError('Views need one image and its data sample, and '
                             f'the pipeline of {type(self.dataset).__name__} '
                             'gives something else; let it end in the '
                             "library's PackInputs.")
        pixels = _digest(inputs.contiguous().numpy().data)
        item['data_samples'].set_metainfo(
            dict(sample_id=name, view_id=view, pixels=pixels))
        return item

    def name(self, index: int) -> str:
        """The name of an image, the same in every subset of the data."""
        if not hasattr(self.dataset, 'get_data_info'):
            return f'#{index}'
        path = self.dataset.get_data_info(index).get('img_path')
        if path is None:
            return f'#{index}'
        path, root = PurePath(path), getattr(self.dataset, 'data_root', None)
        if root and path.is_relative_to(root):
            path = path.relative_to(root)
        return path.as_posix()

    def keys(self) -> List[Tuple[str, int]]:
        """Name of the image, and number of the view, of each item."""
        names = [self.name(index) for index in range(len(self.dataset))]
        return [(name, view) for view in range(self.views) for name in names]

    def recipe(self) -> Dict[str, str]:
        """All that decides, beside the files, what a view looks like."""
        return dict(
            pipeline=json.dumps(self.pipelines, default=_type_name),
            view_seed=str(self.seed),
            cv2=cv2.__version__,
            Pillow=PIL.__version__,
            torchvision=torchvision.__version__)


def views_of(data_samples: Sequence[Any]) -> List[View]:
    """Which views a batch has.

    Args:
        data_samples (Sequence): The batch's data samples.

    Raises:
        ValueError: If the batch does not come from :class:`Views`.
    """
    metas = [sample.metainfo for sample in data_samples]
    if not all('view_id' in meta for meta in metas):
        raise ValueError(
            'Stored features belong to views of images, and the training set '
            "knows none; wrap it: `dataset=dict(type='vim_mm.Views', "
            'dataset=..., views=4)`.')
    return [
        View(meta['sample_id'], meta['view_id'], meta['pixels'])
        for meta in metas
    ]


def _pipelines(dataset: Any) -> Iterator[list]:
    """Pipelines of a config's data set and of those inside it.

    Of a data set that is built already the names of the stages are all that
    can be known.
    """
    if isinstance(dataset, dict):
        own, inner = dataset.get('pipeline'), dataset.get('dataset')
        several = dataset.get('datasets') or ()
    else:
        stages = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
        own = [type(stage).__name__ for stage in stages]
        inner, several = getattr(dataset, 'dataset', None), ()
    if own:
        yield own
    for each in (inner, *several):
        if each is not None:
            yield from _pipelines(each)


def _type_name(value: Any) -> str:
    return getattr(value, '__qualname__', repr(value))


def _digest(data: Any) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), 'big') >> 1
