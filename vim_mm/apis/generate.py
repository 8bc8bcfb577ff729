# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images for distillation, generated from those of a data set."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor

from vim_mm.models.fit import check_classes
from vim_mm.models.generators import Generated, GuidedGenerator
from vim_mm.models.generators.upstream_release import CARD
from vim_mm.models.pixels import from_images, to_images
from vim_mm.utils.arguments import check_arguments, check_width
from vim_mm.utils.config import read_config
from vim_mm.utils.data import check_data
from vim_mm.utils.files import sha256, write_atomic
from vim_mm.utils.seeds import SAMPLE, STEP, seed_all
from .generated_folder import IMAGES, GeneratedFolder
from .serving import load_model

#: Side of an image on the contact sheet, and how many guides it shows.
CELL, SHOWN = 112, 12


class Report(NamedTuple):
    """What a run made.

    Attributes:
        total (int): Images in the folder.
        made (int): Those of this run.
        seconds (float): A generated image, without reading guides.
        start (float): Mean loss of this run's images at their guides.
        loss (float): Mean loss in the end.
    """
    total: int
    made: int
    seconds: float
    start: float
    loss: float


@dataclass(frozen=True)
class Plan:
    """The config's ``generate``.

    Attributes:
        generator (dict): Config of a :class:`GuidedGenerator`.
        dataset (dict, optional): Of the guides, as a pipeline packs them;
            that of ``train_dataloader`` when None.
        copies (int): Images of each guide. Defaults to 1.
        batch_size (int): Images made together. Defaults to 16.
        seed (int): Of all that is random. Defaults to 0.
        limit (int, optional): Guides at most. Defaults to None, all.
        suffix (str): Of the image files. Defaults to '.png'.
    """
    generator: dict
    dataset: Optional[dict] = None
    copies: int = 1
    batch_size: int = 16
    seed: int = 0
    limit: Optional[int] = None
    suffix: str = '.png'


class Guides:
    """Downstream images, each with its data sample, drawn by a seed.

    A copy of a guide is another draw of the pipeline.

    Args:
        dataset (Dataset): The data set.
        plan (Plan): Copies, seed and limit.

    Raises:
        ValueError: If it is empty.
    """

    def __init__(self, dataset: Any, plan: Plan) -> None:
        self.dataset, self.seed = dataset, plan.seed
        num = min(len(dataset), plan.limit or len(dataset))
        if not num:
            raise ValueError('The data set of the guides is empty.')
        self.places = [(index, copy) for index in range(num)
                       for copy in range(plan.copies)]

    def __getitem__(self, place: Tuple[int,
                                       int]) -> Tuple[Tensor, BaseDataElement]:
        """An image (3, H, W), RGB from 0 to 1, and its data sample."""
        seed_all(self.seed, SAMPLE, *place)
        data = self.dataset[place[0]]
        return to_images(data['inputs']), data['data_samples']

    def batches(self, size: int) -> List[List[Tuple[int, int]]]:
        """Places in batches of images of one size, always the same ones."""
        groups: Dict[tuple, List[Tuple[int, int]]] = {}
        for place in self.places:
            groups.setdefault(tuple(self[place][0].shape), []).append(place)
        return [
            group[start:start + size] for group in groups.values()
            for start in range(0, len(group), size)
        ]

    def read(self, places: List[Tuple[int, int]],
             device: str) -> Tuple[Tensor, List[BaseDataElement]]:
        """A batch of guides of one size on a device."""
        pairs = [self[place] for place in places]
        images = torch.stack([image for image, _ in pairs])
        return images.to(device), [sample for _, sample in pairs]

    def check_copies(self, is_random: bool) -> None:
        """Refuse copies that would be the same image again.

        Raises:
            ValueError: If neither pipeline nor generator draws anything.
        """
        first, second = self.places[0], self.places[1:2]
        if not is_random and second and second[0][0] == first[0] \
                and torch.equal(self[first][0], self[second[0]][0]):
            raise ValueError(
                '`generate.copies` asks for several images of each guide, and '
                'they would be the same one; give the generator noise, motion '
                'or tokens, or the pipeline random transforms.')


def generate(config: Any,
             teacher: str,
             out: str,
             student: Optional[Tuple[str, str]] = None,
             device: str = 'cpu') -> Report:
    """Generate images for a trained model and write them to a folder.

    A run that was interrupted goes on where it was, and ends with the images
    that it would have made in one go.

    Args:
        config (str | Config): The config the teacher was trained with, with a
            dict ``generate``, see :class:`Plan`.
        teacher (str): What its training left.
        out (str): The folder, see :class:`GeneratedFolder`.
        student (tuple[str, str], optional): Config and checkpoint of a
            student, for the term ``agreement``.
        device (str): Where the models run. Defaults to 'cpu'.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a setting has no meaning, a model does not fit, or the
            folder holds something else.
    """
    cfg = read_config(config)
    plan = read_plan(cfg)
    where = 'generate' if cfg.generate.get('dataset') else 'train_dataloader'
    check_data(
        dict(cfg.to_dict(), **{where: dict(dataset=plan.dataset)}), (where, ))
    with DefaultScope.overwrite_default_scope(
            cfg.get('default_scope', 'mmengine')):
        generator = MODELS.build(plan.generator)
        model, meta = load_model(cfg, teacher)
        other = None if student is None else load_model(
            read_config(student[0]), student[1])[0]
        dataset = DATASETS.build(plan.dataset)
        classes = dataset.metainfo.get('classes') or ()
        check_classes(classes, dict(dataset_meta=meta),
                      f"The checkpoint '{teacher}'")
        classes = classes or meta.get('classes') or ()
        folder = GeneratedFolder(
            Path(out),
            dict(
                asdict(plan),
                teacher=sha256(Path(teacher)),
                student=student and sha256(Path(student[1])),
                release=_release_digest(plan)), classes, plan.suffix)
        generator.set_teacher(
            model.to(device), None if other is None else other.to(device))
        return _fill(folder, generator, Guides(dataset, plan), plan, device)


