# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Tree crowns in aerial images: three images cut into tiles, with boxes."""

from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Tuple
from xml.etree import ElementTree

import mmcv
import numpy as np

from .recipe import Package, Recipe, write_image, write_json

DEEPFOREST = Package('deepforest',
                     'pip install --no-deps deepforest==2.1.0', 'deepforest')
# split -> image; an image belongs to one split, so tiles never leak
PICTURES = dict(
    train='2019_YELL_2_528000_4978000_image_crop2',
    val='2019_YELL_2_541000_4977000_image_crop',
    test='OSBS_029')
NOTES = (
    'Train and val show two places of one site (Yellowstone), test shows '
    'another site (Ordway-Swisher, Florida) and is a single tile.',
    'Train tiles overlap, so one tree shows in several of them. Val and test '
    'tiles do not; they lie on a centred grid, and the margin of the image '
    'that holds no whole tile is left out.',
    'Dead standing trees are annotated, fallen trunks are not. Crowns cut by '
    'the border of a source image are often without a box.')


def tree_crowns_recipe(tile: int = 300,
                       train_grid: int = 15,
                       min_visible: float = 0.4) -> Recipe:
    """Return how the tree crowns are made.

    Args:
        tile (int): Side of a tile in pixels.
        train_grid (int): Tiles a row and a column of the train image;
            they overlap.
        min_visible (float): A box clipped by a tile is kept if at least
            this share of its area is inside.
    """
    settings = dict(
        tile=tile,
        train_grid=train_grid,
        min_visible=min_visible,
        pictures=PICTURES)
    return Recipe(
        name='tree_crowns',
        packages=(DEEPFOREST, ),
        settings=settings,
        licences=dict(deepforest='MIT'),
        notes=NOTES,
        write=partial(
            _write,
            tile=tile,
            train_grid=train_grid,
            min_visible=min_visible))


def overlapping_starts(length: int, tile: int, count: int) -> List[int]:
    """Return ``count`` even starts of tiles that cover ``length`` pixels."""
    return np.linspace(0, length - tile, count).round().astype(int).tolist()


def disjoint_starts(length: int, tile: int) -> List[int]:
    """Return the starts of all whole disjoint tiles, centred."""
    count = length // tile
    first = (length - count * tile) // 2
    return [first + i * tile for i in range(count)]


def clip_boxes(boxes: np.ndarray, x: int, y: int, tile: int,
               min_visible: float) -> np.ndarray:
    """Clip boxes to one tile.

    Args:
        boxes (np.ndarray): (N, 4), x1 y1 x2 y2 in pixels of the image.
        x (int): Left edge of the tile.
        y (int): Upper edge of the tile.
        tile (int): Side of the tile.
        min_visible (float): Least share of a box's area inside the tile.

    Returns:
        np.ndarray: (M, 4), x1 y1 x2 y2 in pixels of the tile, M <= N.
    """
    clipped = np.clip(boxes - np.array([x, y, x, y]), 0, tile)
    share = _area(clipped) / _area(boxes)
    return clipped[share >= min_visible]


def read_voc(path: Path) -> np.ndarray:
    """Return the boxes of a VOC file, (N, 4) as x1 y1 x2 y2 in pixels."""
    root = ElementTree.parse(path).getroot()
    return np.array([[
        float(box.findtext(key)) for key in ('xmin', 'ymin', 'xmax', 'ymax')
    ] for box in root.iter('bndbox')])


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _write(folder: Path, tile: int, train_grid: int,
           min_visible: float) -> Dict[str, Any]:
    """Write all splits and return their counts."""
    counts = {}
    for split, name in PICTURES.items():
        picture = mmcv.imread(str(DEEPFOREST.file(f'data/{name}.png')))
        boxes = read_voc(DEEPFOREST.file(f'data/{name}.xml'))
        if split == 'train':
            corners = [
                (x, y)
                for y in overlapping_starts(len(picture), tile, train_grid)
                for x in overlapping_starts(
                    picture.shape[1], tile, train_grid)
            ]
        else:
            corners = [(x, y) for y in disjoint_starts(len(picture), tile)
                       for x in disjoint_starts(picture.shape[1], tile)]
        coco = dict(
            images=[],
            annotations=[],
            categories=[dict(id=1, name='tree')])
        (folder / split).mkdir()
        for x, y in corners:
            _add_tile(coco, name, (x, y), tile,
                      clip_boxes(boxes, x, y, tile, min_visible))
            write_image(folder / split / coco['images'][-1]['file_name'],
                        picture[y:y + tile, x:x + tile])
        write_json(folder / 'annotations' / f'{split}.json', coco)
        counts[split] = _counts(coco)
    return counts


def _add_tile(coco: Dict[str, list], name: str, corner: Tuple[int, int],
              tile: int, boxes: np.ndarray) -> None:
    """Add one tile and its boxes, (N, 4) in its own pixels, to ``coco``."""
    x, y = corner
    image_id = len(coco['images']) + 1
    coco['images'].append(
        dict(
            id=image_id,
            file_name=f'{name}_x{x:04d}_y{y:04d}.jpg',
            width=tile,
            height=tile,
            picture=name))
    for x1, y1, x2, y2 in boxes.tolist():
        coco['annotations'].append(
            dict(
                id=len(coco['annotations']) + 1,
                image_id=image_id,
                category_id=1,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1),
                iscrowd=0))


def _counts(coco: Dict[str, list]) -> Dict[str, int]:
    with_boxes = {a['image_id'] for a in coco['annotations']}
    return dict(
        tiles=len(coco['images']),
        boxes=len(coco['annotations']),
        empty=len(coco['images']) - len(with_boxes))
