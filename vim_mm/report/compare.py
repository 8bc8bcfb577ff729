# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A fused task beside its baselines over several seeds, run by run."""

import io
import json
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console
from torch import Tensor

import vim_mm
from vim_mm.apis import rank_modules
from vim_mm.features.module_rows import TRUNK
from vim_mm.models.backbones.configs import weights_of
from vim_mm.utils.checkpoint import load_pickle
from vim_mm.utils.config import type_name
from vim_mm.utils.files import sha256, write_atomic
from vim_mm.utils.processes import run_logged
from vim_mm.utils.reading import read_kept
from vim_mm.zoo import Zoo
from .comparison import LIBRARIES, run_variant
from .origin import origin
from .pictures import add_answers
from .steps import SINGLE, Contrast, Gallery, Row, Step, gallery_from, slug
from .variants import RECOMMENDED, Variant, baselines, fusing_config
from .verdicts import best_single, by_method

#: Keys of evaluators, the best known first; each with the name shown, and
#: what its values are multiplied by to lie between 0 and 1.
METRICS: Dict[str, Tuple[str, float]] = {
    'accuracy/top1': ('accuracy', .01),
    'coco/bbox_mAP': ('AP', 1.),
    'coco/bbox_mAP_50': ('AP50', 1.),
    'mIoU': ('mIoU', .01),
    'pascal_voc/mAP': ('AP50', 1.),
    'multi-label/mAP': ('mean average precision', .01),
    'single-label/f1-score': ('F1', .01),
}
_TEXT = ('All methods train with the schedule and the hooks of {config}, from '
         'the same start of neck and head in each seed, and are judged on its '
         'test images. {recommended}.')


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    Attributes:
        variant (Variant): What is trained.
        seed (int): Its seed.
        root (Path): The folder of the comparison.
        start (str): Names the start of neck and head that it shares.
        draws (bool): Whether it answers on images for the page.
        metric (str, optional): The metric that it must have.
    """
    variant: Variant
    seed: int
    root: Path
    start: str
    draws: bool
    metric: Optional[str] = None

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.variant.methods[0]

    @property
    def name(self) -> str:
        """For people."""
        return f'{self.method}, seed {self.seed}'

    @property
    def folder(self) -> Path:
        """Its logs, checkpoints and result."""
        return self.root / f'seed{self.seed}' / slug(self.method)

    @cached_property
    def digest(self) -> str:
        """Hash of all that its result depends on, but for the data."""
        model = self.variant.cfg.model
        trunk = self.variant.trunk or model.backbone.trunk
        parts = [
            _json(self.variant.cfg), vim_mm.__version__,
            _file_hash(weights_of(trunk))
        ]
        if model.backbone.get('modules'):
            zoo = Zoo(model.backbone.zoo)
            parts += [zoo.card(name).sha256 for name in model.backbone.modules]
        return sha256('\n'.join(parts).encode())

    def result(self) -> Optional[dict]:
        """What it found; None unless it has finished as it is now."""
        found = read_kept(self.folder / 'result.json')
        return found if found.get('digest') == self.digest else None

    def __call__(self) -> None:
        """Train, evaluate and, as the last act, write ``result.json``."""
        path = self.root / f'seed{self.seed}' / f'start-{self.start}.pth'
        head: Dict[str, Tensor] = {}
        if path.is_file():
            head = load_pickle(path)
        result, runner = run_variant(self.variant, str(self.folder.parent),
                                     head, self.metric)
        if not path.is_file():
            draft = io.BytesIO()
            torch.save(head, draft)
            write_atomic(path, draft.getvalue())
        stage, = result.stages.values()
        found = dict(
            asdict(stage),
            n_train=result.n_train,
            n_test=result.n_test,
            gates=result.gates,
            gallery=asdict(self._answers(runner)),
            origin=origin(),
            digest=self.digest)
        write_atomic(self.folder / 'result.json', json.dumps(found, indent=1))

    def _answers(self, runner: Runner) -> Gallery:
        """Answers on a few test images, where there is a way to show them."""
        gallery = Gallery()
        if not self.draws:
            return gallery
        folder = self.folder.relative_to(self.root) / 'pictures'
        try:
            return add_answers(gallery, runner, runner.val_dataloader,
                               self.root, str(folder), self.method)
        except (KeyError, ValueError) as error:
            runner.logger.warning(f'No image is drawn: {error!r}')
            return Gallery()


def _json(value: Any) -> str:
    """A config as text, in an order of its own."""
    if isinstance(value, Config):
        value = {k: v for k, v in value.to_dict().items() if k != 'work_dir'}
    return json.dumps(value, sort_keys=True, default=str)


def _file_hash(path: Optional[str]) -> str:
    """Of a trunk's weights; the name of what is no file here."""
    return sha256(Path(path)) if path and Path(path).is_file() else str(path)


