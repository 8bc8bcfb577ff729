# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Answers of models on test images, beside the truth."""

from pathlib import Path

import cv2
import mmcv
import torch
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader

from vim_mm.apis.results import Painter, enlarge, kind_of
from vim_mm.apis.served_data import colours
from vim_mm.utils.files import write_atomic
from .answers import answer, labels, truth, with_truth
from .figure_parts import evenly_spaced
from .steps import TRUTH, Answer, Gallery, slug

#: Images that each method answers; a page shows some of them.
POOL = 10
#: Longest side of a drawing in a report, in pixels.
MAX_SIDE = 480
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 85]


def add_answers(gallery: Gallery,
                runner: Runner,
                dataloader: DataLoader,
                root: Path,
                folder: str,
                method: str,
                num: int = POOL) -> Gallery:
    """Let a model answer, as one more row of a gallery.

    The truth joins with the first one. Classes are answered in words; boxes
    and maps are drawn as the inferencer draws them.

    Args:
        gallery (Gallery): What it is added to.
        runner (Runner): With a trained model.
        dataloader (DataLoader): Of the images it was evaluated on.
        root (Path): The folder of the report.
        folder (str): Where in it to write drawings; made if missing.
        method (str): Name of the model.
        num (int): Number of images, at even distances.

    Returns:
        Gallery: The same.
    """
    dataset = dataloader.dataset
    classes = list(dataset.metainfo['classes'])
    palette = colours(dataset.metainfo.get('palette'), len(classes))
    artist = _Artist(
        Painter(runner.cfg.get('visualizer'), classes, palette), root, folder)
    model = runner.model.eval()
    first = TRUTH not in gallery.methods()
    seen = {classes.index(name) for name in gallery.legend}
    for index in evenly_spaced(len(dataset), num):
        batch = dataloader.collate_fn([dataset[index]])
        with torch.no_grad():
            sample = model.test_step(batch)[0].cpu()
        sample = with_truth(sample, dataset, index)
        image, words = str(index), truth(sample, classes)
        if words and first:
            file = artist.draw(sample, TRUTH, image)
            gallery.answers.append(Answer(TRUTH, image, words, file))
        caption, right = answer(sample, classes)
        # of a class the truth's image is enough
        file = '' if words and kind_of(sample) == 'cls' else artist.draw(
            sample, method, image)
        gallery.answers.append(Answer(method, image, caption, file, right))
        if kind_of(sample) != 'cls':
            seen |= {*labels(sample, 'gt'), *labels(sample, 'pred')}
    gallery.legend = {
        classes[i]: palette[i]
        for i in sorted(seen) if i < len(classes)
    }
    return gallery


class _Artist:
    """Draws answers into files.

    Args:
        painter (Painter): Draws boxes and maps.
        root (Path): The folder of the report.
        folder (str): Where in it files are written.
    """

    def __init__(self, painter: Painter, root: Path, folder: str) -> None:
        self.painter, self.root, self.folder = painter, root, folder

    def draw(self, sample: BaseDataElement, method: str, image: str) -> str:
        """Write a drawing; its file, relative to the report."""
        picture = mmcv.imread(sample.img_path)
        if kind_of(sample) == 'cls':
            page = enlarge(picture)[0]
        else:
            side = 'gt' if method == TRUTH else 'pred'
            # a legend names the colours
            page = self.painter(picture, sample, side=side, labels=False)
            page = page[..., ::-1]
        if max(page.shape[:2]) > MAX_SIDE:
            page = mmcv.imrescale(page, (MAX_SIDE, MAX_SIDE))
        file = f'{self.folder}/{slug(method)}-{image}.jpg'
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, cv2.imencode('.jpg', page, _QUALITY)[1].tobytes())
        return file
