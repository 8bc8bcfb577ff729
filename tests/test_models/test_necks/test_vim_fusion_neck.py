# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Streams weighed into a pyramid, alone and inside three kinds of model."""

import copy

import pytest
import torch
from torch import Tensor

from _tiny import (KINDS, Pictures, add_modules, build_model, fill,
                   fusion_neck, same, snapshot, vit)
from vim_mm.engine.model_parts import fusing_part
from vim_mm.models.necks import ViMFusionNeck
from vim_mm.registry import MODELS


def stream(seed: int, channels: tuple = (4, 6), size: int = 8) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(2, c, size, size + 2, generator=generator)
        for c in channels)


def test_the_weighted_sum_per_level() -> None:
    neck = ViMFusionNeck([4, 6], scales=[1, 1], modules=['a', 'b', 'c'])
    logits = torch.randn(2, 3)
    neck.fusion.set_logits('default', logits)
    streams = [stream(k) for k in range(3)]
    for level, output in enumerate(neck(streams)):
        gates = logits[level].softmax(0)
        expected = sum(g * s[level] for g, s in zip(gates, streams))
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize('shape', [(2, 4), (2, 7, 4), (2, 4, 3, 5)])
@pytest.mark.parametrize('kind', ['EnsMoE', 'LinearMoE', 'RoutedMoE'])
def test_vectors_tokens_and_maps(kind: str, shape: tuple) -> None:
    neck = ViMFusionNeck([4], scales=[1], modules=['a', 'b'],
                         fusion=dict(type=kind))
    fill(neck)
    streams = torch.randn(2, 1, *shape)
    output, = neck(tuple(map(tuple, streams)))
    # a router reads the mean of all tokens
    dims = {2: (), 3: (1, ), 4: (2, 3)}[len(shape)]
    read = streams[:, 0].mean(0)
    read = read.mean(dims) if dims else read
    gates = neck.fusion.rows('default')(0, read[:, None])
    for index, found in enumerate(output):
        row = gates[index] if gates.dim() == 2 else gates
        torch.testing.assert_close(
            found, row[0] * streams[0, 0, index] + row[1] *
            streams[1, 0, index])


def test_an_inner_neck_that_standardises_is_fitted() -> None:
    neck = ViMFusionNeck([4, 6], scales=[1, 1], modules=['a', 'b'],
                         inner_neck=dict(
                             type='vim_mm.StandardizedPooling',
                             in_channels=20))
    batches = [(stream(0), stream(1)), (stream(2), stream(3))]
    neck.fit(batches)
    pooled = torch.cat([neck(batch)[0] for batch in batches])
    torch.testing.assert_close(pooled.mean(0), torch.zeros(20), atol=1e-4,
                               rtol=0)
    torch.testing.assert_close(
        pooled.std(0, correction=0), torch.ones(20), atol=1e-2, rtol=0)
    ViMFusionNeck([4, 6], scales=[1, 1]).fit(stream(0))  # has none


def test_one_stream_with_and_without_a_name() -> None:
    maps = stream(0)
    plain = ViMFusionNeck([4, 6], scales=[1, 1])
    assert all(map(torch.equal, plain(maps), maps))
    assert not list(plain.parameters())
    named = ViMFusionNeck([4, 6], scales=[1, 1], modules=['a'])
    torch.testing.assert_close(named(maps), tuple(maps))


def test_the_pyramid_of_the_paper() -> None:
    neck = ViMFusionNeck([8] * 4, scales=(4, 2, 1, 0.5))
    maps = stream(0, (8, ) * 4)
    shapes = [tuple(level.shape[2:]) for level in neck(maps)]
    assert shapes == [(32, 40), (16, 20), (8, 10), (4, 5)]
    resizes = [[type(m).__name__ for m in r.modules()
                if not list(m.children())] for r in neck.resizes]
    assert resizes == [[
        'ConvTranspose2d', 'BatchNorm2d', 'GELU', 'ConvTranspose2d'
    ], ['ConvTranspose2d'], ['Identity'], ['MaxPool2d']]
    # three transposed convolutions and one norm, 7.08 M at width 768
    with torch.device('meta'):
        wide = ViMFusionNeck([768] * 4)
    assert sum(p.numel() for p in wide.parameters()) == 3 * (
        768 * 768 * 4 + 768) + 2 * 768


def test_sources_norms_and_projection() -> None:
    neck = ViMFusionNeck([4, 6],
                         scales=[2, 0.5],
                         sources=[[0, 1], [1]],
                         out_channels=5,
                         pre_norm_cfg=dict(type='BN'))
    maps = stream(0)
    neck.train()
    first, second = neck(maps)
    assert first.shape == (2, 5, 16, 20) and second.shape == (2, 5, 4, 5)
    normed = [(m - m.mean((0, 2, 3), keepdim=True)) /
              (m.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
              for m in maps]
    conv = neck.projections[1]
    projected = torch.einsum('bchw,oc->bohw', normed[1],
                             conv.weight[:, :, 0, 0])
    projected = projected + conv.bias[:, None, None]
    expected = projected.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-5)


