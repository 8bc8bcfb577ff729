# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Predictions drawn on test images, as the inferencer draws them."""

from pathlib import Path
from typing import List, Tuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader

from vim_mm.apis.results import Painter, describe, words
from vim_mm.apis.serving import colours
from vim_mm.utils.files import write_atomic


def draw_predictions(runner: Runner, dataloader: DataLoader, folder: Path,
                     method: str, num: int) -> List[Tuple[Path, str]]:
    """Draw a model's predictions on a few images.

    Args:
        runner (Runner): With a trained model.
        dataloader (DataLoader): Of the images it was evaluated on.
        folder (Path): Where to write the PNG files; made if missing.
        method (str): Name of the model, for file names and captions.
        num (int): Number of images.

    Returns:
        list[tuple[Path, str]]: Files and captions.
    """
    dataset = dataloader.dataset
    classes = dataset.metainfo['classes']
    palette = colours(dataset.metainfo.get('palette'), len(classes))
    painter = Painter(runner.cfg.get('visualizer'), classes, palette)
    model = runner.model.eval()
    slug = ''.join(c if c.isalnum() else '-' for c in method)
    drawn = []
    for index in evenly_spaced(len(dataset), num):
        batch = dataloader.collate_fn([dataset[index]])
        with torch.no_grad():
            sample = model.test_step(batch)[0].cpu()
        path = folder / f'{slug}-{index}.png'
        page = painter(mmcv.imread(sample.img_path), sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, cv2.imencode('.png', page[..., ::-1])[1].tobytes())
        drawn.append((path, f'{method}: {_caption(sample, classes)}'))
    return drawn


def evenly_spaced(length: int, num: int) -> List[int]:
    """``num`` indices at even distances over ``length`` images."""
    return np.linspace(0, length - 1, min(num, length)).astype(int).tolist()


def _caption(sample: BaseDataElement, classes: List[str]) -> str:
    """The prediction as text; for a class also the true one."""
    caption = words(describe(sample, classes))
    if 'pred_label' in sample:
        true = ', '.join(classes[i] for i in sample.gt_label.tolist())
        caption += f', is {true}'
    return caption
