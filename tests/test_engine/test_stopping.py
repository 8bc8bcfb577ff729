# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A run that a signal asks to stop has lost nothing when it is resumed."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, List

import pytest
import torch
import torch.multiprocessing as mp
from _processes import free_port, join, together
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import FlexibleRunner, Runner

from _runs import Asks, learned, run, stopped, unlike, validation
from _tiny import first_of
from vim_mm.engine.stopping import EXIT_CODE, SIGNALS, Stop, stoppable
from vim_mm.utils.checkpoint import load_from_local
from vim_mm.utils.cli import run_cli


@pytest.fixture(autouse=True)
def no_nohup() -> Iterator[None]:
    """Signals ask here, also where the suite itself was started by nohup."""
    before = {name: signal.getsignal(name) for name in asking()}
    for name in before:
        signal.signal(name, signal.SIG_DFL)
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


def asking() -> List[signal.Signals]:
    return [getattr(signal, name) for name in SIGNALS]


class AsksGroup(Asks):
    """Another process signals this one, and those that it has started."""

    def send(self, number: int) -> None:
        other = os.fork()
        if not other:
            os.killpg(os.getpgid(0), number)
            os._exit(0)
        os.waitpid(other, 0)


def stop(folder: Path, asks: Asks, **kwargs: Any) -> Runner:
    hooks = [*kwargs.pop('custom_hooks', []), asks]
    return stopped(run(folder, custom_hooks=hooks, **kwargs))


EMA = dict(custom_hooks=[dict(type='EMAHook')])
RARE = dict(checkpoint=dict(interval=100))
EPOCHS = dict(by_epoch=True, steps=2, **RARE)
FINITE = dict(data=dict(sampler='DefaultSampler'))
RATES = dict(param_scheduler=dict(
    type='CosineAnnealingLR', by_epoch=False, T_max=6))
IN_VAL = 'before_val_iter'


@pytest.mark.parametrize(('asks', 'saved', 'settings'), first_of([
    (('before_train_iter', 2), 'iter_3', dict(**RARE)),
    (('after_train_iter', 2, 'SIGHUP'), 'iter_3', dict(**RARE, **EMA)),
    (('after_train_iter', 5), 'iter_6', dict(**RARE, **validation())),
    (('before_train_iter', 1), 'iter_2', dict(**RARE, **validation(), **EMA)),
    (('before_val', 0), 'iter_2', dict(**RARE, **validation(), **EMA)),
    ((IN_VAL, 1), 'iter_2', dict(**RARE, **validation(), **EMA)),
    ((IN_VAL, 5, 'SIGHUP'), 'iter_6', dict(**RARE, **validation())),
    (('before_train_iter', 1), 'iter_2', dict(**EPOCHS, **RATES)),
    (('before_train_iter', 2), 'iter_3', dict(**EPOCHS, **validation())),
    ((IN_VAL, 3), 'epoch_2', dict(**EPOCHS, **validation(), **EMA)),
    (('before_train_iter', 2), 'iter_3', dict(**RARE, **FINITE)),
    (('before_train_iter', 0), 'iter_1', dict(**RARE, **RATES)),
    (('after_val_iter', 3), 'iter_4', dict(**RARE, **validation())),
    (('before_train_iter', 4), 'iter_5', dict(**EPOCHS, **EMA)),
    ((IN_VAL, 0), 'epoch_1', dict(**EPOCHS, **validation(), **EMA)),
], 11))
def test_it_goes_on_as_if_never_stopped(tmp_path: Path, asks: tuple,
                                        saved: str, settings: dict,
                                        monkeypatch: Any) -> None:
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    one = run(tmp_path / 'one', **settings)
    one.train()
    folder = tmp_path / 'two'
    stop(folder, Asks(*asks), **settings)
    assert [p.name for p in folder.glob('*.pth')] == [f'{saved}.pth']
    two = run(folder, resume=True, **settings)
    two.train()
    assert not unlike(learned(one), learned(two))
    # a file between two epochs goes when the next one is complete
    names = [sorted(p.name for p in (tmp_path / d).glob('*.pth'))
             for d in ('one', 'two')]
    if settings.get('by_epoch'):
        assert set(names[1]) - set(names[0]) <= {'epoch_1.pth'}


