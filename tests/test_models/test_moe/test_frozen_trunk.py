# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A trunk with experts is an ordinary backbone: frozen, with modules."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Dict

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from _moe import layers_of
from _recompute import check, one_pass
from _tiny import (ARCH, PATCH, SCOPES, SIZE, TRUNKS, add_modules,
                   build_backbone, build_model, fill, fusion_neck, model_cfg,
                   same, snapshot, vit)
from vim_mm.apis import ViMInferencer
from vim_mm.apis.bake import bake
from vim_mm.models.backbones import match_slots
from vim_mm.models.moe import save_moe
from vim_mm.models.tasks import learn_tasks, select_task
from vim_mm.registry import MODELS
from vim_mm.zoo import Zoo, ZooError, save_module, trunk_fingerprint

TASKS = ['cls', 'det', 'seg']


def moe(trunk: dict, **kwargs) -> dict:
    cfg = dict(
        type='vim_mm.to_moe', trunk=trunk, num_experts=4, k=2, tasks=TASKS)
    return dict(cfg, **kwargs)


#: with experts, and the names of the first slots
TRUNKS_OF_EXPERTS: Dict[str, tuple] = dict(
    vit=(moe(vit()), ['layers.0.attn', 'layers.0.ffn']),
    swin=(moe(TRUNKS['swin']),
          ['stages.0.blocks.0.attn', 'stages.0.blocks.0.ffn']),
    convnext=(moe(TRUNKS['convnext']), ['stages.0.0', 'stages.1.0']),
    moe_vit=(dict(
        type='vim_mm.MoEVisionTransformer',
        arch=ARCH,
        img_size=SIZE,
        patch_size=PATCH,
        attn=dict(num_experts=6, k=2),
        mlp=dict(num_experts=4, k=2),
        out_indices=[0, 1, 2],
        tasks=TASKS), ['layers.0.attn', 'layers.0.ffn']),
    davit=(dict(
        type='vim_mm.MoEDaViT',
        arch=dict(
            embed_dims=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4]),
        num_experts=4,
        k=2,
        tasks=TASKS), [
            'stages.0.blocks.0.spatial_block.attn',
            'stages.0.blocks.0.spatial_block.ffn'
        ]))
KINDS = list(TRUNKS_OF_EXPERTS)


def side_of(kind: str) -> int:
    return 56 if kind in ('vit', 'moe_vit') else 64


def images(kind: str) -> Tensor:
    return torch.randn(2, 3, side_of(kind), side_of(kind))


def backbone_of(kind: str = 'vit', experts: dict = {}, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    backbone = MODELS.build(
        dict(
            dict(
                type='vim_mm.ViMBackbone',
                trunk=dict(TRUNKS_OF_EXPERTS[kind][0], **experts),
                probe_size=side_of(kind)), **kwargs))
    with torch.no_grad():
        for param in backbone.trunk.parameters():
            param.add_(.1 * torch.randn_like(param))
    return backbone


@pytest.mark.parametrize('kind', KINDS)
def test_modules_learn_beside_frozen_experts(kind: str,
                                             tmp_path: Path) -> None:
    backbone = backbone_of(kind, new_module='new')
    assert list(backbone.slots)[:2] == TRUNKS_OF_EXPERTS[kind][1]
    assert list(backbone.slots) == match_slots(backbone.trunk)
    before = snapshot(backbone.trunk)
    learn = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learn, lr=.1, weight_decay=1.)
    backbone.train()
    x = images(kind)
    for _ in range(2):  # the second step moves all of a module that starts
        optimizer.zero_grad()
        loss = sum(y.square().mean() for y in backbone(x))
        loss.backward()
        optimizer.step()
    assert all(p.grad.any() for p in learn)
    assert same(snapshot(backbone.trunk), before)
    assert not any('trunk.' in key for key in backbone.state_dict())
    other = backbone_of(kind, new_module='new')
    other.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        assert all(map(torch.equal, other.eval()(x), backbone.eval()(x)))