@dataclass
class Comparison:
    """All runs of a config, its baselines and seeds.

    Args:
        cfg (Config): A fused downstream config.
        root (Path): Folder for runs and report.
        seeds (Sequence[int]): Seeds; the first one's answers are shown.
        singles (Sequence[str], optional): Modules that are run alone; all
            when None.
        full (bool): Fine-tune the whole trunk, too. Defaults to False.
        metric (str, optional): Key of the evaluator's results that methods
            are compared by; the best known one when None.

    Raises:
        ValueError: If the config weighs no modules.
    """
    cfg: Config
    root: Path
    seeds: Sequence[int]
    singles: Optional[Sequence[str]] = None
    full: bool = False
    metric: Optional[str] = None
    runs: List[Run] = field(init=False)

    def __post_init__(self) -> None:
        self.runs = []
        for seed in self.seeds:
            cfg = deepcopy(self.cfg)
            cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
            start = sha256(_json(cfg).encode())[:16]
            self.runs += [
                Run(variant, seed, self.root, start, seed == self.seeds[0],
                    self.metric)
                for variant in baselines(cfg, self.singles, self.full)
            ]

    def finished(self) -> Iterator[Tuple[Run, dict]]:
        """Runs that have finished, and what they found."""
        for run in self.runs:
            result = run.result()
            if result is not None:
                yield run, result

    def step(self, name: str) -> Step:
        """All that is known so far, for a report.

        Args:
            name (str): Name of the config.

        Raises:
            ValueError: If no run has such a metric.
        """
        found = list(self.finished())
        key = choose_metric([result['metrics'] for _, result in found],
                            self.metric)
        shown, scale = METRICS.get(key, (key, 1.))
        rows = [
            # mmdet has no metric where nothing at all was found
            Row(name, name, run.method, shown,
                round(result['metrics'].get(key, 0.) * scale, 4),
                result['n_train'], result['n_test'], result['seconds'],
                result['peak_mb'], run.seed) for run, result in found
        ]
        fused = [result for run, result in found if run.method == RECOMMENDED]
        return Step(
            f'{name}: trunk, modules and their fusion',
            _TEXT.format(config=name, recommended=self._recommended()),
            rows,
            gates=fused[0]['gates'] if fused else None,
            galleries=[self._gallery(found, rows)],
            contrast=Contrast('What fusing adds', RECOMMENDED, TRUNK),
            seconds=sum(result['seconds'] for _, result in found),
            origin=found[-1][1]['origin'])

    def _recommended(self) -> str:
        cfg = next(run.variant.cfg for run in self.runs
                   if run.method == RECOMMENDED)
        fusion = fusing_config(cfg).get('fusion') or dict(type='EnsMoE')
        hooks = ', '.join(type_name(hook) for hook in cfg.custom_hooks)
        return f'Recommended is {type_name(fusion)} with {hooks}'

    def _gallery(self, found: List[Tuple[Run, dict]],
                 rows: List[Row]) -> Gallery:
        """Answers of the first seed; of single modules those of the best."""
        best = best_single(by_method(rows))
        gallery = Gallery()
        for run, result in found:
            own = gallery_from(result['gallery'])
            if run.method.startswith(SINGLE) and run.method != best:
                continue
            known = {(a.method, a.image) for a in gallery.answers}
            gallery.answers += [
                a for a in own.answers if (a.method, a.image) not in known
            ]
            gallery.legend.update(own.legend)
        return gallery


def choose_metric(metrics: Sequence[Dict[str, float]],
                  asked: Optional[str]) -> str:
    """The metric that all runs are compared by.

    Raises:
        ValueError: If no run has it, or any.
    """
    known = sorted({key for each in metrics for key in each})
    if not known:
        raise ValueError('The evaluator of the test images gave no metric; '
                         'set `test_evaluator` to one that measures.')
    if asked is None:
        return next((key for key in METRICS if key in known), known[0])
    if asked not in known:
        raise ValueError(f'No run has the metric {asked!r}; known are '
                         f'{known}.')
    return asked


def best_modules(cfg: Config, num: int, root: Path,
                 console: Console) -> List[str]:
    """The modules of a config that rank first for its training images.

    Args:
        cfg (Config): A fused downstream config.
        num (int): How many.
        root (Path): The folder of the comparison.
        console (Console): Where progress is shown.
    """
    path = root / 'ranking' / 'scores.json'
    run_logged('Ranking the modules', partial(_rank, cfg, path),
               path.with_name('log.txt'), console, LIBRARIES)
    scores: Dict[str, float] = json.loads(path.read_text())
    return sorted(scores, key=scores.get, reverse=True)[:num]


def _rank(cfg: Config, path: Path) -> None:
    """Score the modules of a config in this process, and write the scores."""
    backbone = cfg.model.backbone
    scores = rank_modules(cfg, backbone.zoo).scores
    own = {m: scores[m]['ours'] for m in backbone.modules if m in scores}
    write_atomic(path, json.dumps(own))
