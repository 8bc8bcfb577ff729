# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os.path as osp
from typing import Iterator, Tuple

from mmengine.config import Config


def check_data(cfg: Config, parts: Tuple[str, ...]) -> None:
    """Refuse missing data before anything is built or written.

    Args:
        cfg (Config): The whole config.
        parts (tuple[str]): The data loaders that the run needs, e.g.
            ``('train_dataloader', 'val_dataloader')``.

    Raises:
        FileNotFoundError: If the data root or the annotation file of a data
            set is not there; names the option that says where to look.
    """
    for part in parts:
        loader = cfg.get(part)
        if not loader:
            continue
        for key, dataset in _datasets(f'{part}.dataset', loader['dataset']):
            root = dataset.get('data_root') or ''
            if '://' in root:
                continue
            if root and not osp.isdir(root):
                raise FileNotFoundError(
                    f"The data root '{root}' does not exist; set "
                    f'`{key}.data_root` to where the data is '
                    "(--cfg-options); tools/dataset_converters make the "
                    "demo's.")
            ann = dataset.get('ann_file')
            if isinstance(ann, str) and ann and '://' not in ann:
                if not osp.exists(osp.join(root, ann)):
                    raise FileNotFoundError(
                        f"The annotation file '{osp.join(root, ann)}' does "
                        f'not exist; set `{key}.ann_file` (--cfg-options).')


def _datasets(key: str, dataset: dict) -> Iterator[Tuple[str, dict]]:
    # a wrapper (RepeatDataset, ConcatDataset) holds the real ones
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner is None:
        yield key, dataset
    elif isinstance(inner, dict):
        yield from _datasets(f'{key}.dataset', inner)
    else:
        for index, item in enumerate(inner):
            yield from _datasets(f'{key}.datasets.{index}', item)
