# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Predictions drawn on test pictures, for any kind of mm* model."""

from pathlib import Path
from typing import List, Tuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch.utils.data import DataLoader

#: Side that pictures are enlarged to before drawing, in pixels.
SIDE = 336


def draw_predictions(runner: Runner, dataloader: DataLoader, folder: Path,
                     method: str, num: int) -> List[Tuple[Path, str]]:
    """Draw a model's predictions on a few pictures.

    Args:
        runner (Runner): With a trained model.
        dataloader (DataLoader): Of the pictures it was judged on.
        folder (Path): Where to write the PNG files; made if missing.
        method (str): Name of the model, for file names and captions.
        num (int): Number of pictures.

    Returns:
        list[tuple[Path, str]]: Files and captions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dataset = dataloader.dataset
    model = runner.model.eval()
    slug = ''.join(c if c.isalnum() else '-' for c in method)
    drawn = []
    for index in spread(len(dataset), num):
        batch = dataloader.collate_fn([dataset[index]])
        with torch.no_grad():
            sample = model.test_step(batch)[0].cpu()
        picture = mmcv.imread(sample.img_path, channel_order='rgb')
        path = folder / f'{slug}-{index}.png'
        page = _draw(picture, sample, dataset.metainfo)
        cv2.imwrite(str(path), page[..., ::-1])
        drawn.append((path, f'{method}: {_words(sample, dataset.metainfo)}'))
    return drawn


def spread(length: int, num: int) -> List[int]:
    """``num`` indices spread evenly over ``length`` pictures."""
    return np.linspace(0, length - 1, min(num, length)).astype(int).tolist()


def _draw(picture: np.ndarray, sample: object, meta: dict) -> np.ndarray:
    scale = SIDE / max(picture.shape[:2])
    large = mmcv.imrescale(picture, scale, interpolation='bicubic')
    if 'pred_label' in sample:
        return large
    if 'pred_sem_seg' in sample:
        return _draw_mask(large, sample.pred_sem_seg.data[0].numpy(), meta)
    return _draw_boxes(large, sample.pred_instances, scale, meta)


def _draw_mask(large: np.ndarray, mask: np.ndarray, meta: dict) -> np.ndarray:
    size = (large.shape[1], large.shape[0])
    mask = cv2.resize(mask.astype(np.uint8), size, interpolation=0)
    palette = np.array(meta['palette'], dtype=np.float32)
    found = (mask > 0)[..., None]
    mixed = np.where(found, .4 * large + .6 * palette[mask], large)
    return mixed.astype(np.uint8)


def _draw_boxes(large: np.ndarray, instances: object, scale: float,
                meta: dict) -> np.ndarray:
    visualizer = Visualizer(image=large)
    kept = instances[instances.scores > 0.3]
    if len(kept) == 0:
        return large
    boxes = kept.bboxes * scale
    visualizer.draw_bboxes(boxes, edge_colors='#ffd400', line_widths=2)
    if len(meta['classes']) > 1:
        names = [meta['classes'][i] for i in kept.labels]
        visualizer.draw_texts(
            names,
            boxes[:, :2],
            colors='#ffffff',
            font_sizes=14,
            bboxes=dict(facecolor='#000000', alpha=.6, pad=1))
    return visualizer.get_image()


def _words(sample: object, meta: dict) -> str:
    names = meta['classes']
    if 'pred_label' in sample:
        score = float(sample.pred_score.max())
        return (f'says {names[int(sample.pred_label)]} ({score:.2f}), '
                f'is {names[int(sample.gt_label)]}')
    if 'pred_sem_seg' in sample:
        found = sample.pred_sem_seg.data.unique().tolist()
        found = [names[index] for index in found if index]
        return 'finds ' + (', '.join(found) or 'nothing')
    return f'finds {int((sample.pred_instances.scores > 0.3).sum())} boxes'
