# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: runs that are killed, stopped and resumed, and wrong uses.

Runs are killed here. The rest are tests of the suite, which count as cases one
by one.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Sequence
from unittest import mock

import _tdmr
from _damage import flipped, tool, trained, uses
from _states import best, judged, rises, states_of, step_of
from mmengine.runner import FlexibleRunner, Runner
from reliability_cases import Campaign, Tally, forked, joined, some

import _multitask
from _runs import Asks, learned, run, stopped, unlike
from vim_mm.utils.checkpoint import CheckpointError
from vim_mm.utils.checksum import is_intact

ROOT = Path(__file__).resolve().parents[1]
RESUMES = ('test_engine/test_resume.py', 'test_engine/test_saving.py',
           'test_engine/test_exact.py', 'test_engine/test_stopping.py',
           'test_engine/test_stopping_tasks.py',
           'test_engine/test_loops/test_multitask_resume.py',
           'test_engine/test_hooks/test_proxy_hook.py',
           'test_multitask_distributed.py', 'test_multitask_fsdp.py',
           'test_utils/test_checksum.py')
WRONG_USES = ('test_wrong_uses.py', 'test_late_wrong_uses.py',
              'test_silent_wrong_uses.py', 'test_wrong_pipelines.py',
              'test_utils/test_coco_json.py', 'test_engine/test_data_sets.py',
              'test_models/test_mistakes.py',
              'test_models/test_class_counts.py',
              'test_engine/test_loops/test_multitask_mistakes.py',
              'test_utils/test_data.py', 'test_utils/test_settings.py',
              'test_utils/test_manifest.py', 'test_apis/test_own_files.py',
              'test_engine/test_model_parts.py')

# -------------------------------------------------------- runs that are killed


def flexible(folder: Path, **kwargs: Any) -> Runner:
    """A run of mmengine's other runner."""
    with mock.patch('_tiny.Runner', FlexibleRunner):
        return run(folder, **kwargs)


def tasks(folder: Path, **kwargs: Any) -> Runner:
    """A run of several tasks."""
    hook = dict(type='CheckpointHook', by_epoch=False, interval=1,
                max_keep_ckpts=1)
    return _multitask.build(
        folder, 4, default_hooks=dict(checkpoint=hook), **kwargs)


def student(folder: Path, **kwargs: Any) -> Runner:
    """A run that distils from foundation models through a proxy space."""
    hook = dict(type='CheckpointHook', by_epoch=False, interval=1,
                max_keep_ckpts=2)
    return _tdmr.runner(
        folder, default_hooks=dict(checkpoint=hook), **kwargs)


EMA = dict(custom_hooks=[dict(type='EMAHook')])
COSINE = dict(param_scheduler=dict(
    type='CosineAnnealingLR', by_epoch=False, T_max=8))
#: Each builds a run in a folder, to be resumed with ``resume=True``.
RUNS: Dict[str, Callable[..., Runner]] = dict(
    one=partial(run, steps=8, checkpoint=dict(max_keep_ckpts=1)),
    two=partial(run, steps=8, checkpoint=dict(max_keep_ckpts=2), **COSINE),
    all=partial(run, steps=8, **EMA),
    rare=partial(run, steps=8, checkpoint=dict(interval=3, save_last=True)),
    best=partial(run, steps=8, **best(max_keep_ckpts=1)),
    best_of_averages=partial(run, steps=8, **best(max_keep_ckpts=2), **EMA),
    epochs=partial(run, steps=6, by_epoch=True, **best(max_keep_ckpts=1)),
    epochs_by_step=partial(
        run, steps=3, by_epoch=True,
        **best(by_epoch=False, max_keep_ckpts=1)),
    workers=partial(run, steps=6, data=dict(workers=1),
                    checkpoint=dict(max_keep_ckpts=1)),
    flexible=partial(flexible, steps=8, **best(max_keep_ckpts=1)),
    tasks=tasks,
    student=student)


def stop_and_go_on(build: Callable[..., Runner], folder: Path) -> Runner:
    """Let a run be stopped by a signal after two steps, twice, and go on."""
    for resume in (False, True):
        runner = build(folder, resume=resume)
        runner.register_hook(Asks('after_train_iter', 1))
        stopped(runner)
    runner = build(folder, resume=True)
    runner.train()
    return runner


