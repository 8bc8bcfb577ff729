# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What TDMR promises, from what learns to what is saved."""

import json
from pathlib import Path

import pytest
import torch
from _tdmr import FOUNDATIONS, build, config, foundation, runner, student
from mmengine.registry import MODELS as ROOT
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from _tiny import DIMS, Pictures, losses, same, snapshot, vit
from vim_mm.datasets import Views
from vim_mm.engine.hooks import ProxyHook
from vim_mm.engine.hooks.cost_hook import watch
from vim_mm.models.distillers import (MMD, AFTLoss, CosineSmoothL1, LinearCKA,
                                      NormalizedMSE, Schedule)
from vim_mm.registry import MODELS

AFT = dict(
    proxy=dict(reprogram=False, standardize=False),
    feature_loss=dict(type='vim_mm.AFTLoss'),
    schedule=dict(kind='constant', feature=10., logits=0.))
COTRAIN = dict(cotrain=True, share_classifier=True, proxy=dict(channels=DIMS))


def cost(run: Runner) -> dict:
    return json.loads((Path(run.work_dir) / 'cost.json').read_text())


def with_cost(store=None, **kwargs) -> list:
    hook = dict(type='vim_mm.ProxyHook', epochs=10, **kwargs)
    if store is not None:
        hook['store'] = str(store)
    return [hook, dict(type='vim_mm.CostHook')]


def batch(model, kind: str = 'cls', views: int = 1) -> dict:
    pictures = Views(Pictures(kind), views=views)
    items = [pictures[index] for index in range(8)]
    return model.data_preprocessor(
        {key: [item[key] for item in items]
         for key in items[0]}, True)


# ------------------------------------------------------------ 1: frozen


@pytest.mark.parametrize('extra', [{}, COTRAIN, AFT])
@pytest.mark.parametrize('stored', [True, False])
def test_1_foundation_models_stay_bit_identical_and_see_no_gradient(
        tmp_path, extra, stored):
    run = runner(
        tmp_path,
        config(names=['cnn', 'vit'], **extra),
        hooks=with_cost(tmp_path / 'store' if stored else None))
    networks = [each.network for each in run.model.outside.values()]
    before = [snapshot(network) for network in networks]
    run.train()
    for network, tensors in zip(networks, before):
        assert same(snapshot(network), tensors)
        assert all(p.grad is None for p in network.parameters())
        assert not any(m.training for m in network.modules())
    report = cost(run)
    assert report['backwards'] == 0
    # 16 views: once each; without a store also in four steps of four
    per_network = 16 if stored else 32
    assert report['forwards'] == 2 * per_network
    assert report['networks']['cnn'] == dict(
        forwards=per_network, backwards=0)


def test_1_the_count_of_backward_passes_counts():
    network, counts = ROOT.build(FOUNDATIONS['vit']), dict(
        forwards=0, backwards=0)
    handles = watch(network, counts)
    inputs = torch.randn(3, 3, 56, 56, requires_grad=True)
    network(inputs)[-1].sum().backward()
    assert counts == dict(forwards=3, backwards=3)
    for handle in handles:
        handle.remove()
    network(inputs)
    assert counts['forwards'] == 3


# --------------------------------------------------- 2: cached is live


@pytest.mark.parametrize('kind', ['cls', 'seg'])
def test_2_stored_features_are_the_live_ones_of_the_same_view(tmp_path, kind):
    runs = {}
    for name, store in (('live', None), ('cold', 'store'), ('warm', 'store')):
        run = runner(
            tmp_path / name,
            config(kind, ['cnn', 'vit']),
            kind,
            hooks=with_cost(store and tmp_path / store))
        run.train()
        runs[name] = run
    for name in ('cold', 'warm'):
        torch.testing.assert_close(losses(runs[name]), losses(runs['live']))
        for key, value in runs['live'].model.state_dict().items():
            torch.testing.assert_close(runs[name].model.state_dict()[key],
                                       value)
    assert cost(runs['cold'])['forwards'] == 32
    assert cost(runs['warm'])['forwards'] == 0
    # view by view
    model = runs['warm'].model
    data = batch(model, kind)
    dataset = runs['warm'].train_dataloader.dataset
    items = [dataset[index] for index in (3, 12, 9)]
    data = model.data_preprocessor(
        {key: [item[key] for item in items]
         for key in items[0]}, True)
    live, stored = model.look(**data), model.recall(data['data_samples'])
    assert live.keys() == stored.keys() == {'cnn', 'vit'}
    for name in live:
        torch.testing.assert_close(stored[name], live[name])


