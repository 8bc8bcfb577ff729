# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The proxy space learns before the student, from what is stored."""

import json
from pathlib import Path

import cv2
import pytest
import torch
from _processes import WORLD, join, together
from _tdmr import build, config, runner, student
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from _runs import Asks, stopped
from _tiny import DIMS, SIZE, fill, same, snapshot
from vim_mm.datasets import Views, views_of
from vim_mm.engine.hooks import ProxyHook
from vim_mm.engine.proxy_training import batches, labels_of, student_features
from vim_mm.features.shards import StoreError
from vim_mm.features.source import source_of
from vim_mm.features.store import FeatureStore
from vim_mm.registry import MODELS


def prepared(folder: Path, *args, **hook):
    """A run after its first stage."""
    run = runner(folder, *args)
    ProxyHook(**dict(dict(epochs=1), **hook)).before_train(run)
    return run


def files(store: Path) -> set:
    return {path.name for path in store.rglob('*.safetensors')}


# ------------------------------------------------------------- the store


def test_other_runs_add_only_what_is_missing(tmp_path):
    store = tmp_path / 'store'
    seen = []
    wanted = [(['vit'], 1), (['vit', 'cnn'], 2), (['cnn'], 2), (['vit'], 3)]
    for index, (names, views) in enumerate(wanted):
        run = runner(tmp_path / str(index), config(names=names), views=views)
        model, look = run.model, run.model.look
        for outside in model.outside.values():
            fill(outside.network.backbone, 0.1)
        calls = []
        model.look = lambda inputs, samples, only: calls.extend(
            only * len(inputs)) or look(inputs, samples, only)
        ProxyHook(epochs=1, store=str(store)).before_train(run)
        seen.append((calls.count('vit'), calls.count('cnn')))
    # views of eight images
    assert seen == [(8, 0), (8, 16), (0, 0), (8, 0)]
    assert len(files(store / 'vit')) == 3 and len(files(store / 'cnn')) == 1


@pytest.mark.parametrize('where,words', [
    ('trunk', "vit' holds features with another trunk"),
    ('position', 'another modules'),
    ('normaliser', 'another normalizer'),
    ('model', 'another model'),
    ('cv2', 'another cv2 \\(4.*, here 0.1\\)'),
    ('dtype', 'another dtype \\(float32, here float16\\)'),
    ('seed', 'another view_seed \\(0, here 3\\)'),
    ('pipeline', 'another pipeline'),
])
def test_a_store_of_another_source_is_refused(tmp_path, where, words,
                                              monkeypatch):
    store = str(tmp_path / 'store')
    prepared(tmp_path / 'a', store=store)
    before = files(tmp_path / 'store')
    model = config()
    hook = dict(epochs=1, store=store)
    if where == 'normaliser':
        model['foundations']['vit']['model']['data_preprocessor']['std'] = [
            9.] * 3
    if where == 'model':
        model['foundations']['vit']['model']['backbone']['final_norm'] = True
    if where == 'dtype':
        hook['dtype'] = 'float16'
    run = runner(tmp_path / 'b', model)
    vit = run.model.outside['vit'].network.backbone
    dataset = run.train_dataloader.dataset
    if where == 'trunk':
        fill(vit.layers[1].attn.proj)
    if where == 'position':
        vit.pos_embed.data += 1
    if where == 'cv2':
        monkeypatch.setattr(cv2, '__version__', '0.1')
    if where == 'seed':
        dataset.seed = 3
    if where == 'pipeline':
        dataset.pipelines = [[dict(type='Resize')]]
    with pytest.raises(StoreError, match=words):
        ProxyHook(**hook).before_train(run)
    assert files(tmp_path / 'store') == before


def test_the_source_does_not_depend_on_where_weights_lie(tmp_path):
    model = build()
    views = runner(tmp_path).train_dataloader.dataset
    cfg = model.foundations['vit']
    plain = source_of(cfg, model.outside['vit'], views, 'float32')
    other = json.loads(json.dumps(cfg))
    other['model']['backbone']['init_cfg'] = dict(
        type='Pretrained', checkpoint='/elsewhere.pth')
    other['checkpoint'] = 'x.pth'
    other['model']['head'] = dict(type='LinearClsHead')
    assert source_of(other, model.outside['vit'], views, 'float32') == plain
    assert all(isinstance(value, str) for value in plain.values())


def test_a_resumed_run_fills_a_store_that_is_gone(tmp_path):
    hook = dict(type='vim_mm.ProxyHook', epochs=2, store=str(tmp_path / 's'))
    runner(tmp_path / 'a', iters=2, hooks=[hook]).train()
    there = files(tmp_path / 's')
    for path in (tmp_path / 's').rglob('*.safetensors'):
        path.unlink()
    run = runner(tmp_path / 'a', iters=4, hooks=[hook], resume=True)
    run.train()
    assert files(tmp_path / 's') == there
    assert run.model.recall is not None