@pytest.mark.parametrize('kind', ['vit', 'davit'])
def test_a_zoo_knows_the_experts(kind: str, tmp_path: Path) -> None:
    backbone = backbone_of(kind)
    add_modules(backbone, 'a')
    save_module(backbone, 'a', str(tmp_path))
    path = tmp_path / 'trunk.pth'
    torch.save(backbone.trunk.state_dict(), path)
    trunk = dict(TRUNKS_OF_EXPERTS[kind][0])
    inner = trunk.get('trunk', trunk)
    source = dict(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    trunk.update(dict(trunk=dict(inner, **source))
                 if 'trunk' in trunk else source)
    cfg = dict(zoo=str(tmp_path), modules=['a'], probe_size=side_of(kind))
    loaded = MODELS.build(
        dict(type='vim_mm.ViMBackbone', trunk=trunk, **cfg))
    x = images(kind)
    with torch.no_grad():
        assert all(map(torch.equal, loaded.eval()(x), backbone.eval()(x)))
    state = torch.load(path)
    key = next(k for k in state if k.endswith('experts.groups.0.w2'))
    state[key][1] += 1e-3  # of one expert
    torch.save(state, path)
    with pytest.raises(ZooError, match='fingerprint|other trunk|another'):
        MODELS.build(dict(type='vim_mm.ViMBackbone', trunk=trunk, **cfg))


SELECTIONS = [(dict(task='seg'), "task 'cls' of its experts.* is 'seg'"),
              (dict(k=1, slices=2), 'k 2 of its experts.* it is 1'),
              (dict(gate_scale=1.), r'gate_scale 2\.0 of its .* is 1\.0')]


@pytest.mark.parametrize('other, words', SELECTIONS)
def test_another_selection_is_another_trunk(other: dict, words: str,
                                            tmp_path: Path) -> None:
    zoo, backbone = str(tmp_path / 'zoo'), backbone_of()
    add_modules(backbone, 'a', 'b')
    card = save_module(backbone, 'a', zoo)
    assert card.trunk['selection'] == dict(task='cls', k=2, gate_scale=2.)
    cfg = dict(zoo=zoo, modules=['a'])
    build_backbone(backbone.trunk, **cfg)
    twin = backbone_of(experts=other)
    twin.trunk.load_state_dict(backbone.trunk.state_dict())
    with pytest.raises(ZooError, match=words) as error:
        build_backbone(twin.trunk, **cfg)
    assert '\n' not in str(error.value)
    # checkpoints of a run, too
    ours, theirs = (build_backbone(each.trunk, new_module='new')
                    for each in (backbone, twin))
    ours.load_state_dict(ours.state_dict())
    with pytest.raises(ValueError, match=r'or select its experts as then \('):
        theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize('other, _', SELECTIONS)
def test_files_that_say_nothing_of_selections(other: dict, _: str,
                                              tmp_path: Path) -> None:
    """Those of before are read as ever."""
    zoo, backbone = Zoo(tmp_path / 'zoo'), backbone_of()
    add_modules(backbone, 'a')
    card = save_module(backbone, 'a', zoo)
    trunk = {k: v for k, v in card.trunk.items() if k != 'selection'}
    _, tensors = zoo.load('a')
    zoo.save(replace(card, trunk=trunk), tensors, overwrite=True)
    twin = backbone_of(experts=other)
    twin.trunk.load_state_dict(backbone.trunk.state_dict())
    new = build_backbone(
        twin.trunk, zoo=str(zoo.root), modules=['a'], new_module='new')
    state = new.state_dict()
    digest = trunk_fingerprint(new.trunk, new.own_slots())
    old = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
    assert not torch.equal(state['trunk_fingerprint'], old)
    state['trunk_fingerprint'] = old
    new.load_state_dict(state)


def test_tasks_of_the_fusion_choose_the_router(tmp_path: Path) -> None:
    zoo, backbone = str(tmp_path), backbone_of(experts=dict(task='seg'))
    add_modules(backbone, 'a', 'b')
    save_module(backbone, 'a', zoo)
    cfg = dict(trunk=deepcopy(backbone.trunk), zoo=zoo, modules=['a'])
    select_task(cfg['trunk'], 'cls')
    fused = build_backbone(
        **cfg, fusion=dict(type='EnsMoE', tasks=['cls', 'seg']))
    # any of them may be meant
    assert fused.selection == dict(k=2, gate_scale=2.)
    with pytest.raises(ZooError, match="task 'seg' of its experts"):
        build_backbone(**cfg, fusion=dict(type='EnsMoE', tasks=['cls', 'x']))


@pytest.mark.parametrize('kind', KINDS)
def test_blocks_run_again(kind: str) -> None:
    backbone = backbone_of(kind)
    add_modules(backbone, 'a', 'b', trainable=True)
    backbone.set_fusion(dict(type='EnsMoE', tasks=['x', 'y']))
    backbone.learn_tasks(['x', 'y'])
    check(backbone.train(), one_pass)


@pytest.mark.parametrize('kind', ['vit', 'moe_vit', 'davit'])
def test_autocast(kind: str) -> None:
    """Plans and casts that are kept give what autocast gives."""
    backbone = backbone_of(kind, new_module='new').eval()
    x, plain = images(kind), deepcopy(backbone.trunk)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        first, again, bare = backbone(x), backbone(x), plain(x)
    for ours, twice, theirs in zip(first, again, bare):
        assert torch.equal(ours, twice)
        torch.testing.assert_close(ours, theirs)  # modules start at zero


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['vit', 'moe_vit', 'davit'])
def test_one_compiled_graph(kind: str) -> None:
    torch._dynamo.reset()
    backbone = backbone_of(kind, new_module='new').train()
    fill(backbone.bank.members['new'], .1)
    x = images(kind)
    params = [p for p in backbone.parameters() if p.requires_grad]
    results = []
    fast = torch.compile(backbone, backend='aot_eager', fullgraph=True)
    for run in (backbone, fast):
        levels = run(x)
        loss = sum(y.square().sum() for y in levels)
        results.append([*levels, *torch.autograd.grad(loss, params)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    # another router is another graph
    select_task(backbone, 'seg')
    with torch.no_grad():
        torch.testing.assert_close(fast(x)[-1], backbone(x)[-1])
        select_task(backbone, 'cls')
        torch.testing.assert_close(fast(x)[-1], backbone(x)[-1])


def test_bake(tmp_path: Path) -> None:
    midstream = backbone_of(experts=dict(task='det'))
    add_modules(midstream, 'a', 'b')
    for name in 'ab':
        save_module(midstream, name, str(tmp_path / 'zoo'))
    model = build_model('seg', dict(trunk=midstream.trunk, zoo=str(
        tmp_path / 'zoo'), modules=['a', 'b'], fusion=dict(type='EnsMoE')))
    fill(model.backbone.fusion)
    baked = bake(model, 'one', str(tmp_path / 'zoo'), threshold=0, size=SIZE)
    assert baked.difference <= 1e-5


def test_a_moe_file_is_a_trunk_with_weights(tmp_path: Path) -> None:
    cfg, path = TRUNKS_OF_EXPERTS['vit'][0], str(tmp_path / 'a.safetensors')
    trunk = MODELS.build(cfg)
    fill(trunk, .1)
    save_moe(trunk, cfg, path)
    backbone = build_backbone(
        dict(type='vim_mm.load_moe', checkpoint=path, task='det'),
        new_module='new')
    assert backbone.trunk_weights == path
    assert same(snapshot(backbone.trunk), snapshot(trunk))
    assert not any(p.requires_grad for p in backbone.trunk.parameters())
    assert {layer.task for layer in layers_of(backbone)} == {'det'}
    # one of another file is refused, whether the trunk is kept or not
    kept = build_backbone(trunk, save_trunk=True, new_module='new')
    fill(kept.trunk, .2)
    state = build_backbone(kept.trunk, save_trunk=True,
                           new_module='new').state_dict()
    with pytest.raises(ValueError, match='beside another trunk'):
        backbone.load_state_dict(state)


# ------------------------------------------------------------------- tasks


def test_the_router_is_chosen_by_a_key() -> None:
    outputs = []
    for task in (None, 'cls', 'seg'):
        backbone = backbone_of(experts=dict(task=task), new_module='new')
        with torch.no_grad():
            outputs.append(backbone.eval()(images('vit').fill_(1.))[-1])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    select_task(backbone, 'cls')
    with torch.no_grad():
        assert torch.equal(backbone(images('vit').fill_(1.))[-1], outputs[0])
    with pytest.raises(ValueError, match="no task 'depth'"):
        backbone_of(experts=dict(task='depth'))


def model_of(trunk: dict, tasks: list) -> nn.Module:
    cfg = model_cfg('cls', dict(
        trunk=trunk, adapter=dict(type='ConvPass', hidden_dims=4),
        new_module='new'), fusion_neck('cls'))
    cfg.head = dict(
        type='vim_mm.TaskHeads', heads={t: dict(cfg.head) for t in tasks})
    return MODELS.build(cfg)


def test_tasks_that_frozen_experts_do_not_know() -> None:
    model = model_of(moe(vit(), task='det'), ['flowers', 'cars'])
    frozen = [p for p in model.backbone.trunk.parameters()]
    select_task(model, 'cars')
    learn_tasks(model, ['cars', 'flowers'])
    assert model.head.task == 'cars'
    assert {layer.task for layer in layers_of(model)} == {'det'}
    assert not any(p.requires_grad for p in frozen)
    with pytest.raises(ValueError, match="no task 'planes'"):
        select_task(model, 'planes')


def test_tasks_that_frozen_experts_know() -> None:
    model = model_of(moe(vit()), ['seg', 'cars'])
    select_task(model, 'seg')
    assert {layer.task for layer in layers_of(model)} == {'seg'}
    # no learner, whatever learns
    learn_tasks(model, ['seg'])
    assert not any(p.requires_grad
                   for p in model.backbone.trunk.parameters())
    model.train()
    loss = model.backbone(torch.randn(1, 3, SIZE, SIZE))[-1].sum()
    loss.backward()
    # it stays with the last router that it knew
    select_task(model, 'cars')
    assert {layer.task for layer in layers_of(model)} == {'seg'}


def test_experts_that_learn_must_know_the_task() -> None:
    trunk = MODELS.build(moe(vit()))
    model = nn.ModuleList([trunk, model_of(vit(), ['flowers'])])
    with pytest.raises(ValueError, match="no task 'flowers'; MoEMlp knows"):
        select_task(model, 'flowers')


def test_images_of_two_routers_share_no_pass() -> None:
    backbone = backbone_of(experts=dict(task='det'))
    add_modules(backbone, 'a')
    backbone.set_fusion(dict(type='EnsMoE', tasks=['det', 'seg', 'other']))
    with pytest.raises(ValueError, match='router for each.*one after'):
        with backbone.for_tasks(['det', 'seg']):
            pass
    with backbone.for_tasks(['det', 'other']), torch.no_grad():
        backbone.eval()(images('vit'))


def test_inferencer(tmp_path: Path) -> None:
    """Two tasks of one file of experts, each by the router of its name."""
    path = tmp_path / 'trunk.pth'
    backbone = build_backbone(moe(vit(), slices=4))
    fill(backbone.trunk, .3)
    torch.save(backbone.trunk.state_dict(), path)
    sources, image = {}, tmp_path / 'image.png'
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3))
    cv2.imwrite(str(image), pixels.astype(np.uint8))
    source = dict(type='Pretrained', checkpoint=str(path))
    for task in ('cls', 'seg'):
        trunk = moe(vit(init_cfg=source), slices=4)
        own = dict(trunk=trunk, adapter=dict(type='SideLadder'),
                   new_module='new')
        model = model_cfg('cls', own, fusion_neck('cls'))
        net = MODELS.build(model)
        fill(net.head, .3)
        torch.save(dict(state_dict=net.state_dict(), meta={}),
                   tmp_path / f'{task}.pth')
        preprocessor = model.pop('data_preprocessor')
        Config(
            dict(
                default_scope=SCOPES['cls'],
                model=model,
                data_preprocessor=preprocessor,
                visualizer=dict(type='Visualizer'),
                test_dataloader=dict(
                    dataset=dict(
                        type='mmpretrain.CustomDataset',
                        metainfo=dict(classes=['red', 'white']),
                        pipeline=[
                            dict(type='LoadImageFromFile'),
                            dict(type='PackInputs')
                        ])))).dump(tmp_path / f'{task}.py')
        sources[task] = (str(tmp_path / f'{task}.py'),
                         str(tmp_path / f'{task}.pth'))
    served = ViMInferencer(sources, 'cpu', show_progress=False)
    samples = served(
        str(image), task=['cls', 'seg'],
        return_datasamples=True)['predictions']
    for sample, task in zip(samples, sources):
        alone = ViMInferencer({task: sources[task]}, 'cpu',
                              show_progress=False)
        expected, = alone(str(image), return_datasamples=True)['predictions']
        assert torch.equal(sample.pred_score, expected.pred_score)
    passes = [task.trunk_pass for task in served.tasks.values()]
    assert passes[0] is not passes[1]