def test_a_step_in_parts_is_finished_first(tmp_path: Path) -> None:
    wrapper = dict(
        type='OptimWrapper',
        accumulative_counts=2,
        optimizer=dict(type='AdamW', lr=5e-3))
    settings = dict(optim_wrapper=wrapper, **RARE)
    one = run(tmp_path / 'one', **settings)
    one.train()
    stop(tmp_path / 'two', Asks('before_train_iter', 2), **settings)
    assert (tmp_path / 'two' / 'iter_4.pth').exists()
    two = run(tmp_path / 'two', resume=True, **settings)
    two.train()
    assert not unlike(learned(one), learned(two))


@pytest.mark.parametrize('flexible', [False, True])
def test_runners_alike(tmp_path: Path, flexible: bool,
                       monkeypatch: Any) -> None:
    if flexible:
        monkeypatch.setattr('_tiny.Runner', FlexibleRunner)
    for point, name in (('before_train_iter', 'iter_1'), (IN_VAL, 'iter_2')):
        folder = tmp_path / name
        stop(folder, Asks(point), **RARE, **validation())
        saved = torch.load(folder / f'{name}.pth', weights_only=False)
        assert saved['meta']['iter'] == int(name[-1])


@pytest.mark.parametrize('hook', [
    dict(type='vim_mm.WarmHeadHook', epochs=2),
    dict(type='vim_mm.WarmHeadHook', epochs=2, evaluate=True),
])
def test_a_preparation_is_begun_anew(tmp_path: Path, hook: dict) -> None:
    settings = dict(custom_hooks=[hook], steps=2, **RARE, **validation())
    one = run(tmp_path / 'one', **settings)
    one.train()
    points = ['before_train']
    if hook.get('evaluate'):
        points.append(IN_VAL)
    for point in points:
        folder = tmp_path / point
        stopped = stop(folder, Asks(point), **settings)
        assert stopped.iter == 0 and not list(folder.glob('*.pth'))
        two = run(folder, resume=True, **settings)
        two.train()
        assert not unlike(learned(one), learned(two))


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.SIG_DFL] * 2
    stop(tmp_path / 'a', Asks('before_train_iter'), steps=2, **RARE)
    run(tmp_path / 'b', steps=1, **RARE).train()
    assert before == [signal.getsignal(name) for name in asking()]
    assert Stop.current is None


@pytest.mark.parametrize('kept', [signal.SIG_IGN, 'own'])
def test_handlers_of_the_user_are_left_alone(tmp_path: Path,
                                             kept: Any) -> None:
    """``nohup`` lets SIGHUP be ignored."""
    seen = []
    handler = (lambda *args: seen.append(args)) if kept == 'own' else kept
    signal.signal(signal.SIGHUP, handler)
    try:
        runner = run(tmp_path, steps=2, data=dict(workers=1),
                     custom_hooks=[Asks('before_train_iter', 0, 'SIGHUP')])
        runner.train()
        assert runner.iter == 2 and len(seen) == (kept == 'own')
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def in_a_group(rank: int, folder: str) -> None:
    """Slurm signals all processes of a job, the workers of loaders too."""
    os.setsid()
    torch.set_num_threads(1)
    asks = AsksGroup('before_train_iter', 1)
    stop(Path(folder), asks, data=dict(workers=2), **RARE)


def test_workers_outlive_the_signal(tmp_path: Path) -> None:
    mp.start_processes(in_a_group, (str(tmp_path), ), 1, start_method='fork')
    assert [p.name for p in tmp_path.glob('*.pth')] == ['iter_2.pth']


