# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images that a student learns from its teacher on, and not from labels."""

from typing import Any, List, Optional, Union

from mmengine.dataset import BaseDataset
from torch.utils.data import Dataset

from vim_mm.registry import DATASETS

#: Key of a data sample's meta information; true for such images.
SOFT_ONLY = 'soft_only'


@DATASETS.register_module()
class SoftOnly(Dataset):
    """A data set, or a plain folder of images, for soft targets alone.

    Every data sample is marked ``soft_only`` in its meta information, so a
    distiller leaves it out of the student's own loss. For images whose labels
    are not certain (generated, re-represented) or that have none.

    Args:
        dataset (dict | BaseDataset, optional): The data set.
        folder (str, optional): In its place, a folder of images from
            anywhere, with folders in it or not.
        pipeline (Sequence[dict]): For ``folder``; it loads no annotations.
        metainfo (dict, optional): For ``folder``, that of the data set which
            it is concatenated with.
        lazy_init (bool): Whether to look for images later. Defaults to False.

    Raises:
        ValueError: If neither a data set nor a folder is given, or both.
    """

    def __init__(self,
                 dataset: Union[dict, BaseDataset, None] = None,
                 folder: Optional[str] = None,
                 pipeline: Optional[List[Any]] = None,
                 metainfo: Optional[dict] = None,
                 lazy_init: bool = False) -> None:
        if (dataset is None) == (folder is None):
            raise ValueError('SoftOnly reads a `dataset` or a `folder`; give '
                             'one of them.')
        if folder is None and (pipeline or metainfo):
            raise ValueError('`pipeline` and `metainfo` of SoftOnly belong to '
                             'a `folder`; give them inside `dataset`.')
        if folder is not None:
            dataset = dict(
                type='mmpretrain.CustomDataset',
                data_prefix=folder,
                with_label=False,
                pipeline=pipeline or [],
                metainfo=metainfo)
        if isinstance(dataset, dict):
            late = dict(lazy_init=True) if lazy_init else {}
            dataset = DATASETS.build(dict(dataset, **late))
        self.dataset = dataset
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        """That of the data set."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Let the data set read its list of images."""
        self.dataset.full_init()

    def get_data_info(self, idx: int) -> dict:
        """What the data set knows of an image, and that it is soft only."""
        return dict(self.dataset.get_data_info(idx), **{SOFT_ONLY: True})

    def get_cat_ids(self, idx: int) -> List[int]:
        """Categories of an image."""
        return self.dataset.get_cat_ids(idx)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> dict:
        data = self.dataset[idx]
        if 'data_samples' in data:
            data['data_samples'].set_metainfo({SOFT_ONLY: True})
        return data
