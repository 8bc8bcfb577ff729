# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from pathlib import Path
from typing import Any, Optional, Union

from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

from vim_mm.registry import DATASETS
from vim_mm.utils.kinds import SOFT_ONLY
from vim_mm.utils.manifest import check_files


@DATASETS.register_module()
class SoftOnly(Dataset):
    """A data set whose images a student learns from by its teacher alone.

    It marks every sample, and is the data set itself in all else. Samples may
    lack annotations; those that they have are not learned from.

    Args:
        dataset (dict | Dataset): The data set, or its config. To stand in a
            ``ConcatDataset`` it needs the ``metainfo`` of the others.
        manifest (str, optional): That of generated or re-represented images,
            whose files are compared with their checksums first, as runs do
            by themselves. Defaults to None.

    Raises:
        ValueError: If one of these files is damaged or not there, or there
            is another image.
    """

    def __init__(self,
                 dataset: Union[dict, Dataset],
                 manifest: Optional[str] = None) -> None:
        if manifest is not None:
            check_files(Path(manifest))
        self.dataset = DATASETS.build(dataset) if isinstance(dataset,
                                                             dict) else dataset

    @property
    def metainfo(self) -> dict:
        """The data set's."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Read the data set's annotations."""
        self.dataset.full_init()

    def get_data_info(self, index: int) -> dict:
        """What is known of a sample before its pipeline."""
        return self.dataset.get_data_info(index)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """A sample whose metainfo says ``soft_only``."""
        data = self.dataset[index]
        sample = data['data_samples']
        sample.set_metainfo({SOFT_ONLY: True})
        # data preprocessors look for these in all samples of a batch
        if isinstance(sample, DataSample) and 'gt_label' not in sample:
            sample.set_gt_label(-1)
        if isinstance(sample, DetDataSample) \
                and 'masks' not in sample.gt_instances:
            size = data['inputs'].shape[-2:]
            sample.gt_instances = InstanceData(masks=BitmapMasks([], *size))
        return data