@pytest.mark.parametrize('field,value,words', [
    ('view_id', 1, 'but of other pixels'),
    ('view_id', 5, 'no features of view 5'),
    ('sample_id', '#2', 'but of other pixels'),
])
def test_2_a_shifted_view_is_refused(tmp_path, field, value, words):
    run = runner(tmp_path, hooks=with_cost(tmp_path / 'store'), iters=1)
    run.train()
    item = run.train_dataloader.dataset[0]
    data = run.model.data_preprocessor({k: [v] for k, v in item.items()}, True)
    run.model.loss(**data)
    data['data_samples'][0].set_metainfo({field: value})
    with pytest.raises(ValueError, match=words):
        run.model.loss(**data)


# ----------------------------------------------------- 3: what learns


def changed(before: dict, after: dict) -> set:
    return {
        key.partition('.')[0]
        for key in before if not torch.equal(before[key], after[key])
    }


def test_3_stage_one_trains_the_proxy_alone(tmp_path):
    run = runner(tmp_path, config(names=['cnn', 'vit']))
    before = snapshot(run.model)
    ProxyHook(epochs=3).before_train(run)
    after = snapshot(run.model)
    assert changed(before, after) == {'proxy'}
    same_as = [k for k in before if torch.equal(before[k], after[k])]
    assert not any(key.startswith('proxy') for key in same_as)
    assert not any(p.requires_grad for p in run.model.proxy.parameters())


def test_3_stage_two_trains_the_student_with_the_proxy_frozen(tmp_path):
    run = runner(tmp_path)
    run.train()
    model = run.model.train()
    assert not model.proxy.training
    before = snapshot(model)
    data = batch(model)
    sum(v for k, v in model.loss(**data).items() if 'loss' in k).backward()
    assert all(p.grad is None for p in model.proxy.parameters())
    for part in (model.student, model.projector):
        assert all(p.grad is not None for p in part.parameters())
    assert same(snapshot(model.proxy), {
        key[6:]: value
        for key, value in before.items() if key.startswith('proxy.')
    })


def test_3_with_cotraining_the_reprogramming_learns(tmp_path):
    run = runner(tmp_path, config(**COTRAIN), iters=1)
    run.train()
    model = run.model
    start = snapshot(model.proxy)
    found = model.loss(**batch(model))
    assert 'loss_proxy' in found
    sum(v for k, v in found.items() if 'loss' in k).backward()
    grads = {n: p.grad for n, p in model.proxy.named_parameters()}
    shared = {n for n, grad in grads.items() if grad is None}
    assert shared == {'classifier.weight', 'classifier.bias'}
    assert all(g.abs().sum() > 0 for n, g in grads.items() if n not in shared)
    assert same(snapshot(model.proxy), start)


def test_3_a_shared_classifier_starts_as_the_proxy_classifier(tmp_path):
    run = runner(tmp_path, config(**COTRAIN), iters=1, lr=1e-12)
    run.train()
    torch.testing.assert_close(run.model.classifier.weight,
                               run.model.proxy.classifier.weight)


# ------------------------------------------------- 4: what is left over


@pytest.mark.parametrize('kind', ['cls', 'seg'])
def test_4_the_student_is_saved_alone_and_is_a_plain_model(tmp_path, kind):
    run = runner(tmp_path, config(kind, ['cnn', 'vit']), kind)
    run.train()
    file = torch.load(tmp_path / 'student' / 'student.pth')
    plain = ROOT.build(student(kind))
    assert file['state_dict'].keys() == plain.state_dict().keys()
    plain.load_state_dict(file['state_dict'])
    inputs = torch.randn(2, 3, 56, 56)
    run.model.eval(), plain.eval()
    assert torch.equal(plain(inputs), run.model(inputs))
    checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
    assert checkpoint['state_dict'].keys() == plain.state_dict().keys()


@pytest.mark.parametrize('channels,family', [(DIMS, 'vit'), (64, 'cnn')])
def test_4_no_projector_where_the_widths_agree(channels, family):
    model = build(proxy=dict(channels=channels), family=family)
    assert not list(model.projector.parameters())
    x = torch.randn(2, 1, channels)
    assert torch.equal(model.projector(x), x)
    other = build(proxy=dict(channels=channels + 1), family=family)
    assert other.projector.weight.shape == (channels + 1, channels)


def test_4_a_run_goes_on_with_its_proxy_space(tmp_path):
    half = runner(tmp_path, iters=2)
    half.train()
    # it is not trained again
    resumed = runner(tmp_path, iters=4, proxy=dict(epochs=10**9), resume=True)
    resumed.train()
    assert same(snapshot(resumed.model.proxy), snapshot(half.model.proxy))
    assert resumed.model.progress == 0.75


# -------------------------------------------------------- 5: the losses