def _release_digest(plan: Plan) -> Optional[str]:
    """What tells an upstream release from others: its card's hash."""
    release = plan.generator.get('canvas', {}).get('release')
    return release and sha256(Path(release) / CARD)


def read_plan(cfg: Config) -> Plan:
    """The ``generate`` of a config.

    Raises:
        ValueError: If there is none, or a setting has no meaning.
    """
    given = cfg.get('generate')
    if not isinstance(given, dict) or 'generator' not in given:
        raise ValueError(
            'The config has no `generate` with a `generator`; configs/ota '
            'has some.')
    given = given.to_dict()
    check_arguments(Plan, given)
    given.setdefault('dataset', (cfg.get('train_dataloader')
                                 or {}).get('dataset'))
    plan = Plan(**given)
    if not isinstance(plan.dataset, dict):
        raise ValueError('The config names no data set of guides; set '
                         '`generate.dataset`, or `train_dataloader.dataset`.')
    for what in ('copies', 'batch_size'):
        check_width(getattr(plan, what), f'generate.{what}')
    if plan.limit is not None:
        check_width(plan.limit, 'generate.limit')
    return plan


def _fill(folder: GeneratedFolder, generator: GuidedGenerator, guides: Guides,
          plan: Plan, device: str) -> Report:
    """Make what a folder lacks."""
    guides.check_copies(generator.is_random)
    batches = guides.batches(plan.batch_size)
    lacking = [
        batch for batch in batches
        if not all(folder.has(name_of(place)) for place in batch)
    ]
    if lacking and generator.iterations:
        generator.collect(guides.read(batch, device) for batch in batches)
    made, seconds, losses = 0, 0., []
    for batch in lacking:
        images, samples = guides.read(batch, device)
        keys = [(plan.seed, *place) for place in batch]
        seed_all(plan.seed, STEP, *batch[0])
        begin = time.perf_counter()
        result = generator.generate(images, samples, keys)
        pixels = from_images(result.images).cpu()
        seconds += time.perf_counter() - begin
        folder.add(_entries(batch, pixels, samples, result, plan.seed))
        made += len(batch)
        losses += [(own['start'], own['loss']) for own in result.losses if own]
        print_log(
            f'{len(folder.records)} of {len(guides.places)} images, '
            f'{seconds / made:.2f} s each',
            logger='current')
    folder.finish()
    draw_sheet(folder, guides)
    start, loss = np.mean(losses, 0) if losses else (0., 0.)
    return Report(
        len(folder.records), made, seconds / max(1, made), float(start),
        float(loss))


def name_of(place: Tuple[int, int]) -> str:
    """The key of an image in a manifest: its guide's index, and its copy."""
    return f'{place[0]:06d}_{place[1]}'


def _entries(batch: List[Tuple[int, int]], pixels: Tensor,
             samples: List[BaseDataElement], result: Generated,
             seed: int) -> Iterator[tuple]:
    rows = zip(batch, pixels, samples, result.losses)
    for (index, copy), image, sample, losses in rows:
        note = dict(
            guide=sample.get('img_path'),
            index=index,
            copy=copy,
            seed=seed,
            losses=losses)
        yield (name_of((index, copy)), image.permute(1, 2,
                                                     0).numpy(), sample, note)


def draw_sheet(folder: GeneratedFolder, guides: Guides) -> None:
    """Write a contact sheet: guides, and below them what became of them."""
    copies = 1 + max(copy for _, copy in guides.places)
    num = len(guides.places) // copies
    shown = np.linspace(0, num - 1, min(SHOWN, num)).astype(int).tolist()
    columns = []
    for index in shown:
        cells = []
        for copy in range(copies):
            image, _ = guides[index, copy]
            if copy == 0:
                cells.append(from_images(image).permute(1, 2, 0).numpy())
            file = folder.records[name_of((index, copy))]['file']
            cells.append(cv2.imread(str(folder.root / IMAGES / file)))
        columns.append(np.concatenate(list(map(_cell, cells))))
    done, data = cv2.imencode('.png', np.concatenate(columns, 1))
    assert done
    write_atomic(folder.root / 'sheet.png', data.tobytes())


def _cell(image: np.ndarray) -> np.ndarray:
    """An image in a square of the sheet, on white."""
    scale = CELL / max(image.shape[:2])
    width, height = (
        max(1, round(side * scale)) for side in image.shape[1::-1])
    cell = np.full((CELL + 4, CELL + 4, 3), 255, np.uint8)
    cell[2:2 + height, 2:2 + width] = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA)
    return cell
