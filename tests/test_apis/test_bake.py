# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A fusion baked into one module computes what the fusion computed."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Sequence

import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor

from _tiny import (KINDS, SIZE, Pictures, build_backbone, build_model,
                   build_runner, fill, fusion_neck, model_cfg, same,
                   save_trunk, snapshot)
from vim_mm.apis.bake import TOLERANCE, bake
from vim_mm.apis.serving import load_model
from vim_mm.models.adapters import ConvPass
from vim_mm.models.fit import check_fit
from vim_mm.zoo import Zoo, ZooError, save_module
from vim_mm.zoo.parts import AND

SCRIPT = Path(__file__).parents[2] / 'tools/bake.py'
NAMES = ['a', 'b', 'c']


def save_zoo(folder: Path, names: Sequence[str] = NAMES, **adapter) -> dict:
    """Write a trunk and modules; return what a backbone needs of them."""
    trunk = save_trunk(folder / 'trunk.pth')
    adapter = adapter or dict(type='ConvPass', hidden_dims=4)
    for name in names:
        midstream = build_backbone(trunk, new_module=name, adapter=adapter)
        fill(midstream.bank.members[name], seed=sum(map(ord, name)))
        save_module(midstream, name, str(folder / 'zoo'))
    return dict(trunk=trunk, zoo=str(folder / 'zoo'), modules=list(names))


def fused(folder: Path, fusion: dict, **adapter):
    cfg = save_zoo(folder, **adapter)
    model = build_model('seg', dict(cfg, fusion=fusion)).eval()
    generator = torch.Generator().manual_seed(0)
    for param in model.backbone.fusion.parameters():
        param.data.normal_(generator=generator)
    return model