@pytest.mark.parametrize('loss', [
    CosineSmoothL1(cosine=1., smooth_l1=0.),
    NormalizedMSE(),
    LinearCKA(),
    LinearCKA(unbiased=False),
    MMD()
])
def test_5_identical_features_lose_nothing(loss):
    x = torch.randn(16, 1, 8)
    assert float(loss(x, x)) == pytest.approx(0, abs=1e-5)
    assert float(loss(x, torch.randn(16, 1, 8))) > 0.01


@pytest.mark.parametrize('unbiased', [True, False])
def test_5_cka_knows_neither_rotation_nor_scale(unbiased):
    loss = LinearCKA(unbiased)
    x, y = torch.randn(20, 1, 8), torch.randn(20, 1, 8)
    turn = torch.linalg.qr(torch.randn(8, 8))[0]
    assert float(loss(x, 3 * x @ turn)) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(loss(.1 * y @ turn, x), loss(y, x))


@pytest.mark.parametrize('scale', [.5, 3.])
def test_5_lengths_do_not_count_where_they_should_not(scale):
    x = torch.randn(6, 2, 8)
    for loss in (NormalizedMSE(), CosineSmoothL1(1., 0.)):
        assert float(loss(x, scale * x)) == pytest.approx(0, abs=1e-5)
    # of length one, the squared distance is twice one minus the cosine
    y = torch.randn(6, 2, 8)
    torch.testing.assert_close(NormalizedMSE()(x, y),
                               2 * CosineSmoothL1(1., 0.)(x, y))


def test_5_aft_by_its_formula():
    x, y = torch.randn(5, 1, 4), torch.randn(5, 1, 6)
    loss = AFTLoss(6)
    with torch.no_grad():
        loss.weights.normal_()

    def kernel(rows):
        rows = rows - rows.mean(0)
        rows = rows / rows.norm(dim=1, keepdim=True)
        return torch.tensor([[float(a @ b) for b in rows] for a in rows])

    difference = kernel(x[:, 0]) - kernel(
        y[:, 0] / (1 + (-loss.weights.detach()).exp()))
    torch.testing.assert_close(
        loss(x, y).detach(),
        difference.square().mean().sqrt())
    loss(x, y).backward()
    assert loss.weights.grad.abs().sum() > 0
    even = AFTLoss(4)  # sigmoids that are alike change no angle
    assert float(even(x, x).detach()) == pytest.approx(0, abs=1e-5)
    even(x, x).backward()
    assert torch.isfinite(even.weights.grad).all()


def test_5_mmd_grows_with_the_distance_of_the_sets():
    x, loss = torch.randn(64, 1, 4), MMD()
    near, far = loss(x, torch.randn(64, 1, 4)), loss(x, x + 2)
    assert float(near) < 0.1 < float(far)
    with pytest.raises(ValueError, match='4 and 5 channels'):
        loss(x, torch.randn(64, 1, 5))


# ------------------------------------------------------ 6: the schedule


@pytest.mark.parametrize('progress,feature,logits', [
    (0., 1., 0.),
    (.2999, 1., 0.),
    (.3001, 1. - .0001 / .7, 1. - .0001 / .7),
    (.65, .5, .5),
    (1., 0., 0.),
])
def test_6_progressive_weights(progress, feature, logits):
    assert Schedule().at(progress) == pytest.approx((feature, logits))
    assert Schedule(kind='reversed').at(
        1 - progress) == pytest.approx((feature, logits))
    assert Schedule(feature=3., logits=.5).at(progress) == pytest.approx(
        (3 * feature, .5 * logits))


@pytest.mark.parametrize('progress', [0., .3, .7, 1.])
def test_6_other_schedules(progress):
    assert Schedule(kind='constant').at(progress) == (1., 1.)
    assert Schedule(first=0.).at(progress) == pytest.approx(
        (1 - progress, 1 - progress))
    assert Schedule(logits=0.).at(progress)[1] == 0
    assert Schedule(feature=0.).at(progress)[0] == 0


@pytest.mark.parametrize('progress', [0., .3, .7, 1.])
def test_6_the_tasks_own_loss_always_counts_once(progress):
    model = build()
    model.proxy.fitted.fill_(1)
    model.progress = progress
    data = batch(model)
    found = model.loss(**data)
    own = model.student(**data, mode='loss')
    torch.testing.assert_close(found['loss'], own['loss'])
    feature, logits = model.schedule.at(progress)
    assert (float(found['loss_feature']) > 0) == (feature > 0)
    assert (float(found['loss_logits']) > 0) == (logits > 0)


def test_6_the_run_tells_the_schedule(tmp_path):
    run, seen = runner(tmp_path, iters=8), []
    at = run.model.schedule.at
    run.model.schedule.at = lambda progress: seen.append(progress) or at(
        progress)
    run.train()
    assert seen == [index / 8 for index in range(8)]


# --------------------------------------------------- 7: student alone


