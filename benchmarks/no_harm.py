# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Evidence that fusing a zoo does no harm: real tasks, trained heads.

    make demo  # leaves the zoo
    python benchmarks/no_harm.py --seeds 0 1 2

For every task and seed a few images are drawn, and a head is trained on the
features of the frozen trunk, of each module alone, of all alike, and of what
``ScoreGatesHook`` recommends; each head starts alike, sees the same images
and is judged by the task's own metric on images of other sources. Each
finished run is a line of ``WORK_DIR/runs.jsonl``; what is there is not run
again. ``no_harm_summary.py`` makes docs/evidence of them. Trials of
settings take seeds from 100 on, which draw other images and judge on others,
too.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import time
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import (Any, Callable, Dict, Iterator, List, Optional, Sequence,
                    Tuple)

import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed

from vim_mm.apis.fitting import unfused_model
from vim_mm.engine.hooks import WarmHeadHook
from vim_mm.engine.module_trials import ModuleTrials
from vim_mm.evaluation.strengths import bare, single, uniform
from vim_mm.features.module_rows import FUSED, TRUNK, UNIFORM
from vim_mm.utils.cli import run_cli
from vim_mm.utils.kinds import KINDS
from vim_mm.zoo import Zoo, ZooError

from evidence_log import RunLog  # isort:skip
from no_harm_tasks import TASKS, Task, read_config  # isort:skip

#: other ways to weigh modules, by the order of the closed-form scores
BY_RANK = {'best at 1, next at 0.25': (1., .25), 'best two alike': (.5, .5)}
Weights = Tuple[float, ...]
Run = Callable[[], Dict[str, Any]]


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evidence of fusion')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument(
        '--tasks', nargs='+', choices=list(TASKS), default=list(TASKS))
    parser.add_argument('--zoo', help="instead of the demo's")
    parser.add_argument(
        '--length',
        type=int,
        default=1,
        help='heads learn for so many times the epochs of their task')
    parser.add_argument(
        '--work-dir', type=Path, help='work_dirs/no_harm, or no_harm-LENGTH')
    parser.add_argument(
        '--pictures',
        type=int,
        default=2000,
        help='that modules are tried on, at most (default: %(default)s, as '
        'of ScoreGatesHook)')
    args = parser.parse_args(argv)
    other = '' if args.length == 1 else f'-{args.length}'
    args.work_dir = args.work_dir or Path(f'work_dirs/no_harm{other}')
    return args


