# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Small data sets on disk, loaders of them, and what a run says."""

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

import cv2
import numpy as np
import pytest
from mmengine.runner import Runner

LOAD = dict(type='LoadImageFromFile')


def lines(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> List[str]:
    """What modules log from now on."""
    told: List[str] = []
    for module in modules:
        monkeypatch.setattr(module, 'print_log',
                            lambda said, **kwargs: told.append(said))
    return told


def build_loader(dataset: dict) -> Any:
    return Runner.build_dataloader(dict(
        batch_size=1, num_workers=0, dataset=dataset,
        sampler=dict(type='DefaultSampler', shuffle=False)))


def write_image(path: Path, width: int, height: int = 0,
                value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height or width, width, 3), value, np.uint8)
    cv2.imwrite(str(path), pixels)


def coco(num: int, size: int, boxes: Sequence[list],
         classes: Dict[int, str]) -> Dict[str, Any]:
    """The content of a COCO json whose images have the same boxes.

    Box j is of the j-th class.
    """
    ids = list(classes)
    return dict(
        images=[dict(id=i, file_name=f'{i}.png', width=size, height=size)
                for i in range(num)],
        annotations=[
            dict(id=len(boxes) * i + j, image_id=i, category_id=ids[j],
                 bbox=list(box), area=200, iscrowd=0)
            for i in range(num) for j, box in enumerate(boxes)],
        categories=[dict(id=i, name=name) for i, name in classes.items()])


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
