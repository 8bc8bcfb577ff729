# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Accuracy against modules and images, on data that no module has seen.

    make zoo-demo  # leaves the zoo of eight, and runs some of it
    python benchmarks/zoo_curve.py --seeds 0 1 2

For every data set the modules learned on it are left out. The others are
shuffled by seed and data set, and the first two, the first four and all of
them are weighed as ``ScoreGatesHook`` does; heads are trained and judged as in
``no_harm.py``. Beside them stand the frozen trunk and a module that learns on
the task's own images. The second part takes more and fewer images, with no
module and with all. Each finished run is a line of ``WORK_DIR/runs.jsonl``;
what is there is not run again. ``zoo_curve_summary.py`` makes docs/evidence of
them.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import random
from pathlib import Path
from typing import (Any, Callable, Dict, Iterator, List, NamedTuple, Optional,
                    Sequence, Tuple)

from mmengine.config import Config
from mmengine.logging import MMLogger

from vim_mm.engine.module_trials import ModuleTrials
from vim_mm.evaluation.strengths import bare
from vim_mm.report.comparison import run_variant
from vim_mm.report.variants import Variant, judged_once, unfused
from vim_mm.utils.cli import run_cli, table_console
from vim_mm.utils.kinds import KINDS
from vim_mm.zoo import Zoo, ZooError

from evidence_log import RunLog  # isort:skip
from no_harm import Bench, Weights  # isort:skip
from no_harm_tasks import CONFIGS, TASKS, Task  # isort:skip
from zoo_curve_table import curve_table  # isort:skip

ZOO = 'work_dirs/zoo-demo/zoo'
#: modules beside all that are left
COUNTS = (2, 4)
OWN = 'own module'
#: images that an own module learns from, over all of its epochs
OWN_IMAGES = 400
PARTS = ('modules', 'images')
Plan = Iterator[Tuple[str, Callable[[], Dict[str, Any]]]]


class Curve(NamedTuple):
    """A data set, and which modules know it.

    Attributes:
        task (str): Of ``no_harm.py``.
        knowing (tuple[str]): Modules that are left out.
        sizes (tuple[int]): Images, of each class in classification.
        middle (int): The size at which modules are counted.
    """
    task: str
    knowing: Tuple[str, ...]
    sizes: Tuple[int, ...] = (5, 10, 20, 40)
    middle: int = 20

    def of(self, size: int) -> Task:
        """The task with so many images.

        The head sees few images in more epochs than many, yet not as often
        in all.
        """
        task = TASKS[self.task]
        epochs = round(task.epochs * (task.num / size)**.5)
        return task._replace(num=size, epochs=epochs)


_DIGITS = ('digit-classes', 'digit-masks')
CURVES: Dict[str, Curve] = {
    'clothing': Curve('clothing-40', ('clothing', ), middle=5),
    'camvid': Curve('camvid-40', ('camvid', )),
    # the same photographs as in the module's label maps
    'coco': Curve('coco-64', ('coco-semantic', )),
    'cifar10': Curve('cifar10-20', ('cifar10', ), middle=5),
    'digits-seg': Curve('digits-seg', _DIGITS),
    'digits-det': Curve('digits-det', _DIGITS),
    'solar': Curve('solar-40', ('solar', )),
    # there are 20 of each digit
    'digits-cls': Curve('digits-cls', _DIGITS, (5, 10, 20), 5),
    'trees': Curve('trees-18', ('trees', )),
}


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Curves of a zoo')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument(
        '--data', nargs='+', choices=list(CURVES), default=list(CURVES))
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=PARTS,
        default=list(PARTS),
        help='count modules, or images')
    parser.add_argument('--zoo', default=ZOO)
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/zoo_curve'))
    parser.add_argument(
        '--pictures',
        type=int,
        default=2000,
        help='that modules are tried on, at most (default: %(default)s, as '
        'of ScoreGatesHook)')
    return parser.parse_args(argv)


def nested(data: str, seed: int, names: Sequence[str]) -> List[List[str]]:
    """Two modules, four, and all that do not know the data; each in the next.

    Args:
        data (str): Of :data:`CURVES`.
        seed (int): With the data set it says in which order modules come.
        names (Sequence[str]): The whole zoo.
    """
    order = sorted(set(names) - set(CURVES[data].knowing))
    random.Random(f'{data} {seed}').shuffle(order)
    return [order[:num] for num in COUNTS if num < len(order)] + [order]


class SomeTrials(ModuleTrials):
    """Trials of some modules, whose scores are those among all.

    So zoos within each other share scores and halves of the images.

    Args:
        whole (ModuleTrials): Of all modules.
        names (Sequence[str]): Of some of them.
    """

    def __init__(self, whole: ModuleTrials, names: Sequence[str]) -> None:
        self.whole, self.names = whole, list(names)
        self.places = [whole.names.index(name) for name in names]
        self.features = whole.features
        self.most = min(whole.most, len(names))

    def among_all(self, weights: Weights) -> Weights:
        """Weights with zeros for the others."""
        every = list(bare(len(self.whole.names)))
        for place, weight in zip(self.places, weights):
            every[place] = weight
        return tuple(every)

    @property
    def is_det(self) -> bool:
        """As of all."""
        return self.whole.is_det

    def weigh(self, weights: Weights) -> None:
        """The others not at all."""
        self.whole.weigh(self.among_all(weights))

    def ridge(self, setting: Weights) -> float:
        """As of all."""
        return self.whole.ridge(self.among_all(setting))

    def own_head(self, setting: Weights) -> float:
        """As of all."""
        return self.whole.own_head(self.among_all(setting))

    def compare(self, new: Weights, old: Weights) -> Any:
        """As of all."""
        return self.whole.compare(self.among_all(new), self.among_all(old))

    def compare_final(self, new: Weights, old: Weights) -> Any:
        """As of all."""
        return self.whole.compare_final(
            self.among_all(new), self.among_all(old))


