# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Runs go on from the newest checkpoint that loads, and trust no text."""

import builtins
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, List

import pytest
import torch
from _hostile import ODD_VALUES
from _processes import together
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import FlexibleRunner, Runner

from _tiny import build_runner, model_cfg, same, vit
from vim_mm.engine.resume import keep_numbers
from vim_mm.engine.run_state import check_counters
from vim_mm.engine.saving import BATCHES, SAMPLER_SEED, STOPPED_AT, VALIDATE
from vim_mm.utils.checkpoint import CheckpointError


def runner(work_dir: Path, iters: int = 4, **kwargs) -> Runner:
    """Its checkpoints are iter_1.pth, iter_2.pth, ..."""
    hook = dict(type='CheckpointHook', by_epoch=False, interval=1)
    hook.update(kwargs.pop('checkpoint', {}))
    model = model_cfg('cls', dict(trunk=vit(), new_module='n'),
                      dict(type='mmpretrain.GlobalAveragePooling'))
    return build_runner(
        'cls',
        model,
        work_dir,
        iters=iters,
        default_hooks=dict(checkpoint=hook),
        **kwargs)


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('trained') / 'run'
    runner(folder).train()
    return folder


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy of a work dir; its pointer still names the original."""
    folder = tmp_path / 'run'
    shutil.copytree(trained, folder)
    return folder


def resumed(folder: Path, **kwargs) -> Runner:
    run = runner(folder, iters=5, resume=True, **kwargs)
    run.train()
    return run


def name(run: Runner) -> str:
    return Path(run._load_from).name


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def listing(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def point(folder: Path, text: str) -> None:
    (folder / 'last_checkpoint').write_text(text)


# ------------------------------------------------------------------ choice


def nothing(folder: Path) -> None:
    """The pointer names the same file in the folder of before."""


def newest_cut(folder: Path) -> None:
    cut(folder / 'iter_4.pth')


def two_cut(folder: Path) -> None:
    newest_cut(folder)
    (folder / 'iter_3.pth').write_bytes(b'')


def newest_of_something_else(folder: Path) -> None:
    torch.save(dict(state_dict={}), folder / 'iter_4.pth')


def newest_of_text(folder: Path) -> None:
    saved = torch.load(folder / 'iter_4.pth', weights_only=False)
    saved['meta']['iter'] = '4'
    torch.save(saved, folder / 'iter_4.pth')


def one_more(folder: Path) -> None:
    point(folder, str(folder / 'iter_3.pth'))
    os.utime(folder / 'iter_4.pth')


def of_another_run(folder: Path) -> None:
    point(folder, str(folder / 'iter_3.pth'))
    os.utime(folder / 'iter_4.pth', (1, 1))


def another_and_cut(folder: Path) -> None:
    of_another_run(folder)
    cut(folder / 'iter_3.pth')


def by_number(folder: Path) -> None:
    (folder / 'last_checkpoint').unlink()
    os.utime(folder / 'iter_4.pth', (1, 1))
    (folder / 'iter_4.pth').rename(folder / 'iter_10.pth')


@pytest.mark.parametrize(('change', 'chosen', 'said'), [
    (nothing, 'iter_4.pth', 'iter_4.pth.'),
    (lambda d: point(d, ''), 'iter_4.pth', 'last_checkpoint is empty'),
    (lambda d: point(d, '\n \n'), 'iter_4.pth', 'last_checkpoint is empty'),
    (lambda d: point(d, '/no/x.pth'), 'iter_4.pth', 'which is not there'),
    (lambda d: point(d, '/'), 'iter_4.pth', 'no checkpoint file'),
    (lambda d: (d / 'last_checkpoint').write_bytes(b'\xff\0'), 'iter_4.pth',
     'which is not there'),
    (lambda d: (d / 'last_checkpoint').unlink(), 'iter_4.pth',
     'There is no last_checkpoint'),
    (newest_cut, 'iter_3.pth', 'iter_4.pth is truncated'),
    (two_cut, 'iter_2.pth', 'iter_3.pth is truncated'),
    (newest_of_something_else, 'iter_3.pth', 'says nothing of where'),
    (newest_of_text, 'iter_3.pth', 'says nothing of where'),
    (one_more, 'iter_4.pth', 'it is newer than'),
    (of_another_run, 'iter_3.pth', 'iter_3.pth.'),
    (another_and_cut, 'iter_2.pth', 'iter_3.pth is truncated'),
    (by_number, 'iter_10.pth', 'There is no last_checkpoint'),
])
def test_the_newest_that_loads(run_dir: Path, change: Callable, chosen: str,
                               said: str,
                               caplog: pytest.LogCaptureFixture) -> None:
    change(run_dir)
    before = listing(run_dir)
    run = runner(run_dir, iters=5, resume=True, log_level='INFO')
    run.logger.addHandler(caplog.handler)
    run.train()
    assert name(run) == chosen and run.iter == 5
    assert Path(run._load_from).parent == run_dir
    line, = (r.getMessage() for r in caplog.records
             if r.getMessage().startswith('Resuming from'))
    assert said in line and '\n' not in line
    assert set(before) <= set(listing(run_dir))


def test_flexible_runners_resume_alike(
        run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest_cut(run_dir)
    monkeypatch.setattr('_tiny.Runner', FlexibleRunner)
    run = resumed(run_dir)
    assert isinstance(run, FlexibleRunner)
    assert name(run) == 'iter_3.pth' and run.iter == 5


def test_folders_that_were_not_named_may_be_cut_short(
        run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strategies write them in place, unlike files."""
    (run_dir / 'iter_9.pth').mkdir()
    monkeypatch.setattr('_tiny.Runner', FlexibleRunner)
    run = resumed(run_dir)
    assert name(run) == 'iter_4.pth' and run.iter == 5