@pytest.mark.parametrize('kind', ['cls', 'seg'])
def test_7_without_weights_it_is_plain_training(tmp_path, kind):
    init_default_scope('mmpretrain' if kind == 'cls' else 'mmseg')
    path = tmp_path / 'start.pth'
    torch.save(dict(state_dict=ROOT.build(student(kind)).state_dict()), path)
    runs = []
    alone = config(kind, schedule=dict(feature=0., logits=0.))
    for name, model, hooks in (('plain', student(kind), []), ('none', alone,
                                                              None)):
        run = runner(
            tmp_path / name, model, kind, hooks=hooks, load_from=str(path))
        run.train()
        runs.append(run)
    plain, none = runs
    assert torch.equal(losses(plain), losses(none))
    assert same(plain.model.state_dict(), none.model.state_dict())
    assert not none.model.projector


# --------------------------------------------- 8: any model, any student


@pytest.mark.parametrize('family', ['cnn', 'vit'])
@pytest.mark.parametrize('names', [['cnn'], ['vit'], ['hybrid'],
                                   ['vit', 'cnn'], ['hybrid', 'cnn', 'vit']])
def test_8_any_foundation_models_and_students(names, family):
    model = build(names=names, family=family)
    model.proxy.fitted.fill_(1)
    found = model.loss(**batch(model))
    assert all(torch.isfinite(value) for value in found.values())
    width = len(model.proxy.mean)
    mlp = width * 24 + 24 + 2 * 24 + 24 * 24 + 24
    assert sum(p.numel() for p in model.proxy.parameters()) == \
        mlp + 24 * 2 + 2


def test_8_all_kinds_of_setting_learn(tmp_path):
    hint = dict(
        proxy=dict(reprogram=False),
        feature_loss=dict(type='vim_mm.NormalizedMSE'),
        schedule=dict(kind='constant', logits=0.))
    probe = dict(
        proxy=dict(reprogram=False),
        schedule=dict(kind='constant', feature=0.))
    cka = dict(feature_loss=dict(type='vim_mm.LinearCKA'))
    norm = dict(proxy=dict(channels=8, hidden=40, norm='BN'))
    for index, extra in enumerate((hint, probe, cka, norm, AFT)):
        run = runner(tmp_path / str(index), config(**extra), iters=2)
        run.train()
        assert torch.isfinite(losses(run)).all()
        if extra is AFT:
            assert run.model.feature_loss.weights.abs().sum() > 0


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize('extra,words', [
    (dict(foundations={}), 'is empty'),
    (dict(foundations='x'), 'give a config'),
    (dict(foundations=dict(a=dict(model=dict(type='x'), extra=1))),
     'foundations.a'),
    (dict(share_classifier=True), 'needs `cotrain=True`'),
    (dict(share_classifier=True, cotrain=True), 'proxy.channels=32'),
    (dict(proxy=dict(norm='GN')), 'proxy.norm'),
    (dict(proxy=dict(width=3)), 'takes no width'),
    (dict(schedule=dict(kind='linear')), 'schedule.kind'),
    (dict(schedule=dict(first=1.)), 'schedule.first'),
    (dict(schedule=dict(feature=-1.)), 'schedule.feature'),
    (dict(schedule=dict(start=0)), 'takes no start'),
    (dict(feature_loss='CKA'), 'give a config'),
])
def test_refuses_settings(extra, words):
    with pytest.raises(ValueError, match=words):
        build(**extra)


def test_refuses_students_and_features_that_do_not_fit():
    with pytest.raises(ValueError, match='FCOS without a linear layer'):
        build('det')
    with pytest.raises(ValueError, match='cotrain. is for classifiers'):
        build('seg', cotrain=True)
    vector = foundation('vit')
    vector['model']['backbone'] = vit(out_indices=[2], out_type='cls_token')
    build(foundations=dict(a=vector))
    with pytest.raises(ValueError, match='maps are needed'):
        build('seg', foundations=dict(a=vector))
    raw = foundation('vit')
    raw['model']['backbone'] = vit(out_indices=[2], out_type='raw')
    with pytest.raises(ValueError, match='maps or vectors are needed'):
        build(foundations=dict(a=raw))
    bare = foundation('vit')
    del bare['model']['data_preprocessor']['mean']
    del bare['model']['data_preprocessor']['std']
    with pytest.raises(ValueError, match='how its images are normalised'):
        build(foundations=dict(a=bare))


def test_refuses_a_proxy_space_without_training():
    model = MODELS.build(config())
    with pytest.raises(ValueError, match='vim_mm.ProxyHook'):
        model.loss(**batch(model))


def test_refuses_images_without_labels():
    model = build()
    data = batch(model)
    data['data_samples'][3].set_metainfo(dict(soft_only=True))
    with pytest.raises(ValueError, match='`soft_only`'):
        model.loss(**data)