@pytest.mark.parametrize('what,words', [
    ('no views', 'training set is a Flipped; wrap it'),
    ('mixing', 'mixes images of a batch'),
    ('padding', 'is padded to the size of its batch'),
    ('a file', 'is, a file; name a folder'),
])
def test_what_cannot_be_stored_is_refused(tmp_path, what, words, monkeypatch):
    run = runner(tmp_path / 'run')
    loader = run.train_dataloader
    store = tmp_path / 'store'
    if what == 'no views':
        object.__setattr__(loader, 'dataset', loader.dataset.dataset)
    if what == 'mixing':
        run.model.data_preprocessor.batch_augments = lambda *args: args
    if what == 'padding':
        meta = BaseDataElement.metainfo.fget
        monkeypatch.setattr(
            BaseDataElement, 'metainfo',
            property(lambda self: dict(meta(self), img_shape=(SIZE, SIZE - 1))
                     ))
    if what == 'a file':
        store.write_text('x')
    with pytest.raises(ValueError, match=words):
        ProxyHook(epochs=1, store=str(store)).before_train(run)
    assert not files(tmp_path)
    assert not any(path.suffix == '.draft' for path in tmp_path.rglob('.*'))


def test_refuses_other_models(tmp_path):
    run = runner(tmp_path, student(), hooks=[])
    with pytest.raises(ValueError, match='ProxyHook is for a TDMRDistiller'):
        ProxyHook().before_train(run)


# ------------------------------------------------------------- stage one


@pytest.mark.parametrize('kind', ['cls', 'seg'])
@pytest.mark.parametrize('norm', ['LN', 'BN'])
def test_the_proxy_space_learns_the_task(tmp_path, kind, norm):
    run = runner(
        tmp_path, config(kind, ['cnn', 'vit'], proxy=dict(norm=norm)), kind)
    ProxyHook(epochs=30).before_train(run)
    report = run.message_hub.get_info('proxy')
    chance = 0.5 if kind == 'cls' else 0.8  # most places are background
    assert report['accuracy'] > chance
    assert report['params'] == sum(
        p.numel() for p in run.model.proxy.parameters())
    assert report['seconds'] > 0


def test_channels_are_standardised_on_the_training_set(tmp_path):
    run = prepared(tmp_path, config(names=['cnn', 'vit']), epochs=0)
    model, dataset = run.model, run.train_dataloader.dataset
    rows = torch.cat([
        model.tokens(model.look(**data)) for _, data in batches(
            run, model, dataset, list(range(len(dataset))))
    ])[:, 0]
    torch.testing.assert_close(model.proxy.mean, rows.mean(0))
    deviation = rows.double().std(0, correction=0)
    dead = deviation < 1e-6
    assert 0 < dead.sum() < len(dead)
    torch.testing.assert_close(
        model.proxy.std.double(),
        deviation.masked_fill(dead, 1.),
        rtol=1e-3,
        atol=1e-5)
    assert model.proxy.fitted


def test_labels_follow_the_data_set(tmp_path):
    run = runner(tmp_path / 'cls')
    example = dict(vit=torch.zeros(1, DIMS))
    labels = labels_of(run, run.model, run.train_dataloader.dataset, example)
    assert labels.flatten().tolist() == [0, 1] * 8
    run = runner(tmp_path / 'seg', config('seg'), 'seg')
    dataset = run.train_dataloader.dataset
    example = dict(vit=torch.zeros(1, DIMS, 4, 4))
    labels = labels_of(run, run.model, dataset, example)
    assert labels.shape == (16, 16) and set(labels.unique().tolist()) == {0, 1}


def test_images_of_several_classes_are_refused(tmp_path):
    run = runner(tmp_path)
    dataset = run.train_dataloader.dataset
    dataset.dataset.samples[3]['data_samples'].set_gt_label([0, 1])
    with pytest.raises(ValueError, match='one class each'):
        labels_of(run, run.model, dataset, dict(vit=torch.zeros(1, DIMS)))


