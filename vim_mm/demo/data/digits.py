# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Handwritten digits on photographs: class, mask and boxes of one image."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import mmcv
import numpy as np

from .recipe import Package, Recipe, write_image, write_json

SKLEARN = Package('sklearn', 'pip install scikit-learn', 'scikit-learn')
SKIMAGE = Package('skimage', 'pip install scikit-image', 'scikit-image')
# contrast of the stroke's edge; the level 0.5, hence the mask, stays put
EDGE_GAIN = 3.0
# least distance of a digit's colour from the ground below it, in RGB levels
COLOUR_DISTANCE = 120.0
GROUND_TINT = (0.75, 1.25)


@dataclass(frozen=True)
class Split:
    """One split of the composed images.

    Args:
        name (str): Its folder.
        stream (int): Number of its random stream.
        pictures (int): How many images.
        digits (Tuple[int, int]): First and past-the-last index into the
            1,797 digits of scikit-learn.
        photographs (Tuple[str, ...]): Grounds to crop from.
        side (int): Side of an image in pixels.
        per_picture (Tuple[int, int]): Fewest and most digits an image.
        size (Tuple[int, int]): Smallest and largest side of a digit's cell.
        few (Tuple[int, ...]): Few-shot lists to write, images a class.
    """

    name: str
    stream: int
    pictures: int
    digits: Tuple[int, int]
    photographs: Tuple[str, ...]
    side: int = 98
    per_picture: Tuple[int, int] = (1, 1)
    size: Tuple[int, int] = (49, 88)
    few: Tuple[int, ...] = ()


MIDSTREAM_GROUNDS = ('brick', 'grass', 'coffee', 'chelsea', 'china')
DETECTION = dict(side=168, per_picture=(1, 4), size=(28, 64))
# The digits come form by form, about 129 digits a form, and each form was
# filled in by one person. The ranges end where a form ends.
SPLITS = (
    Split('midstream', 0, 2400, (0, 905), MIDSTREAM_GROUNDS),
    Split('midstream_val', 1, 200, (905, 1029), MIDSTREAM_GROUNDS),
    Split('fewshot', 2, 400, (1029, 1415), ('gravel', 'flower'),
          few=(5, 20)),
    Split('test', 3, 500, (1415, 1797), ('astronaut', 'rocket')),
    Split('det_fewshot', 4, 64, (1029, 1415), ('gravel', 'flower'),
          **DETECTION),
    Split('det_test', 5, 64, (1415, 1797), ('astronaut', 'rocket'),
          **DETECTION),
)
LICENCES = {
    'digits (scikit-learn)': 'UCI optical recognition of handwritten digits, '
    'E. Alpaydin and C. Kaynak, CC BY 4.0',
    'china, flower (scikit-learn)': 'CC BY 2.0, see the README.txt beside '
    'them for the photographers',
    'brick, grass, gravel, coffee, chelsea (scikit-image)': 'CC0',
    'astronaut, rocket (scikit-image)': 'public domain (NASA, SpaceX)',
}
NOTES = (
    'Splits share no digit and no form of digits (one form, one writer). 13 '
    'people filled in the 14 forms, so one of them may be in two splits.',
    'midstream and midstream_val share photographs; every other pair of a '
    'training and a test split does not.',
    'Labels are exact: a pixel belongs to the digit where its opacity is '
    'above one half; boxes enclose these pixels.',
)


def digits_recipe(seed: int = 0,
                  splits: Sequence[Split] = SPLITS) -> Recipe:
    """Return how the digits on photographs are made.

    Args:
        seed (int): Seed of all random choices.
        splits (Sequence[Split]): What to write.
    """
    settings = dict(
        seed=seed,
        edge_gain=EDGE_GAIN,
        colour_distance=COLOUR_DISTANCE,
        ground_tint=list(GROUND_TINT),
        splits=[_as_json(split) for split in splits])
    return Recipe(
        name='digits_on_photographs',
        packages=(SKLEARN, SKIMAGE),
        settings=settings,
        licences=LICENCES,
        notes=NOTES,
        write=partial(_write, seed=seed, splits=splits))


