# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Evidence on OTA and TDMR: real images, few labels, several seeds.

    python benchmarks/students_evidence.py --seeds 0 1 2

Clothes in ten classes; the student is a MobileNetV2. Each finished run is a
line of ``WORK_DIR/runs.jsonl``; what is there is not run again.
``benchmarks/students_summary.py`` makes docs/evidence of them. All students of
a seed start alike and learn in as many steps. Rates were chosen with
``--develop``, which judges on training images that no draw holds.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from mmengine.config import Config
from mmengine.logging import MMLogger

from vim_mm.apis.generate import generate
from vim_mm.apis.release import publish_upstream, re_represent_folder
from vim_mm.utils.cli import run_cli
from vim_mm.utils.config import read_config

import students_runs as runs  # isort:skip
from evidence_log import RunLog  # isort:skip
from students_methods import (ALPHA, CURVE, GENERATE, OTHERS,  # isort:skip
                              POINTS, RATE, SCALE, SHOTS, SLOWLY, STEPS, TDMR,
                              TEACHER, TEACHER_RATE, WARM)


class Seed:
    """All runs of one seed.

    Args:
        seed (int): It.
        args (argparse.Namespace): Of the command.
    """

    def __init__(self, seed: int, args: argparse.Namespace) -> None:
        self.seed, self.args = seed, args
        self.dir = args.work_dir / f'seed_{seed}'
        self.dir.mkdir(parents=True, exist_ok=True)
        self.steps = args.steps or STEPS
        self.release = self.dir / 'release'

    def plan(self) -> Iterator[Tuple[str, Callable[[], Dict[str, Any]]]]:
        """Names of runs and what each does, in their order."""
        yield 'release', self.publish
        for kind in ('full', 'lp-ft', 'irf', 'irf, scale 1', 'irf, both',
                     'irf, consistent'):
            yield f'teacher/{kind}', lambda kind=kind: self.teacher(kind)
        for kind in GENERATE:
            yield f'generate/{kind}', lambda kind=kind: self.generate(kind)
        yield from self.students(SHOTS)
        for method in POINTS:
            yield (f'scratch/{method}',
                   lambda method=method: self.student(method, init=False))
        for shots in CURVE:
            yield (f'{shots}/teacher',
                   lambda shots=shots: self.teacher(TEACHER, shots))
            yield f'{shots}/start', lambda shots=shots: self.start(shots)
            for method in POINTS:
                yield (f'{shots}/{method}', lambda method=method, shots=shots:
                       self.student(method, shots))

    def students(
            self,
            shots: int) -> Iterator[Tuple[str, Callable[[], Dict[str, Any]]]]:
        """The two ladders, every rung."""
        yield 'student/start', lambda: self.start(shots)
        for method in ('alone', 'alone, slowly', 'kd', *OTHERS,
                       'kd + re-represented',
                       'kd + heavy augmentation', 'kd + noise', 'kd + digg',
                       'kd + digg, latent', 'ota', 'kd + all unlabelled',
                       *TDMR):
            yield (f'student/{method}',
                   lambda method=method: self.student(method, shots))

    # ---------------------------------------------------------------- data

    def few(self, shots: int = SHOTS) -> runs.Few:
        """The labelled images and those it is judged on."""
        return runs.Few(self.seed, shots, self.args.develop)

    def copies(self, shots: int) -> dict:
        """The labelled images, re-represented."""
        few = self.few(shots)
        root = self.path('copies', '', shots)
        if not root.exists():
            originals = self.path('originals', '', shots)
            few.write(originals)
            re_represent_folder(
                str(self.release), originals, root, scale=SCALE)
        return dict(few.whole, data_root=str(root), data_prefix='')

    def generated(self, kind: str, shots: int) -> dict:
        """Images that were generated from the labelled ones."""
        few = self.few(shots)
        root = self.path('generate', kind, shots) / 'images'
        return dict(few.whole, data_root=str(root), data_prefix='')

    def path(self, what: str, kind: str, shots: int) -> Path:
        """Where a teacher, generated images or a start are kept."""
        name = kind.replace(', ', '-').replace(' ', '-')
        return self.dir / f'{what}_{name}_{shots}'

    # ---------------------------------------------------------------- runs

    def publish(self) -> Dict[str, Any]:
        """The provider's side: an upstream release out of photographs."""
        cfg = read_config(str(runs.CONFIGS / 'ota/release_coco_64px.py'))
        cfg.work_dir = str(self.dir / 'upstream')
        cfg.randomness = dict(seed=self.seed)
        card = publish_upstream(cfg, self.release)
        return dict(
            metrics=card.metrics, leak=card.leak, training=card.training)

    def teacher(self, kind: str, shots: int = SHOTS) -> Dict[str, Any]:
        """A fine-tuned EfficientNet-Lite0."""
        few, model = self.few(shots), runs.classifier('cnn')
        warm: Optional[dict] = dict(WARM)
        data: dict = few.labelled
        if kind == 'full':
            warm = None
        elif kind != 'lp-ft':
            scale = 1. if kind == 'irf, scale 1' else SCALE
            warm.update(release=str(self.release), scale=scale)
        if kind == 'irf, both':
            data = dict(
                type='ConcatDataset', datasets=[data, self.copies(shots)])
        if kind == 'irf, consistent':
            model = dict(
                type='vim_mm.ConsistentModel',
                student=model,
                release=str(self.release),
                weight=0.1)
        return runs.run(model, data, few, self.path('teacher', kind, shots),
                        self.seed, self.steps, self.args.teacher_rate, warm)

    def generate(self, kind: str, shots: int = SHOTS) -> Dict[str, Any]:
        """Images for the teacher of the ladder."""
        generator = dict(type='vim_mm.GuidedGenerator', **GENERATE[kind])
        if kind == 'digg, latent':
            generator['canvas'] = dict(
                generator['canvas'], release=str(self.release))
        cfg = Config(
            dict(
                default_scope='mmpretrain',
                model=runs.classifier('cnn'),
                train_dataloader=dict(dataset=self.few(shots).labelled),
                generate=dict(generator=generator, seed=self.seed, limit=100)))
        report = generate(
            cfg, str(self.path('teacher', TEACHER, shots) / 'model.pth'),
            str(self.path('generate', kind, shots)))
        return dict(report._asdict())

    def start(self, shots: int) -> Dict[str, Any]:
        """The student with a warmed head, from which all of them start."""
        few = self.few(shots)
        return runs.warm_start(
            runs.classifier('student'), few.labelled, few,
            self.path('start', '', shots), self.seed, WARM)

    def student(self,
                method: str,
                shots: int = SHOTS,
                init: bool = True) -> Dict[str, Any]:
        """A MobileNetV2 by one method."""
        few, student = self.few(shots), runs.classifier('student', init)
        # a backbone that knows nothing gives a head nothing to warm on
        start = self.path('start', '', shots) if init else None
        data, model, halves = few.labelled, student, None
        hooks: List[dict] = []
        if method in TDMR:
            model, data, hooks = self._tdmr(method, student, few)
        elif not method.startswith('alone'):
            kind = OTHERS.get(method, TEACHER)
            model = self._distiller(student, kind, shots)
            soft = self._soft(method, few, shots)
            if soft:
                data = dict(
                    type='ConcatDataset', datasets=[few.labelled, *soft])
                halves = [len(soft)] + [1] * len(soft)
        folder = self.dir / 'student'
        rate = self.args.rate if init else self.args.scratch_rate
        if method == 'alone, slowly':
            rate *= SLOWLY
        result = runs.run(model, data, few, folder, self.seed, self.steps,
                          rate, None, start, hooks, halves, init)
        cost = folder / 'cost.json'
        if hooks and cost.exists():
            result['cost'] = json.loads(cost.read_text())
        return result

    def _distiller(self, student: dict, kind: str, shots: int) -> dict:
        checkpoint = self.path('teacher', kind, shots) / 'model.pth'
        return dict(
            type='vim_mm.Distiller',
            student=student,
            teacher=dict(
                model=runs.classifier('cnn'), checkpoint=str(checkpoint)),
            own_weight=1 - ALPHA,
            probe_size=112,
            criteria={
                ('logits', 'logits'):
                dict(type='vim_mm.LogitsKL', tau=4., weight=ALPHA)
            })

    def _soft(self, method: str, few: runs.Few, shots: int) -> List[dict]:
        """What the teacher alone labels."""
        parts = [method.partition(' + ')[2]]
        if method.startswith('ota'):
            parts = ['re-represented', 'digg']
        found: List[dict] = []
        for part in filter(None, parts):
            if part == 're-represented':
                found.append(self.copies(shots))
            elif part == 'all unlabelled':
                found.append(few.whole)
            elif part == 'heavy augmentation':
                found.append(few.augmented())
            else:
                found.append(self.generated(part, shots))
        return [dict(type='vim_mm.SoftOnly', dataset=each) for each in found]

    def _tdmr(self, method: str, student: dict,
              few: runs.Few) -> Tuple[dict, dict, List[dict]]:
        data = dict(
            type='vim_mm.Views', dataset=few.labelled, views=8, seed=self.seed)
        foundations = {
            name: dict(model=runs.classifier(name))
            for name in ('cnn', 'vit')
        }
        model = dict(
            type='vim_mm.TDMRDistiller',
            student=student,
            foundations=foundations,
            probe_size=112,
            **TDMR[method])
        hooks = [
            dict(
                type='vim_mm.ProxyHook',
                store=str(self.dir / 'store')),
            dict(type='vim_mm.CostHook')
        ]
        return model, data, hooks


# ------------------------------------------------------------------- main


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evidence on OTA and TDMR')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/students_evidence'))
    parser.add_argument(
        '--only', nargs='+', help='runs, or what they begin with: student/')
    parser.add_argument('--steps', type=int, help='of all, for a try')
    parser.add_argument('--rate', type=float, default=RATE)
    parser.add_argument('--scratch-rate', type=float, default=3e-3)
    parser.add_argument('--teacher-rate', type=float, default=TEACHER_RATE)
    parser.add_argument(
        '--develop',
        action='store_true',
        help='judge on images held out of the training set')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='WARNING')
    log = RunLog(args.work_dir, args.only)
    for seed in args.seeds:
        log.run(seed, Seed(seed, args).plan())


if __name__ == '__main__':
    run_cli(main)