def test_none_that_loads_stops_the_run(run_dir: Path) -> None:
    for path in run_dir.glob('*.pth'):
        cut(path)
    before = {path: path.read_bytes() for path in run_dir.glob('*.pth')}
    run = runner(run_dir, iters=5, resume=True)
    with pytest.raises(CheckpointError, match='None of the 4 .*cannot be'):
        run.train()
    assert before == {p: p.read_bytes() for p in run_dir.glob('*.pth')}


def test_nothing_to_resume_from_is_said(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    point(tmp_path, str(tmp_path / 'iter_9.pth'))  # not there any more
    torch.save({}, tmp_path / 'trunk.pth')  # no run's
    run = runner(tmp_path, iters=1, resume=True, log_level='INFO')
    run.logger.addHandler(caplog.handler)
    run.train()
    assert run.iter == 1 and 'There is no checkpoint in' in caplog.text


def test_an_automatic_resume_keeps_where_a_run_starts(run_dir: Path,
                                                      tmp_path: Path) -> None:
    start = str(run_dir / 'iter_2.pth')
    fresh = runner(tmp_path / 'new', iters=1, resume='auto', load_from=start)
    fresh.load_or_resume()
    saved = torch.load(start, weights_only=False)['state_dict']
    assert same(fresh.model.state_dict(), saved)
    fresh.train()
    assert fresh.iter == 1  # its own, not those of the file
    again = runner(run_dir, iters=5, resume='auto', load_from=start)
    again.train()
    assert name(again) == 'iter_4.pth' and again.iter == 5


@pytest.mark.parametrize('settings', [
    dict(by_epoch=True),
    dict(by_epoch=True, filename_tmpl='run.{:03d}.pth'),
    dict(out_dir='elsewhere'),
    dict(max_keep_ckpts=1),
])
def test_names_and_folders_of_the_checkpoint_hook(
        settings: dict, tmp_path: Path) -> None:
    if 'out_dir' in settings:
        settings = dict(settings, out_dir=str(tmp_path / 'elsewhere'))
    run_dir = tmp_path / 'run'
    by_epoch = settings.get('by_epoch', False)
    cfg = dict(checkpoint=settings)
    if by_epoch:
        sampler = dict(type='DefaultSampler', shuffle=True)
        loader = runner(tmp_path)._train_dataloader
        cfg.update(
            train_dataloader=dict(loader, sampler=sampler, batch_size=8))

    def start(count: int, **kwargs) -> Runner:
        length = dict(by_epoch=False, max_iters=count)
        if by_epoch:
            length = dict(by_epoch=True, max_epochs=count)
        run = runner(run_dir, train_cfg=length, **cfg, **kwargs)
        run.train()
        return run

    start(2)
    (run_dir / 'last_checkpoint').unlink()
    again = start(3, resume=True)
    assert again.iter == 3 and '2.pth' in name(again)
    if 'max_keep_ckpts' in settings:  # as without the interruption
        assert listing(run_dir) == ['iter_3.pth']


def test_a_named_file_is_taken_as_it_is(run_dir: Path) -> None:
    run = resumed(run_dir, load_from=str(run_dir / 'iter_2.pth'))
    assert name(run) == 'iter_2.pth' and run.iter == 5
    torch.save(dict(state_dict={}), run_dir / 'weights.pth')
    with pytest.raises(CheckpointError, match='weights.pth holds no weights'):
        resumed(run_dir, load_from=str(run_dir / 'weights.pth'))


def test_a_resumed_run_has_what_was_saved(run_dir: Path) -> None:
    saved = torch.load(run_dir / 'iter_3.pth', weights_only=False)
    newest_cut(run_dir)
    run = runner(run_dir, iters=4, resume=True)
    run.load_or_resume()
    assert same(run.model.state_dict(), saved['state_dict'])
    assert run.iter == 3
    hub = saved['message_hub']['log_scalars']['train/loss'].data[0]
    assert (run.message_hub.get_scalar('train/loss').data[0] == hub).all()


def choose(rank: int, port: int, folder: str) -> None:
    import torch.distributed as dist

    from vim_mm.engine.resume import choose_checkpoint
    from vim_mm.utils.dist import leave_group
    dist.init_process_group(
        'gloo',
        init_method=f'tcp://127.0.0.1:{port}',
        rank=rank,
        world_size=2)
    # the second process is on a machine that sees other files
    places = [folder, f'{folder}/empty']
    for work_dir in (places[rank], places[1 - rank]):
        run = SimpleNamespace(
            work_dir=work_dir,
            hooks=[],
            _has_loaded=False,
            _resume=True,
            _load_from=None)
        choose_checkpoint(run)
        Path(folder, f'{work_dir == folder}{rank}').write_text(
            f'{run._load_from} {run._resume}')
    if rank == 0:
        for path in Path(folder).glob('*.pth'):
            path.write_bytes(b'')
    vars(run).update(work_dir=places[rank], _load_from=None, _resume=True)
    with pytest.raises(CheckpointError, match='None of'):
        choose_checkpoint(run)
    leave_group()


def test_all_processes_go_on_from_the_same_file(run_dir: Path) -> None:
    (run_dir / 'empty').mkdir()
    together(choose, str(run_dir))
    said = {p.name: p.read_text() for p in run_dir.glob('*e[01]')}
    newest = f'{run_dir}/iter_4.pth True'
    assert said == dict(
        True0=newest, False1=newest, False0='None False', True1='None False')


# --------------------------------------------------------------- best ones


class Scores(CheckpointHook):
    """Each iteration is better than the one before."""

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        super().after_train_iter(runner, *args, **kwargs)
        runner.train_loop._iter += 1  # as when validation comes
        scores = {key: float(runner.iter) for key in ('a/acc', 'b/acc')}
        self.after_val_epoch(runner, scores)
        runner.train_loop._iter -= 1


@pytest.mark.parametrize('keys', ['a/acc', ['a/acc', 'b/acc']])
def test_the_best_so_far_is_replaced_after_resuming(tmp_path: Path,
                                                    keys: object) -> None:
    settings = dict(type=Scores, save_best=keys, rule='greater')
    first = tmp_path / 'first' / 'run'
    runner(first, iters=2, checkpoint=settings).train()
    folder = tmp_path / 'run'
    shutil.copytree(first, folder)
    before = listing(first)
    resumed_run = runner(folder, iters=3, checkpoint=settings, resume=True)
    resumed_run.train()
    assert name(resumed_run) == 'iter_2.pth'
    best = [each for each in listing(folder) if each.startswith('best')]
    letters = ['a', 'b'] if isinstance(keys, list) else ['a']
    assert best == [f'best_{x}_acc_iter_3.pth' for x in letters]
    # those of the run that was copied are not this run's to remove
    assert listing(first) == before


def test_the_best_is_the_last_resort(run_dir: Path) -> None:
    (run_dir / 'iter_2.pth').rename(run_dir / 'best_acc_iter_2.pth')
    for step in (1, 3, 4):
        cut(run_dir / f'iter_{step}.pth')
    assert name(resumed(run_dir)) == 'best_acc_iter_2.pth'


# -------------------------------------------------------------------- text


# text that sets an attribute if it is run
FLAG = 'import builtins\nbuiltins.was_run = True\nmodel = dict()\n'


@pytest.mark.parametrize('key', ['config', 'cfg'])
def test_text_of_a_file_is_not_run(run_dir: Path, key: str) -> None:
    path = run_dir / 'iter_4.pth'
    saved = torch.load(path, weights_only=False)
    # what it would do if it was
    Config.fromstring(FLAG, file_format='.py')
    assert builtins.was_run
    del builtins.was_run
    saved['meta'][key] = FLAG
    saved['message_hub']['runtime_info'][key] = FLAG
    torch.save(saved, path)
    run = resumed(run_dir)
    assert name(run) == 'iter_4.pth' and run.iter == 5
    assert not hasattr(builtins, 'was_run')
    assert FLAG not in str(run.message_hub.runtime_info)


class Seeing(Hook):
    """Keeps what it was shown, before all other hooks but the guard."""

    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.checkpoint = checkpoint


def test_paths_and_text_of_a_file_are_dropped(run_dir: Path,
                                              tmp_path: Path) -> None:
    mine = tmp_path / 'mine.pth'
    mine.write_bytes(b'mine')
    best = tmp_path / 'best_mine.pth'
    best.write_bytes(b'mine')
    path = run_dir / 'iter_4.pth'
    saved = torch.load(path, weights_only=False)
    saved['meta'].update(seed='7', anything=str(mine))
    saved['message_hub']['runtime_info'].update(
        best_ckpt=str(mine),
        best_ckpt_b=str(best),
        best_score=-1.,
        last_ckpt=str(mine),
        keep_ckpt_ids=[f'../../{tmp_path.name}/mine'],
        curve=[1., 2., dict(x=3)],
        experiment_name='text')
    torch.save(saved, path)
    settings = dict(
        type=Scores,
        save_best='a/acc',
        rule='greater',
        max_keep_ckpts=1,
        filename_tmpl='{}.pth')
    seeing = Seeing()
    run = resumed(run_dir, checkpoint=settings, custom_hooks=[seeing])
    seen = seeing.checkpoint
    assert run.iter == 5
    assert mine.read_bytes() == best.read_bytes() == b'mine'
    assert seen['meta'].keys() <= {'epoch', 'iter', 'dataset_meta'}
    infos = seen['message_hub']['runtime_info']
    assert infos['curve'] == [1., 2., dict(x=3)] and infos['best_score'] == -1
    assert not {'best_ckpt', 'best_ckpt_b', 'last_ckpt', 'keep_ckpt_ids',
                'cfg', 'experiment_name'} & infos.keys()
    assert seen['message_hub']['resumed_keys'].keys() <= (
        infos.keys() | seen['message_hub']['log_scalars'].keys())


@pytest.mark.parametrize('notes', [
    dict(meta='text', message_hub='text'),
    dict(meta=dict(dataset_meta='text'), message_hub=dict(
        log_scalars='text', runtime_info=['text'], resumed_keys=None)),
    dict(),
])
def test_notes_of_another_form_are_dropped(run_dir: Path,
                                           notes: dict) -> None:
    file = dict(notes, state_dict={})
    keep_numbers(file, runner(run_dir))
    assert file['meta'] == {} and not any(file['message_hub'].values())
    torch.save(dict(notes, state_dict={}), run_dir / 'iter_4.pth')
    assert name(resumed(run_dir)) == 'iter_3.pth'


@pytest.mark.parametrize('value', [-1, 2**40, True, 1.5, '3', None, [3]])
@pytest.mark.parametrize('key', ['iter', 'epoch'])
def test_counters_are_counts(run_dir: Path, key: str, value: object) -> None:
    path = run_dir / 'iter_4.pth'
    saved = torch.load(path, weights_only=False)
    saved['meta'][key] = value
    torch.save(saved, path)
    run = runner(run_dir, iters=4, resume=True)
    run.load_or_resume()
    assert name(run) == 'iter_3.pth'


@pytest.mark.parametrize(('key', 'value'), [
    ('keep_ckpt_ids', 5), ('keep_ckpt_ids', [[1]]), ('keep_ckpt_ids', [-1]),
    ('keep_ckpt_ids', dict(a=1)), ('best_score', [1.]), ('best_score', None),
    ('best_score_a/acc', dict(a=1)), (VALIDATE, 2.5), (VALIDATE, [1]),
    (BATCHES, -3), (BATCHES, None), (STOPPED_AT, 1.5), (STOPPED_AT, [2]),
    (SAMPLER_SEED, -1), (SAMPLER_SEED, 2**70), ('max_iters', 'x')])
def test_numbers_of_another_form_are_dropped(run_dir: Path, key: object,
                                             value: object) -> None:
    path = run_dir / 'iter_4.pth'
    saved = torch.load(path, weights_only=False)
    saved['message_hub']['runtime_info'][key] = value
    torch.save(saved, path)
    settings = dict(type=Scores, save_best='a/acc', rule='greater',
                    max_keep_ckpts=2)
    run = resumed(run_dir, checkpoint=settings)
    assert name(run) == 'iter_4.pth' and run.iter == 5


OPTIMIZER = dict(state={}, param_groups=[])


@pytest.mark.parametrize('part', [
    *(dict(optimizer=value) for value in (
        *ODD_VALUES.values(), dict(OPTIMIZER, state=[]),
        dict(OPTIMIZER, state={0: 3}), dict(OPTIMIZER, param_groups=[3]),
        dict(OPTIMIZER, param_groups=[{}]), dict(param_groups=[]))),
    *(dict(param_schedulers=value) for value in (3, 'x', [1], dict(a=1))),
    *(dict(ema_state_dict=value) for value in (None, 3, 'x', [1])),
], ids=lambda part: f'{part}'[:40])
def test_parts_of_another_form_are_refused(part: dict) -> None:
    whole = dict(meta=dict(iter=1, epoch=0), message_hub={}, state_dict={})
    check_counters(whole, 'x.pth')
    check_counters(dict(whole, optimizer=OPTIMIZER, param_schedulers=[]),
                   'x.pth')
    name, = part
    with pytest.raises(CheckpointError, match=f'x.pth has .* `{name}`'):
        check_counters(dict(whole, **part), 'x.pth')


@pytest.mark.parametrize('seed', [-1, 2**40, True, 'x'])
def test_seeds_that_are_none_are_dropped(run_dir: Path, seed: object) -> None:
    path = run_dir / 'iter_4.pth'
    saved = torch.load(path, weights_only=False)
    saved['meta']['seed'] = seed
    torch.save(saved, path)
    assert resumed(run_dir).seed == 0


@pytest.mark.parametrize('step', [4, 5, 2**31])
def test_a_run_that_is_over_ends_at_once(run_dir: Path, step: int) -> None:
    path = run_dir / 'iter_4.pth'
    saved = torch.load(path, weights_only=False)
    saved['meta']['iter'] = step
    torch.save(saved, path)
    run = runner(run_dir, iters=4, resume=True)
    run.train()
    assert same(run.model.state_dict(), saved['state_dict'])


# ---------------------------------------------------------------- schedules


def cosine(end: int, **kwargs: object) -> dict:
    return dict(param_scheduler=dict(
        type='CosineAnnealingLR', by_epoch=False, T_max=end, **kwargs))


@pytest.mark.parametrize(('first', 'then', 'said'), [
    (cosine(4), cosine(8), 'CosineAnnealingLR has `T_max` 4, and .* 8'),
    (cosine(4), cosine(4, eta_min=1e-5), '`eta_min` 0'),
    (cosine(4), dict(param_scheduler=[
        dict(type='LinearLR', by_epoch=False, end=2), *cosine(4).values()]),
     'a run with 1 parameter schedulers, and the config has 2'),
    (dict(param_scheduler=dict(
        type='MultiStepLR', by_epoch=False, milestones=[2])),
     dict(param_scheduler=dict(
         type='MultiStepLR', by_epoch=False, milestones=[3])), 'milestones'),
])
def test_another_schedule_is_refused(tmp_path: Path, first: dict, then: dict,
                                     said: str) -> None:
    runner(tmp_path, iters=2, **first).train()
    before = {p: p.read_bytes() for p in tmp_path.glob('*.pth')}
    with pytest.raises(CheckpointError, match=said):
        runner(tmp_path, iters=8, resume=True, **then).train()
    assert before == {p: p.read_bytes() for p in tmp_path.glob('*.pth')}


@pytest.mark.parametrize('settings', [
    cosine(4), dict(param_scheduler=dict(
        type='MultiStepLR', by_epoch=False, milestones=[1, 3]))])
def test_a_longer_run_of_the_same_schedule(tmp_path: Path,
                                           settings: dict) -> None:
    """mmengine would end the schedule where the shorter run would end."""
    runner(tmp_path, iters=3, **settings).train()
    (tmp_path / 'iter_3.pth').unlink()
    again = runner(tmp_path, iters=5, resume=True, **settings)
    again.train()
    whole = runner(tmp_path / 'whole', iters=5, **settings)
    whole.train()
    assert same(again.model.state_dict(), whole.model.state_dict())


def test_rates_of_the_file_are_used_and_said(
        run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = runner(run_dir, iters=5, resume=True, lr=0.5)
    run.logger.addHandler(caplog.handler)
    run.train()
    assert 'has `lr` 0.005, which is used, and not the 0.5' in caplog.text
    assert run.optim_wrapper.get_lr()['lr'] == [0.005]