def load_photograph(name: str) -> np.ndarray:
    """Return a packaged photograph, uint8 (H, W, 3) in RGB order."""
    if name in ('china', 'flower'):
        from sklearn.datasets import load_sample_image
        return load_sample_image(f'{name}.jpg')
    from skimage import data
    picture = getattr(data, name)()
    return np.stack([picture] * 3, -1) if picture.ndim == 2 else picture


def draw_ground(rng: np.random.Generator, photograph: np.ndarray,
                side: int) -> np.ndarray:
    """Crop, flip and tint a piece of a photograph.

    Args:
        rng (np.random.Generator): Source of the choices.
        photograph (np.ndarray): uint8 (H, W, 3).
        side (int): Side of the result in pixels; the crop is one to two
            times as large, as far as the photograph allows.

    Returns:
        np.ndarray: float32 (side, side, 3), levels 0 to 255.
    """
    height, width = photograph.shape[:2]
    crop = int(rng.integers(side, min(2 * side, height, width) + 1))
    y = int(rng.integers(height - crop + 1))
    x = int(rng.integers(width - crop + 1))
    ground = mmcv.imresize(
        photograph[y:y + crop, x:x + crop], (side, side),
        interpolation='area')
    if rng.random() < 0.5:
        ground = ground[:, ::-1]
    # without a tint, colour alone would tell a digit from a grey texture
    tint = rng.uniform(*GROUND_TINT, size=3)
    return np.clip(ground * tint.astype(np.float32), 0, 255)


def digit_opacity(digit: np.ndarray, size: int) -> np.ndarray:
    """Enlarge an 8x8 digit (levels 0 to 16) to (size, size), 0 to 1."""
    large = mmcv.imresize(
        digit.astype(np.float32) / 16, (size, size), interpolation='bicubic')
    return np.clip((large - 0.5) * EDGE_GAIN + 0.5, 0, 1)


def draw_corners(rng: np.random.Generator, sizes: np.ndarray,
                 side: int) -> np.ndarray:
    """Draw places at which square cells do not overlap.

    Args:
        rng (np.random.Generator): Source of the choices.
        sizes (np.ndarray): (N,) sides of the cells.
        side (int): Side of the image; N cells must fit into it.

    Returns:
        np.ndarray: (N, 2) x and y of the upper left corners.
    """
    while True:
        corners = rng.integers(0, (side - sizes + 1)[:, None],
                               (len(sizes), 2))
        ends = corners + sizes[:, None]
        apart = (corners[:, None] >= ends[None]).any(-1)
        if (apart | apart.T | np.eye(len(sizes), dtype=bool)).all():
            return corners


def draw_colour(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """Draw an RGB colour that differs from the mean of ``ground``, (N, 3)."""
    mean = ground.mean(0)
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - mean) >= COLOUR_DISTANCE:
            return colour


def compose(rng: np.random.Generator, ground: np.ndarray,
            digits: np.ndarray, labels: np.ndarray,
            size: Tuple[int, int]) -> Tuple[np.ndarray, np.ndarray]:
    """Put digits onto a ground.

    Args:
        rng (np.random.Generator): Source of the choices.
        ground (np.ndarray): float32 (S, S, 3).
        digits (np.ndarray): (N, 8, 8), levels 0 to 16.
        labels (np.ndarray): (N,) 0 to 9.
        size (Tuple[int, int]): Smallest and largest side of a digit's cell.

    Returns:
        Tuple[np.ndarray, np.ndarray]: The image, uint8 (S, S, 3), and for
        each digit its mask, bool (N, S, S).
    """
    side = len(ground)
    picture = ground.copy()
    masks = np.zeros((len(labels), side, side), bool)
    sizes = rng.integers(size[0], size[1] + 1, len(labels))
    for i, (x, y) in enumerate(draw_corners(rng, sizes, side)):
        cell = np.s_[y:y + sizes[i], x:x + sizes[i]]
        opacity = digit_opacity(digits[i], int(sizes[i]))
        masks[i][cell] = opacity > 0.5
        colour = draw_colour(rng, ground[masks[i]]).astype(np.float32)
        picture[cell] += opacity[..., None] * (colour - picture[cell])
    return picture.round().astype(np.uint8), masks