@pytest.mark.parametrize('kind', ['cls', 'seg'])
@pytest.mark.parametrize('loss', ['LinearCKA', 'MMD'])
def test_the_domain_term_draws_the_space_to_the_student(
        tmp_path, loss, kind):
    found = {}
    width = DIMS if kind == 'cls' else 16
    for domain in (0., 20.):
        run = prepared(
            tmp_path / str(domain),
            config(kind, proxy=dict(channels=width)),
            kind,
            epochs=40,
            domain=domain,
            domain_loss=dict(type=f'vim_mm.{loss}'))
        model, dataset = run.model, run.train_dataloader.dataset
        with torch.no_grad():
            space = torch.cat([
                model.proxy(model.tokens(model.look(**data)))
                for _, data in batches(run, model, dataset,
                                       list(range(len(dataset))))
            ])
        starts = student_features(
            run, model, lambda indices: dict(vit=torch.zeros(1, 1, 4, 4)))
        criterion = MODELS.build(dict(type=f'vim_mm.{loss}'))
        found[domain] = float(criterion(space, starts))
    assert found[20.] < found[0.]


def test_random_numbers_of_the_run_stay(tmp_path):
    run = runner(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    ProxyHook(epochs=2, store=str(tmp_path / 's')).before_train(run)
    assert torch.equal(torch.rand(3), expected)


# --------------------------------------------------------- two processes


def train(rank: int, port: int, folder: str, extra: dict) -> None:
    import vim_mm  # noqa: F401, prepares the stack
    from vim_mm.utils.dist import leave_group
    from vim_mm.utils.wrappers import unwrap
    cfg = join(rank, port)
    hooks = [
        dict(type='vim_mm.ProxyHook', epochs=3, store=f'{folder}/store'),
        dict(type='vim_mm.CostHook')
    ]

    def build(name: str, **kwargs) -> Runner:
        return runner(
            Path(folder, name),
            config(names=['cnn', 'vit'], **extra),
            hooks=hooks,
            launcher='pytorch',
            env_cfg=cfg.env_cfg,
            randomness=dict(seed=0, diff_rank_seed=False),
            experiment_name=f'two{name}{len(kwargs)}',
            cfg=dict(model_wrapper_cfg=cfg.model_wrapper_cfg),
            **kwargs)

    run = build('')
    run.train()
    torch.save(snapshot(unwrap(run.model)), f'{folder}/rank{rank}.pth')
    for signalled, point in enumerate(ASKED):
        first = build(point)
        if rank == signalled:
            first.register_hook(Asks(point, signalled))
        stopped(first)
        again = build(point, resume='auto')
        again.train()
        torch.save(
            snapshot(unwrap(again.model)), f'{folder}/{point}{rank}.pth')
    leave_group()


#: Where a process gets a signal: the first before the proxy space learns.
ASKED = ('before_train', 'before_train_iter')


@pytest.mark.slow
def test_two_processes_share_the_store_and_the_proxy_space(tmp_path):
    extra = dict(
        cotrain=True, share_classifier=True, proxy=dict(channels=DIMS))
    together(train, str(tmp_path), extra)
    ranks = [torch.load(tmp_path / f'rank{rank}.pth') for rank in range(WORLD)]
    learned = [{
        key: value
        for key, value in state.items() if 'running_' not in key
    } for state in ranks]
    assert same(*learned)
    for point in ASKED:
        for rank, state in enumerate(ranks):
            again = torch.load(tmp_path / f'{point}{rank}.pth')
            assert same(again, state), point
    report = json.loads((tmp_path / 'cost.json').read_text())
    assert report['networks'] == {
        name: dict(forwards=16, backwards=0)
        for name in ('cnn', 'vit')
    }
    assert len(files(tmp_path / 'store' / 'vit')) == 2  # one of each process
    run = runner(tmp_path / 'one', config(names=['vit', 'cnn']))
    dataset = run.train_dataloader.dataset
    store = FeatureStore(
        tmp_path / 'store' / 'vit',
        json.loads((tmp_path / 'store' / 'vit' / 'card.json').read_text()))
    assert isinstance(dataset, Views) and len(store) == 16
    sample = dataset[13]['data_samples']
    assert views_of([sample])[0] == store.known('#5', 1)


@pytest.mark.parametrize(('epochs', 'logits', 'said'), [
    (0, 1., True), (0, 0., False), (1, 1., False)])
def test_logits_of_a_space_that_learned_nothing(
        epochs: int, logits: float, said: bool, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path, config('cls', ['cnn'],
                                  schedule=dict(logits=logits)))
    told = []
    monkeypatch.setattr(run.logger, 'warning', told.append)
    ProxyHook(epochs=epochs).before_train(run)
    assert any('have learned nothing' in each for each in told) == said


@pytest.mark.parametrize('dtype', ['int8', 'bool', 'fp16', 'Tensor', None])
def test_features_are_kept_with_their_digits(dtype: str) -> None:
    with pytest.raises(ValueError, match='`ProxyHook.dtype` is .*float32'):
        ProxyHook(dtype=dtype)
    ProxyHook(dtype='bfloat16')