def kills(tally: Tally, root: Path, share: float, seed: int) -> None:
    """Kill runs, stopped ones too, at every file operation."""
    rng = random.Random(seed)
    cases = [(name, stops) for stops in (False, True) for name in RUNS]
    with mock.patch('mmengine.evaluator.Evaluator.evaluate', rises):
        for name, stops in some(cases, share, rng):
            folder = root / f'{name}{stops}' / 'run'
            folder.mkdir(parents=True)
            kill(tally, f'{name}{", stopped" * stops}', RUNS[name], folder,
                 stops, rng)
            shutil.rmtree(folder.parent)


def kill(tally: Tally, name: str, build: Callable[..., Runner], folder: Path,
         stops: bool, rng: random.Random) -> None:
    """Kill a run at every file operation, and resume a few of its states."""
    done = []

    def work() -> None:
        if stops:
            done.append(stop_and_go_on(build, folder))
        else:
            done.append(build(folder))
            done[0].train()

    states = states_of(folder, work)
    begun = []
    for state, step, problem in judged(states):
        tally.keep(f'{name}, at {state.name}: {problem}', not problem)
        begun += [state] * bool(step)
    for state in rng.sample(begun, 2):
        again = build(state, resume=True)
        again.train()
        differ = unlike(learned(done[0]), learned(again))
        tally.check(f'{name}, resumed at {state.name}: {differ[:3]}',
                    not differ)


def sudden_kills(tally: Tally, root: Path, share: float, seed: int) -> None:
    """SIGKILL at a random moment of a run, which goes on again and again."""
    rng, newest = random.Random(seed), 0
    build = partial(run, root / 'run', steps=10**6,
                    checkpoint=dict(max_keep_ckpts=1))
    build().load_or_resume()  # all that is imported late
    for index in range(max(3, round(60 * share))):
        child = forked(lambda: build(resume='auto').train())
        time.sleep(rng.uniform(.3, .8))
        os.kill(child, signal.SIGKILL)
        tally.check(f'kill {index}', joined(child) == -signal.SIGKILL)
        files = list((root / 'run').glob('*.pth'))
        tally.keep(f'kill {index}: a damaged file', all(map(is_intact, files)))
        step = max(map(step_of, files), default=0)
        tally.keep(f'kill {index}: step {step} after {newest}', step >= newest)
        newest = step
    tally.check(f'all of them trained {newest} steps', newest > 0)


# ------------------------------------------------------------------- damage


def flipped_bits(tally: Tally, root: Path, share: float, seed: int) -> None:
    """The tools, on checkpoints of which a bit is another one."""
    rng = random.Random(seed)
    trained(root)
    for name, (path, command) in uses(root).items():
        for _ in range(max(3, round(30 * share))):
            with flipped(path, rng) as place:
                tally.check(f'{name}, byte {place}', refuses(*command))
        tool(*command)


def refuses(*command: object) -> bool:
    """Whether a tool says that a file is damaged."""
    try:
        tool(*command)
    except CheckpointError as error:
        return 'is damaged' in str(error)
    return False


# --------------------------------------------------------- tests of the suite


def tests(files: Sequence[str], tally: Tally, root: Path, share: float,
          seed: int) -> None:
    """Run tests; each is a case. A small share takes the first files."""
    report = root / 'report.xml'
    paths = [str(ROOT / 'tests' / file) for file in files]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(f'There are no tests {missing}.')
    paths = paths[:max(1, round(share * len(paths)))]
    done = subprocess.run(
        [
            sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
            f'--junitxml={report}', *paths
        ],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        stdout=subprocess.DEVNULL)
    if not report.exists():
        tally.check(f'pytest ended with {done.returncode}', False)
        return
    for case in xml.parse(report).getroot().iter('testcase'):
        if case.find('skipped') is not None:
            continue
        bad = case.find('failure')
        bad = case.find('error') if bad is None else bad
        said = '' if bad is None else (bad.get('message') or '')[:200]
        tally.check(f'{case.get("name")}: {said}', bad is None)


CAMPAIGNS = [
    Campaign('a run is killed at every file operation', kills),
    Campaign('a run is killed at any moment', sudden_kills),
    Campaign('flipped bits, to the tools', flipped_bits),
    Campaign('runs are stopped and resumed', partial(tests, RESUMES)),
    Campaign('wrong uses', partial(tests, WRONG_USES))
]