def mask_to_box(mask: np.ndarray) -> List[int]:
    """Return x, y, width, height of the pixels that are set in ``mask``."""
    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    return [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1]


def _as_json(split: Split) -> Dict[str, Any]:
    """Return a split's settings with lists, as they come back from JSON."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(split).items()
    }


def _shuffled(rng: np.random.Generator, indices: np.ndarray) -> Iterator[int]:
    """Yield all indices in random order, again and again."""
    while True:
        yield from rng.permutation(indices).tolist()


def _write(folder: Path, seed: int,
           splits: Sequence[Split]) -> Dict[str, Any]:
    """Write all splits and return their counts."""
    from sklearn.datasets import load_digits
    source = load_digits()
    return {
        split.name: _write_split(folder / split.name, split, seed,
                                 source.images, source.target)
        for split in splits
    }


def _write_split(folder: Path, split: Split, seed: int, images: np.ndarray,
                 labels: np.ndarray) -> Dict[str, int]:
    """Write images, label maps, lists and boxes of one split.

    Classes come in rounds of all ten in random order: the
    first n images are balanced for any n divisible by ten, and no class
    tells which others share its image.
    """
    rng = np.random.default_rng([seed, split.stream])
    grounds = {name: load_photograph(name) for name in split.photographs}
    indices = np.arange(*split.digits)
    queues = [_shuffled(rng, indices[labels[indices] == c]) for c in range(10)]
    coco = dict(
        images=[],
        annotations=[],
        categories=[dict(id=c + 1, name=str(c)) for c in range(10)])
    classes = _shuffled(rng, np.arange(10))
    for kind in ('img', 'ann'):
        (folder / kind).mkdir(parents=True)
    for number in range(split.pictures):
        photograph = str(rng.choice(split.photographs))
        ground = draw_ground(rng, grounds[photograph], split.side)
        count = int(rng.integers(split.per_picture[0],
                                 split.per_picture[1] + 1))
        chosen = [next(queues[next(classes)]) for _ in range(count)]
        picture, masks = compose(rng, ground, images[chosen], labels[chosen],
                                 split.size)
        name = f'{number:05d}'
        write_image(folder / 'img' / f'{name}.jpg', picture[..., ::-1])
        values = (labels[chosen] + 1)[:, None, None]
        write_image(folder / 'ann' / f'{name}.png',
                    (masks * values).sum(0).astype(np.uint8))
        _add_picture(coco, name, photograph, split.side)
        for index, mask in zip(chosen, masks):
            _add_digit(coco, index, int(labels[index]), mask)
    write_json(folder / 'coco.json', coco)
    _write_lists(folder, split, coco)
    return dict(pictures=split.pictures, digits=len(coco['annotations']))


def _add_picture(coco: Dict[str, list], name: str, photograph: str,
                 side: int) -> None:
    coco['images'].append(
        dict(
            id=len(coco['images']) + 1,
            file_name=f'{name}.jpg',
            width=side,
            height=side,
            photograph=photograph))


def _add_digit(coco: Dict[str, list], index: int, label: int,
               mask: np.ndarray) -> None:
    """Add the box of one digit, mask bool (S, S), to the last image."""
    coco['annotations'].append(
        dict(
            id=len(coco['annotations']) + 1,
            image_id=len(coco['images']),
            category_id=label + 1,
            bbox=mask_to_box(mask),
            area=int(mask.sum()),
            iscrowd=0,
            digit=index))


def _write_lists(folder: Path, split: Split, coco: Dict[str, list]) -> None:
    """Write class lists, where an image shows one digit."""
    if split.per_picture != (1, 1):
        return
    names = [image['file_name'] for image in coco['images']]
    lines = [
        f'{name} {box["category_id"] - 1}\n'
        for name, box in zip(names, coco['annotations'])
    ]
    (folder / 'cls.txt').write_text(''.join(lines))
    for few in split.few:
        (folder / f'cls_{few}.txt').write_text(''.join(lines[:10 * few]))
        stems = [f'{Path(name).stem}\n' for name in names[:10 * few]]
        (folder / f'seg_{10 * few}.txt').write_text(''.join(stems))