def pictures() -> Tensor:
    return torch.randn(
        2, 3, SIZE, 70, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def outputs_of(model, folder: Path, name: str) -> tuple:
    """Of the fused model, and of one that loads the baked module alone."""
    baked = build_backbone(
        save_trunk(folder / 'trunk.pth'),
        zoo=str(folder / 'zoo'),
        modules=[name])
    assert baked.fusion is None
    return model.backbone(pictures()), baked.eval()(pictures())


FUSIONS = [
    dict(type='EnsMoE', tasks=['t']),
    dict(type='EnsMoE', top_k=2),
    dict(type='EnsMoE', zero_module=True),
    dict(type='LinearMoE'),
    dict(type='FixedFusion', weights=dict(a=1.5, c=-0.7)),
    dict(type='ParameterMerge'),
    dict(type='FixedMerge', weights=dict(a=1.5, c=-0.7)),
]


@pytest.mark.parametrize('fusion', FUSIONS, ids=str)
def test_one_module_equals_the_fusion(fusion: dict, tmp_path: Path) -> None:
    model = fused(tmp_path, fusion)
    before = snapshot(model)
    baked = bake(model, 'one', str(tmp_path / 'zoo'), threshold=0, size=SIZE)
    assert not baked.dropped and baked.difference <= 1e-5 < TOLERANCE
    assert same(snapshot(model), before) and not model.training
    assert model.backbone.bank.names == NAMES
    expected, found = outputs_of(model, tmp_path, 'one')
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    card = Zoo(tmp_path / 'zoo').card('one')
    origin = card.training['baked_from']
    assert origin['fusion'] == fusion['type']
    assert origin['difference'] == baked.difference
    assert origin['weights'] == {
        slot: {m: w for m, w in row.items() if w}
        for slot, row in model.backbone.gates().items()
    }


def test_the_card_names_its_parts_and_their_licences(tmp_path: Path) -> None:
    licences = dict(a='CC BY-NC-SA 4.0', b='MIT', c='Apache-2.0')
    weights = {'a': .8, 'b': .2, 'c': .001}
    cfg = save_zoo(tmp_path)
    zoo = Zoo(cfg['zoo'])
    for name, licence in licences.items():
        card, tensors = zoo.load(name)
        zoo.save(replace(card, licence=licence, dataset=f'data of {name}'),
                 tensors, overwrite=True)
    fusion = dict(type='FixedFusion', weights=weights)
    model = build_model('seg', dict(cfg, fusion=fusion)).eval()
    card = bake(model, 'one', cfg['zoo'], size=SIZE).card
    # what was dropped has no share in it
    assert card.licence == 'CC BY-NC-SA 4.0 AND MIT'
    assert card.dataset == 'data of a + data of b' and card.task == 'seg'
    assert card.trunk['weights'] == Path(
        cfg['trunk']['init_cfg']['checkpoint']).name
    assert [(p['name'], p['sha256']) for p in card.parts] == [
        (name, zoo.card(name).sha256) for name in 'ab']
    # a fusion of it, and a module that was trained on from it, keep them
    more = dict(cfg, modules=['one', 'c'], fusion=dict(type='FixedFusion'))
    second = bake(
        build_model('seg', more).eval(), 'two', cfg['zoo'], size=SIZE,
        card=dict(licence='CC0-1.0', classes=['x'], image_size=[8, 8])).card
    assert second.licence == \
        'CC0-1.0 AND CC BY-NC-SA 4.0 AND MIT AND Apache-2.0'
    assert [p['name'] for p in second.parts] == ['a', 'b', 'one', 'c']
    assert second.classes == ['x'] and second.image_size == [8, 8]
    tuned = build_backbone(
        cfg['trunk'], zoo=cfg['zoo'], modules=['two'], tune_modules=True)
    third = save_module(tuned, 'two', cfg['zoo'], save_as='three')
    assert set(third.licence.split(AND)) == set(second.licence.split(AND))


def test_the_fused_checkpoint_brings_neck_and_head(
        tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As docs/fusion.md has it, and without a line for each tensor."""
    model = fused(tmp_path, dict(type='EnsMoE', tasks=['x', 'y']))
    bake(model, 'one', str(tmp_path / 'zoo'), task='x', threshold=0, size=SIZE)
    backbone = dict(
        trunk=save_trunk(tmp_path / 'trunk.pth'),
        zoo=str(tmp_path / 'zoo'),
        modules=['one'])
    baked = build_model('seg', backbone)
    state = model.state_dict()
    check_fit(baked, state, 'x.pth', whole=True)
    load_state_dict(baked, state)
    assert 'unexpected' not in capsys.readouterr().out
    assert same(snapshot(baked.decode_head), snapshot(model.decode_head))
    # a module that was not baked stands for nobody
    plain = build_model('seg', dict(backbone, modules=['a']))
    with pytest.raises(ValueError, match="gates and the module 'b' and the"):
        check_fit(plain, state, 'x.pth')


KINDS_OF_ADAPTER = [
    dict(type='ConvPass', hidden_dims=3, scale=2.),
    dict(type='BottleneckAdapter', hidden_dims=3),
    dict(type='LoRA', rank=2, alpha=6),
    dict(type='SideLadder', hidden_dims=3),
]


@pytest.mark.parametrize('kind', KINDS_OF_ADAPTER, ids=lambda k: k['type'])
def test_every_kind_of_module(kind: dict, tmp_path: Path) -> None:
    model = fused(tmp_path, dict(type='LinearMoE'), **kind)
    baked = bake(model, 'one', str(tmp_path / 'zoo'), threshold=0, size=SIZE)
    assert baked.card.kind == kind['type'] and baked.difference <= 1e-5
    expected, found = outputs_of(model, tmp_path, 'one')
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with model.backbone.only('a'):
        assert not torch.allclose(
            model.backbone(pictures())[-1], expected[-1], atol=1e-2)


@pytest.mark.parametrize('merges', [False, True])
def test_small_weights_are_dropped_and_the_rest_is_not_scaled(
        merges: bool, tmp_path: Path) -> None:
    kind = 'vim_mm.ParameterMerge' if merges else 'vim_mm.EnsMoE'
    model = fused(tmp_path, dict(type=kind))
    fusion, slots = model.backbone.fusion, list(model.backbone.slots)
    gates = torch.tensor([[.96, .03, .01], [.03, .48, .49], [1., 0, 0],
                          [.5, .5, 0], [.1, .1, .8], [.03, .94, .03]])
    fusion.set_logits('default', gates.log())
    baked = bake(model, 'one', str(tmp_path / 'zoo'), threshold=.05, size=SIZE)
    expected = {
        slot: {n: float(w) for n, w in zip(NAMES, row) if w >= .05}
        for slot, row in zip(slots, gates)
    }
    for slot in slots:
        assert baked.kept[slot] == pytest.approx(expected[slot])
    assert sorted(baked.dropped) == sorted([slots[0], slots[1], slots[5]])
    # the same as a fusion by these very numbers, dropped ones at zero
    model.backbone.fusion.gates = lambda _: gates * (gates >= .05)
    reference, found = outputs_of(model, tmp_path, 'one')
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-4)
    assert 1e-3 < baked.difference < 1
    # what no module is left in is no slot of the new one
    model.backbone.fusion.gates = lambda _: torch.tensor(
        [[.5, .5, 0]] * 5 + [[.01] * 3])
    baked = bake(model, 'two', str(tmp_path / 'zoo'), threshold=.05, size=SIZE)
    assert baked.card.slots == slots[:5]
    outputs_of(model, tmp_path, 'two')


def test_modules_beside_the_trunk_are_dropped_altogether(
        tmp_path: Path) -> None:
    """What a rung hands on matters at levels where its own weight does not."""
    model = fused(tmp_path, dict(type='LinearMoE'), type='SideLadder')
    weights = model.backbone.fusion.logits['default']
    weights.data = torch.tensor([[0., .7, .001], [.9, .001, .002],
                                 [.8, .6, 0]])
    baked = bake(model, 'one', str(tmp_path / 'zoo'), size=SIZE)
    assert [set(row) for row in baked.kept.values()] == [{'a', 'b'}] * 3
    assert [set(row) for row in baked.dropped.values()] == [{'c'}] * 2
    weights.data[:, 2] = 0
    expected, found = outputs_of(model, tmp_path, 'one')
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_refusals(tmp_path: Path) -> None:
    zoo = str(tmp_path / 'zoo')
    model = fused(tmp_path, dict(type='RoutedMoE'))
    with pytest.raises(ValueError, match='anew for every image'):
        bake(model, 'one', zoo, size=SIZE)
    backbone = model.backbone
    backbone.fusion = None
    with pytest.raises(ValueError, match='weighs streams in a neck cannot'):
        bake(model, 'one', zoo, size=SIZE)
    cfg = dict(trunk=save_trunk(tmp_path / 'trunk.pth'), zoo=zoo,
               modules=NAMES, fusion=dict(type='EnsMoE'))
    model = build_model('seg', cfg).eval()
    with pytest.raises(ValueError, match='No weight is 0.5 or more'):
        bake(model, 'one', zoo, threshold=.5, size=SIZE)
    with pytest.raises(ValueError, match="no task 'z'"):
        bake(model, 'one', zoo, task='z', size=SIZE)
    with pytest.raises(ValueError, match="already holds a module 'a'"):
        bake(model, 'a', zoo, size=SIZE)
    assert Zoo(zoo).names() == NAMES
    bake(model, 'one', zoo, size=SIZE)
    with pytest.raises(ZooError, match='already has a module'):
        bake(model, 'one', zoo, size=SIZE)


@pytest.mark.parametrize('threshold', [0, .3])
def test_what_is_not_finite_is_not_saved(threshold: float,
                                         tmp_path: Path) -> None:
    model = fused(tmp_path, dict(type='EnsMoE'))
    # each number is finite, but the sums at the last level are not
    for name in NAMES:
        for slot in ('layers.2.attn', 'layers.2.ffn'):
            adapter = model.backbone.bank.adapter(name, slot)
            torch.nn.init.constant_(adapter.up.bias, 3e38)
    with pytest.raises(ValueError, match='not finite'):
        bake(model, 'one', str(tmp_path / 'zoo'), threshold=threshold,
             size=SIZE)
    assert 'one' not in Zoo(tmp_path / 'zoo')


@pytest.mark.parametrize('threshold', [0, .3])
def test_what_is_folded_wrongly_is_not_saved(
        threshold: float, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were dropped do not excuse it."""
    model = fused(tmp_path, dict(type='EnsMoE'))
    fold = ConvPass.fold.__func__

    def wrong(cls, *args):
        folded = fold(cls, *args)
        folded.up.weight.data *= 1.1
        return folded

    monkeypatch.setattr(ConvPass, 'fold', classmethod(wrong))
    with pytest.raises(ValueError, match='without the dropped weights'):
        bake(model, 'one', str(tmp_path / 'zoo'), threshold=threshold,
             size=SIZE)
    assert 'one' not in Zoo(tmp_path / 'zoo')


def test_modules_of_different_kinds_are_refused(tmp_path: Path) -> None:
    save_zoo(tmp_path, ['wide'], type='ConvPass', hidden_dims=7)
    cfg = dict(save_zoo(tmp_path), modules=['a', 'wide'],
               fusion=dict(type='EnsMoE'))
    model = build_model('seg', cfg).eval()
    with pytest.raises(ValueError, match='cannot be folded into one'):
        bake(model, 'one', cfg['zoo'], size=SIZE)


CONFIG = """
default_scope = '{scope}'
module_card = dict(task='{kind}', dataset='squares', licence='CC0-1.0')
model = {model!r}
"""


@pytest.mark.parametrize('kind', KINDS)
def test_train_bake_and_run(kind: str, tmp_path: Path,
                            capsys: pytest.CaptureFixture) -> None:
    """The tool, from a run's checkpoint to a model without fusion."""
    spec = importlib.util.spec_from_file_location('bake_cli', SCRIPT)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    backbone = dict(save_zoo(tmp_path), fusion=dict(type='vim_mm.EnsMoE'))
    cfg = model_cfg(kind, backbone, fusion_neck(kind))
    run = build_runner(kind, cfg, tmp_path / 'run')
    run.train()
    config = tmp_path / 'fused.py'
    config.write_text(CONFIG.format(
        scope=run.default_scope.scope_name, kind=kind, model=cfg.to_dict()))
    checkpoint = str(tmp_path / 'run' / 'iter_4.pth')
    tool.main([
        str(config), checkpoint, '--zoo', str(tmp_path / 'out'), '--name',
        'baked', '--threshold', '0'
    ])
    said = capsys.readouterr().out
    assert '18 adapters folded, 0 dropped' in said and '1e-04 allowed' in said
    card = Zoo(tmp_path / 'out').card('baked')
    assert card.dataset == 'squares' and card.task == kind
    assert card.licence == 'CC0-1.0 AND not stated'
    assert f'Licence, of all its parts: {card.licence}.' in said
    assert card.classes == ['square'] and len(card.parts) == 3
    assert card.training['config'] == 'fused.py'
    assert card.adapter['groups'] == 3
    head = Zoo(tmp_path / 'out').load_head('baked')
    assert head and all(torch.equal(run.model.state_dict()[k], v)
                        for k, v in head.items())

    plain = Config.fromfile(config)
    plain.model.backbone.update(
        zoo=str(tmp_path / 'out'), modules=['baked'], fusion=None)
    model, _ = load_model(plain, checkpoint)
    fused_model, _ = load_model(Config.fromfile(config), checkpoint)
    first, second = (m.test_step(Pictures(kind).batch())
                     for m in (fused_model, model))
    torch.testing.assert_close(
        values(kind, first), values(kind, second), rtol=1e-3, atol=1e-4)


def values(kind: str, results: list) -> Tensor:
    if kind == 'cls':
        return torch.stack([r.pred_score for r in results])
    if kind == 'seg':
        return torch.stack([r.seg_logits.data for r in results])
    return torch.cat([r.pred_instances.scores for r in results])
