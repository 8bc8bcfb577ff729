# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images for distillation, generated from those of a data set."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor

from vim_mm.engine.loaders import build_dataset
from vim_mm.models.fit import check_classes
from vim_mm.models.generators import Generated, GuidedGenerator
from vim_mm.models.generators.upstream_release import CARD
from vim_mm.models.pixels import from_images
from vim_mm.utils.config import read_config
from vim_mm.utils.data import check_data
from vim_mm.utils.files import sha256, write_atomic
from vim_mm.utils.seeds import STEP, seed_all
from .generated_folder import IMAGES, GeneratedFolder
from .guides import Guides, Plan, read_plan
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
        dataset = build_dataset(plan.dataset)
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
        guides = Guides(dataset, plan)
        guides.check(model)
        return _fill(folder, generator, guides, plan, device)


def _release_digest(plan: Plan) -> Optional[str]:
    """What tells an upstream release from others: its card's hash."""
    release = plan.generator.get('canvas', {}).get('release')
    return release and sha256(Path(release) / CARD)


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
        _check_losses(result)
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


def _check_losses(result: Generated) -> None:
    """Refuse images of which nobody knows how good they are.

    Raises:
        ValueError: If a loss is not finite.
    """
    for losses in result.losses:
        bad = [k for k, v in losses.items() if not np.isfinite(v)]
        if bad:
            raise ValueError(
                f'The loss of a generated image is {losses[bad[0]]} '
                f'({", ".join(bad)}), so none of its batch is written; lower '
                '`generate.generator.lr`, or the weight of that term, and '
                'check the weights of the teacher.')


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