class Bench:
    """All runs of one task and seed.

    Args:
        name (str): The task.
        seed (int): The seed.
        args (argparse.Namespace): Of the command.
        task (Task, optional): What is learned, if not all of that name.
        modules (Sequence[str], optional): Of the zoo; all when None.
    """

    def __init__(self,
                 name: str,
                 seed: int,
                 args: argparse.Namespace,
                 task: Optional[Task] = None,
                 modules: Optional[Sequence[str]] = None) -> None:
        self.task, self.seed = task or TASKS[name], seed
        self.cfg = read_config(name, seed, args.work_dir, args.zoo, self.task)
        scope = KINDS[self.task.kind].scope
        self.cfg.default_scope = scope
        init_default_scope(scope)
        set_random_seed(seed)
        names = Zoo(self.cfg.zoo).names() if modules is None else modules
        self.model = unfused_model(self.cfg, self.cfg.zoo, names)
        self.model.init_weights()
        self.model.backbone.set_fusion(dict(type='LinearMoE', learn=False))
        self.names = self.model.backbone.bank.names
        self.start = {
            key: value.clone()
            for key, value in self.model.state_dict().items()
            if not key.startswith('backbone.')
        }
        self.name = name
        self.pictures = args.pictures
        self.values: Dict[Weights, float] = {}

    def plan(self) -> Iterator[Tuple[str, Run]]:
        """Names of runs and what each does, in their order."""
        for method, run in self.runs():
            yield f'{self.name}/{method}', partial(self._noted, method, run)

    def _noted(self, method: str, run: Run) -> Dict[str, Any]:
        return dict(
            task=self.name,
            method=method,
            epochs=self.task.epochs,
            pictures=self.pictures,
            **run())

    def runs(self) -> Iterator[Tuple[str, Run]]:
        """By method, what runs it."""
        num = len(self.names)
        yield TRUNK, partial(self._scored, bare(num))
        for module, name in enumerate(self.names):
            yield f'single: {name}', partial(self._scored, single(num, module))
        yield UNIFORM, partial(self._scored, uniform(num))
        yield FUSED, self._fused
        for method, shares in BY_RANK.items():
            yield method, partial(self._ranked, shares)

    def _scored(self, weights: Weights) -> Dict[str, Any]:
        """Judged, beside the score that would have chosen it."""
        judged = self._judged(weights)
        self._restart()
        return dict(judged, score=self.trials.final(weights))

    def _fused(self) -> Dict[str, Any]:
        """What is recommended, and what finding it costs."""
        start = time.process_time()
        self._restart()
        choice = self.trials.choose()
        spent = round(time.process_time() - start)
        return dict(
            self._scored(tuple(choice.weights.values())),
            tries=choice.tries,
            passes=round(choice.passes, 2),
            search_seconds=spent)

    def _ranked(self, shares: Sequence[float]) -> Dict[str, Any]:
        num = len(self.names)
        order = sorted(
            range(num), key=lambda i: -self.trials.ridge(single(num, i)))
        weights = [0.] * num
        for module, share in zip(order, shares):
            weights[module] = share
        return self._judged(tuple(weights))

    @cached_property
    def trials(self) -> ModuleTrials:
        """On the images that are learned from."""
        with torch.no_grad():
            return ModuleTrials.of_task(
                self.model.eval(),
                self._loader('train'),
                max_pictures=self.pictures,
                head_optimizer=self._optimizer())

    def _optimizer(self) -> dict:
        return dict(type='AdamW', lr=self.task.lr, weight_decay=1e-4)

    def _loader(self, part: str) -> Any:
        set_random_seed(self.seed)
        return Runner.build_dataloader(
            deepcopy(self.cfg[f'{part}_dataloader']), seed=self.seed)

    def _judged(self, weights: Weights) -> Dict[str, Any]:
        """Train a head beside these weights and judge it, once."""
        if weights not in self.values:
            fusion = self.model.backbone.fusion
            fusion.set_weights('default', torch.tensor(weights))
            self._restart()
            loader = self._loader('train')
            hook = WarmHeadHook(self.task.epochs, self._optimizer())
            hook.warm(
                SimpleNamespace(
                    seed=self.seed, logger=MMLogger.get_current_instance()),
                self.model, loader)
            self.values[weights] = self._test()
        return dict(
            value=self.values[weights],
            weights=dict(zip(self.names, weights)))

    def _restart(self) -> None:
        """Neck and head as they were built."""
        self.model.load_state_dict(self.start, strict=False)

    @torch.no_grad()
    def _test(self) -> float:
        self.model.eval()
        loader = self._loader('test')
        evaluator = Evaluator(deepcopy(self.cfg.test_evaluator))
        evaluator.dataset_meta = getattr(loader.dataset, 'metainfo', {})
        for data in loader:
            evaluator.process(self.model.test_step(data), data)
        return self._value(evaluator.evaluate(len(loader.dataset)))

    def _value(self, found: Dict[str, float]) -> float:
        """The task's metric, in percent."""
        # mmdet gives no metric where nothing is found
        value = float(found.get(self.task.key, 0.))
        return 100 * value if self.task.kind == 'det' else value


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel('ERROR')
    if not Zoo(args.zoo or 'work_dirs/demo/zoo').names():
        raise ZooError('The zoo is empty: run `make demo`, or name another '
                       'with --zoo.')
    log = RunLog(args.work_dir)
    for seed in args.seeds:
        for name in args.tasks:
            task = TASKS[name]
            task = task._replace(epochs=task.epochs * args.length)
            log.run(seed, Bench(name, seed, args, task).plan())


if __name__ == '__main__':
    run_cli(main)