def test_the_inner_neck_is_of_any_library() -> None:
    neck = ViMFusionNeck([4, 6], scales=[2, 1], inner_neck=dict(
        type='mmdet.FPN', in_channels=[4, 6], out_channels=3, num_outs=3))
    assert [tuple(o.shape[1:]) for o in neck(stream(0))] == [
        (3, 16, 20), (3, 8, 10), (3, 4, 5)]


def test_mistakes_are_sentences() -> None:
    with pytest.raises(ValueError, match='4 scales but 2 sources'):
        ViMFusionNeck([4, 6])
    with pytest.raises(ValueError, match='set `out_channels`'):
        ViMFusionNeck([4, 6], scales=[1], sources=[[0, 1]])
    with pytest.raises(ValueError, match='a level beyond the 2'):
        ViMFusionNeck([4, 6], scales=[1], sources=[[2]])
    with pytest.raises(ValueError, match='scale=3 is not one of'):
        ViMFusionNeck([4], scales=[3])
    with pytest.raises(ValueError, match="no task 'z'"):
        ViMFusionNeck([4], scales=[1], modules=['a'], task='z')
    neck = ViMFusionNeck([4, 6], scales=[1, 1], modules=['a', 'b'])
    with pytest.raises(ValueError, match=r"2 streams \(\['a', 'b'\]\).* 3"):
        neck([stream(0)] * 3)
    with pytest.raises(ValueError, match='returned 1 levels'):
        neck([stream(0, (4, ))] * 2)
    with pytest.raises(ValueError, match=r'\(a single one\)'):
        ViMFusionNeck([4, 6], scales=[1, 1])([stream(0)] * 2)


@pytest.mark.parametrize('kind', KINDS)
def test_streams_in_a_real_model(kind: str) -> None:
    """Frozen modules beside a frozen trunk; neck and head learn."""
    torch.manual_seed(0)
    model = build_model(kind, dict(trunk=vit()),
                        fusion_neck(kind, modules=['a', 'b']))
    fill(model.backbone.trunk, 0.1)
    add_modules(model.backbone, 'a', 'b')
    before = snapshot(model.backbone)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    data = model.data_preprocessor(Pictures(kind).batch(), training=True)
    loss, logs = model.parse_losses(
        model.loss(data['inputs'], data['data_samples']))
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(v).all()
                                        for v in logs.values())
    assert model.neck.fusion.logits['default'].grad.abs().sum() > 0
    trained = {n.split('.')[0] for n, p in model.named_parameters()
               if p.grad is not None}
    assert 'backbone' not in trained and len(trained) == 2
    optimizer.step()
    assert same(snapshot(model.backbone), before)

    model.eval()
    results = model.test_step(Pictures(kind).batch())
    assert len(results) == 8
    changed = MODELS.build(fusion_neck(kind, modules=['a', 'b']))
    changed.load_state_dict(model.neck.state_dict())
    changed.fusion.set_logits('default', torch.tensor([9., -9.]))
    model.neck = changed.eval()
    assert not torch.equal(
        values(kind, results),
        values(kind, model.test_step(Pictures(kind).batch())))


def values(kind: str, results: list) -> Tensor:
    if kind == 'cls':
        return torch.stack([r.pred_score for r in results])
    if kind == 'seg':
        return torch.stack([r.seg_logits.data for r in results])
    return torch.cat([r.pred_instances.scores for r in results])


def test_declared_streams_must_be_those_of_the_backbone() -> None:
    model = build_model('seg', dict(trunk=vit()),
                        fusion_neck('seg', modules=['a', 'b']))
    with pytest.raises(ValueError, match='expects 2 streams'):
        model.extract_feat(torch.randn(1, 3, 56, 56))


def test_streams_of_other_modules_or_in_another_order_are_refused() -> None:
    """A weight would reach another module than its name says."""
    model = build_model('seg', dict(trunk=vit()),
                        fusion_neck('seg', modules=['a', 'b']))
    add_modules(model.backbone, 'b', 'a')
    for use in (lambda: model.extract_feat(torch.randn(1, 3, 56, 56)),
                lambda: fusing_part(model)):
        with pytest.raises(ValueError,
                           match=r"\['a', 'b'\].*those of \['b', 'a'\]"):
            use()
    streams = model.backbone(torch.randn(1, 3, 56, 56))
    assert copy.deepcopy(streams).names == ['b', 'a']


def test_a_neck_may_be_the_first_of_several() -> None:
    """As classifiers of mmpretrain list them."""
    pooling = dict(type='mmpretrain.GlobalAveragePooling')
    neck = fusion_neck('cls', modules=['a', 'b'])
    neck.pop('inner_neck')
    model = build_model('cls', dict(trunk=vit()), [neck, pooling])
    add_modules(model.backbone, 'a', 'b')
    assert fusing_part(model) is model.neck[0]
    features, = model.extract_feat(torch.randn(2, 3, 56, 56))
    assert features.dim() == 2