class CurveBench(Bench):
    """All runs of a data set, a number of images and a seed."""

    def __init__(self, data: str, size: int, seed: int,
                 args: argparse.Namespace, names: Sequence[str]) -> None:
        curve = CURVES[data]
        super().__init__(curve.task, seed, args, curve.of(size), names)
        self.folder = args.work_dir / 'own' / f'{data}-{size}-{seed}'

    def none(self) -> Dict[str, Any]:
        """The frozen trunk."""
        return self._judged(bare(len(self.names)))

    def some(self, names: Sequence[str]) -> Dict[str, Any]:
        """What is recommended of some modules."""
        self._restart()
        trials = SomeTrials(self.trials, names)
        choice = trials.choose()
        weights = trials.among_all(tuple(choice.weights.values()))
        return dict(
            self._judged(weights), modules=list(names), tries=choice.tries)

    def own(self) -> Dict[str, Any]:
        """A module that learns on the images of the task."""
        result, _ = run_variant(
            Variant((OWN, ), self._own_config()), str(self.folder), {})
        return dict(value=self._value(result.stages[OWN].metrics))

    def _own_config(self) -> Config:
        cfg, task = unfused(self.cfg, []), self.task
        for base in ('default_runtime', 'schedules/demo_midstream'):
            for key, value in Config.fromfile(
                    CONFIGS / f'_base_/{base}.py').items():
                cfg[key] = value
        cfg.default_scope = KINDS[task.kind].scope
        cfg.randomness, cfg.log_level = dict(seed=self.seed), 'ERROR'
        cfg.default_hooks.checkpoint = None
        cfg.model.backbone.update(
            new_module='own', adapter=dict(type='vim_mm.ConvPass',
                                           hidden_dims=8))
        cfg.custom_hooks = [
            dict(
                type='vim_mm.WarmHeadHook',
                epochs=task.epochs,
                optimizer=self._optimizer())
        ]
        epochs = max(1, round(OWN_IMAGES / task.num_train))
        cfg.train_cfg.max_epochs = cfg.param_scheduler.total_steps = epochs
        return judged_once(cfg)


class Runs:
    """What is run of a data set and a seed; models are built when asked for.

    Args:
        data (str): Of :data:`CURVES`.
        seed (int): The seed.
        args (argparse.Namespace): Of the command.
    """

    def __init__(self, data: str, seed: int, args: argparse.Namespace) -> None:
        self.data, self.seed, self.args = data, seed, args
        self.zoos = nested(data, seed, Zoo(args.zoo).names())
        self._last: Tuple[int, Any] = (0, None)

    def _bench(self, size: int) -> CurveBench:
        if self._last[0] != size:
            self._last = 0, None  # one model at a time
            self._last = size, CurveBench(self.data, size, self.seed,
                                          self.args, self.zoos[-1])
        return self._last[1]

    def modules(self) -> Plan:
        """None, some and all modules, and one of the task's own."""
        size = CURVES[self.data].middle
        yield self._run(size, 0)
        for names in self.zoos:
            yield self._run(size, len(names), names)
        yield f'{self.data}/{size}/{OWN}', lambda: dict(
            self._about(size), **self._bench(size).own())

    def images(self) -> Plan:
        """No module, and all, with more and fewer images."""
        for size in CURVES[self.data].sizes:
            yield self._run(size, 0)
            yield self._run(size, len(self.zoos[-1]), self.zoos[-1])

    def _run(self, size: int, num: int,
             names: Sequence[str] = ()) -> Tuple[str, Callable]:

        def run() -> Dict[str, Any]:
            bench = self._bench(size)
            found = bench.some(names) if names else bench.none()
            return dict(self._about(size), num_modules=num, **found)

        return f'{self.data}/{size}/{num}', run

    def _about(self, size: int) -> Dict[str, Any]:
        return dict(data=self.data, size=size)


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    log = RunLog(args.work_dir)
    MMLogger.get_current_instance().setLevel('ERROR')
    if not Path(args.zoo).is_dir() or not Zoo(args.zoo).names():
        raise ZooError(f'The zoo {args.zoo!r} is empty: run `make zoo-demo`, '
                       'or name another with --zoo.')
    for part in args.parts:
        for seed in args.seeds:
            for data in args.data:
                log.run(seed, getattr(Runs(data, seed, args), part)())
    rows = [row for seed in args.seeds for row in log.rows(seed).values()]
    table_console().print(curve_table(rows))


if __name__ == '__main__':
    run_cli(main)