def test_the_exit_code_of_a_tool(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run_cli(run(tmp_path, steps=3, **RARE,
                    custom_hooks=[Asks('before_train_iter')]).train)
    assert ended.value.code == EXIT_CODE


# --------------------------------------------------------- several processes


def train(rank: int, port: int, folder: str, by_epoch: bool) -> None:
    from vim_mm.utils.dist import leave_group
    cfg = join(rank, port)

    def build(name: str, *hooks: Hook, **kwargs: Any) -> Runner:
        return run(
            Path(folder, name),
            steps=2 if by_epoch else 4,
            by_epoch=by_epoch,
            data=dict(batch_size=2),
            launcher='pytorch',
            env_cfg=cfg.env_cfg,
            experiment_name=f'{name}{len(hooks)}',
            cfg=dict(model_wrapper_cfg=cfg.model_wrapper_cfg),
            custom_hooks=[dict(type='EMAHook'), *hooks],
            **RARE,
            **uneven(),
            **kwargs)

    def save(runner: Runner, name: str) -> None:
        # curves of losses are those of the first process
        torch.save({k: v for k, v in learned(runner).items()
                    if not k.startswith(('train/', 'val/'))},
                   f'{folder}/{name}{rank}.pth')

    whole = build('whole')
    whole.train()
    save(whole, 'whole')
    for name, (signalled, *asks) in ASKED.items():
        first = build(name, *[Asks(*asks)] * (rank in signalled))
        stopped(first)
        again = build(name, resume=True)
        again.train()
        save(again, name)
    leave_group()


def uneven() -> dict:
    """One process has a batch of validation more than the other."""
    cfg = validation(9)
    cfg['val_dataloader'].update(
        batch_size=1,
        sampler=dict(type='DefaultSampler', shuffle=False, round_up=False))
    return cfg


#: Which processes get a signal, and where.
ASKED = dict(
    one=((1, ), 'before_train_iter', 2),
    both=((0, 1), 'before_train_iter', 0),
    validating=((1, ), IN_VAL, 1))


@pytest.mark.parametrize('by_epoch', first_of([False, True]))
def test_all_processes_stop_together(tmp_path: Path, by_epoch: bool) -> None:
    together(train, str(tmp_path), by_epoch)
    for rank in range(2):
        whole = torch.load(tmp_path / f'whole{rank}.pth')
        for name in ASKED:
            assert not unlike(
                whole, torch.load(tmp_path / f'{name}{rank}.pth')), name


def train_until_killed(rank: int, port: int, folder: str, point: str) -> None:
    cfg = join(rank, port)
    run(Path(folder),
        6,
        launcher='pytorch',
        env_cfg=cfg.env_cfg,
        experiment_name=f'killed{rank}',
        cfg=dict(model_wrapper_cfg=cfg.model_wrapper_cfg),
        custom_hooks=[Asks(point, 2, 'SIGKILL')] * (rank == 1),
        **validation()).train()


@pytest.mark.parametrize('point', first_of(['before_train_iter', IN_VAL]))
def test_a_killed_process_ends_the_others_within_a_minute(
        tmp_path: Path, point: str) -> None:
    """Also where no launcher watches over them."""
    port, fork = free_port(), mp.get_context('fork')
    ranks = [fork.Process(target=train_until_killed,
                          args=(rank, port, str(tmp_path), point),
                          daemon=True)
             for rank in range(2)]
    for each in ranks:
        each.start()
    ranks[1].join(300)
    assert ranks[1].exitcode == -signal.SIGKILL
    ranks[0].join(60)
    ended = ranks[0].exitcode
    ranks[0].kill()  # where it waits for ever
    assert ended not in (None, 0)
    assert load_from_local(str(tmp_path / 'iter_1.pth'))['state_dict']


def sleep_after(started: Any) -> None:
    started.set()
    time.sleep(600)


@pytest.mark.parametrize('name', SIGNALS)
def test_a_fork_dies_of_the_signal(name: str) -> None:
    """A pool of processes ends its own so, and waits for it."""
    runner = SimpleNamespace(logger=MMLogger.get_current_instance())
    with stoppable(runner):
        context = mp.get_context('fork')
        started = context.Event()
        fork = context.Process(target=sleep_after, args=(started, ))
        fork.start()
        assert started.wait(60)
        os.kill(fork.pid, getattr(signal, name))
        fork.join(60)
        assert fork.exitcode == -getattr(signal, name)
        assert not Stop.current.is_asked()


@pytest.mark.parametrize('name', SIGNALS)
def test_a_fork_that_has_not_started_dies_too(name: str) -> None:
    """Python would drop what reaches it before it runs any of our code."""
    with stoppable(SimpleNamespace(logger=MMLogger.get_current_instance())):
        for _ in range(20):
            fork = os.fork()
            if not fork:
                time.sleep(20)
                os._exit(1)
            os.kill(fork, getattr(signal, name))
            assert os.waitpid(fork, 0)[1] == getattr(signal, name)
        assert not Stop.current.is_asked()


def test_a_signal_between_forks_asks_to_stop() -> None:
    with stoppable(SimpleNamespace(logger=MMLogger.get_current_instance())):
        fork = os.fork()
        if not fork:
            os._exit(0)
        os.waitpid(fork, 0)
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
        Stop.current.is_preparing = False
        os.kill(os.getpid(), signal.SIGTERM)
        assert Stop.current.is_asked()


def test_a_pool_ends_within_a_run() -> None:
    with stoppable(SimpleNamespace(logger=MMLogger.get_current_instance())):
        with mp.get_context('fork').Pool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
