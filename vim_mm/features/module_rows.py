# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Feature rows of a task with each module alone, and with none."""

from itertools import islice
from typing import Dict, List, Optional, Tuple

import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.utils.data import DataLoader

from vim_mm.utils.progress import track
from .cache import (CachedBatch, check_filled, finite, preprocess, to_device,
                    unmixed)
from .rows import rows_of, thinned

#: Name of the entry without modules; evidence uses it too.
TRUNK = 'frozen trunk'
#: Rows of a module at most: patches of all images are many.
MAX_ROWS = 20000

Rows = Tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def module_rows(model: BaseModel,
                dataloader: DataLoader,
                modules: List[str],
                num_extra_tokens: int,
                max_pictures: Optional[int] = None) -> Dict[str, Rows]:
    """Features, labels and images with each module alone, and with none.

    Every batch runs once for each, so that all see the same augmentation, and
    is thinned as it comes, so that memory does not grow with the images.

    Args:
        model (BaseModel): Not wrapped, in eval mode, with the modules in its
            backbone's bank.
        dataloader (DataLoader): Of the training set.
        modules (list[str]): Their names.
        num_extra_tokens (int): Class and register tokens, for pooling.
        max_pictures (int, optional): Stop after so many, in whole batches,
            at least one. Defaults to None.

    Returns:
        dict[str, tuple]: :data:`TRUNK` and the modules, each to what
        :func:`rows_of` gives, :data:`MAX_ROWS` rows at most.

    Raises:
        ValueError: If the loader has no batch.
    """
    dataloader = finite(dataloader)
    check_filled(dataloader)
    total, batch_size = len(dataloader), dataloader.batch_sampler.batch_size
    if max_pictures is not None:
        total = min(total, max(1, -(-max_pictures // batch_size)))
    alone = {TRUNK: [], **{name: [name] for name in modules}}
    parts: Dict[str, List[Rows]] = {name: [] for name in alone}
    num_pictures = 0
    batches = track(islice(dataloader, total), 'Scoring modules', total)
    for index, data in enumerate(batches):
        with unmixed(model):
            batch = preprocess(model, data)
        samples = to_device(batch['data_samples'], torch.device('cpu'))
        for name, active in alone.items():
            with model.backbone.only(*active):
                features = model.backbone(batch['inputs'])
            cached = CachedBatch(
                to_device(features, torch.device('cpu')), samples,
                batch['inputs'].shape)
            x, y, picture = rows_of([cached], num_extra_tokens,
                                    -(-MAX_ROWS // total), seed=index)
            parts[name].append((x, y, picture + num_pictures))
        num_pictures += len(samples)
    rows = {
        name: tuple(torch.cat(column) for column in zip(*part))
        for name, part in parts.items()
    }
    kept = thinned(len(rows[TRUNK][1]), MAX_ROWS)
    return {
        name: tuple(column[kept] for column in columns)
        for name, columns in rows.items()
    }
