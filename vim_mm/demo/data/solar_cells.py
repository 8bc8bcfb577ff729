# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Mono-crystalline solar cells in electroluminescence, two classes."""

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Dict, List, Tuple

import mmcv

from .recipe import Package, Recipe, write_image

ELPV = Package('elpv_dataset',
               'pip install --no-deps elpv-dataset==1.0.0.post1',
               'elpv-dataset')
CLASSES = ('defective', 'functional')
# Positions among the mono-crystalline cells, in file order. Neighbours come
# from the same solar module and look alike, so val takes whole stretches.
VAL_BLOCKS = ((180, 240), (420, 480), (714, 774), (894, 954))
NOTES = (
    'Only the mono-crystalline cells. Experts gave defect probabilities 0, '
    '1/3, 2/3 and 1; above 0.5 counts as defective.',
    'The package does not say which solar module a cell comes from. In file '
    'order the look of the mono-crystalline cells changes at 17 places, which '
    'makes 18 stretches of 48 to 72 cells; val is four of these, so train and '
    'val presumably share no module. That is read off the images and not '
    'documented.',
    'The share of defective cells differs much between modules (nine tenths '
    'in the first four stretches), so part of what a classifier can use is '
    'the look of the module.')


def solar_cells_recipe(side: int = 150) -> Recipe:
    """Return how the solar cells are made.

    Args:
        side (int): Side of the written images in pixels (source: 300).
    """
    return Recipe(
        name='solar_cells',
        packages=(ELPV, ),
        settings=dict(
            side=side,
            type='mono',
            defective_above=0.5,
            val_blocks=[list(block) for block in VAL_BLOCKS]),
        licences={'elpv-dataset': 'CC BY-NC-SA 4.0 (images and labels)'},
        notes=NOTES,
        write=partial(_write, side=side))


def read_mono_cells() -> List[Tuple[str, float]]:
    """Return (path in the package, defect probability), in file order."""
    lines = ELPV.file('data/labels.csv').read_text('utf-8').splitlines()
    rows = [line.split() for line in lines if line.strip()]
    return [(path, float(p)) for path, p, kind in rows if kind == 'mono']


def split_of(position: int) -> str:
    """Return the split of the mono-crystalline cell at ``position``."""
    in_val = any(start <= position < stop for start, stop in VAL_BLOCKS)
    return 'val' if in_val else 'train'


def _write(folder: Path, side: int) -> Dict[str, Any]:
    """Write both splits, one folder a class, and return their counts."""
    counts = {s: dict.fromkeys(CLASSES, 0) for s in ('train', 'val')}
    for split, label in product(counts, CLASSES):
        (folder / split / label).mkdir(parents=True)
    for position, (name, probability) in enumerate(read_mono_cells()):
        split = split_of(position)
        label = 'defective' if probability > 0.5 else 'functional'
        picture = mmcv.imread(str(ELPV.file(f'data/{name}')), 'grayscale')
        write_image(folder / split / label / f'{Path(name).stem}.jpg',
                    mmcv.imresize(picture, (side, side), interpolation='area'))
        counts[split][label] += 1
    return counts
