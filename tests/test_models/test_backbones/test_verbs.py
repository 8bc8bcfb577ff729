# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A ready module as trunk; add, remove, status and merge, in memory."""

from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Dict, List

import pytest
import timm
import torch
import torchvision
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from _tiny import (SIZE, TRUNKS, add_modules, build_backbone, fill,
                   fusion_neck, model_cfg, same, save_trunk, snapshot, vit)
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.layouts import as_levels
from vim_mm.registry import MODELS
from vim_mm.zoo import Zoo, save_module

NAMES = ['a', 'b', 'c']


def pictures(size: int = SIZE) -> Tensor:
    return torch.randn(
        2, 3, size, size, generator=torch.Generator().manual_seed(7))


def equal(first: tuple, second: tuple) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(
        tuple(found), tuple(expected), rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------- ready modules

blocks = torchvision.models.convnext.CNBlockConfig
#: Ready modules of 64 px by library: tokens, maps and vectors.
READY: Dict[str, Callable[[], nn.Module]] = {
    'timm-vit': lambda: timm.create_model(
        'vit_tiny_patch16_224', img_size=64, depth=2, num_classes=0),
    'timm-vit-tokens': lambda: timm.create_model(
        'vit_tiny_patch16_224', img_size=64, depth=2, num_classes=0,
        global_pool=''),
    'timm-vit-maps': lambda: timm.create_model(
        'vit_tiny_patch16_224', img_size=64, depth=2, features_only=True,
        out_indices=[0, 1]),
    'timm-convnext': lambda: timm.create_model(
        'convnext_atto', features_only=True),
    'timm-efficientnet': lambda: timm.create_model(
        'efficientnet_lite0', features_only=True),
    'timm-regnet': lambda: timm.create_model('regnetx_002', num_classes=0),
    'torchvision-vit': lambda: torchvision.models.VisionTransformer(
        64, 16, 2, 2, 32, 64, num_classes=5),
    'torchvision-convnext': lambda: torchvision.models.ConvNeXt(
        [blocks(8, 16, 1), blocks(16, None, 1)], num_classes=5),
    'torchvision-resnet': torchvision.models.resnet18,
    'torchvision-efficientnet': torchvision.models.efficientnet_b0,
    'mmpretrain': lambda: MODELS.build(TRUNKS['swin']),
    'mmdet': lambda: MODELS.build(TRUNKS['resnet']),
}


@pytest.mark.parametrize('kind', ['ConvPass', 'SideLadder'])
@pytest.mark.parametrize('library', list(READY))
def test_a_ready_module(library: str, kind: str) -> None:
    trunk = READY[library]()
    trunk.train()
    fill(trunk, 0.05)
    before = snapshot(trunk)
    backbone = ViMBackbone(trunk=trunk, probe_size=64)
    assert backbone.trunk is trunk and not trunk.training
    assert not any(p.requires_grad for p in trunk.parameters())
    x = pictures(64)
    plain = as_levels(trunk(x))
    assert equal(backbone(x), plain)
    backbone.add('a', dict(type=kind, hidden_dims=4))
    with torch.no_grad():  # torch's attention has a fast path of its own
        assert equal(backbone(x), plain)
    fill(backbone.bank, 0.5)
    changed = backbone(x)
    assert not equal(changed, plain)
    assert equal(as_levels(trunk(x)), plain)  # alone it is what it was
    assert same(snapshot(trunk), before)
    widths = [t.shape[-1 if t.dim() == 3 else 1] for t in plain]
    assert backbone.out_channels == widths
    sum(level.sum() for level in changed).backward()
    assert all(p.grad is not None for p in backbone.bank.parameters())
    assert all(p.grad is None for p in trunk.parameters())


def test_a_ready_module_may_sit_in_several_backbones_and_copies() -> None:
    trunk = MODELS.build(vit())
    first, second = (ViMBackbone(trunk=trunk, probe_size=SIZE) for _ in '12')
    add_modules(first, 'a')
    x = pictures()
    plain = trunk(x)
    assert equal(second(x), plain) and not equal(first(x), plain)
    copied = deepcopy(first)
    assert copied.trunk is not trunk and equal(copied(x), first(x))
    fill(copied.bank, seed=5)
    fill(copied.trunk, 0.1)
    assert equal(trunk(x), plain)


def test_a_ready_module_is_that_of_its_config(tmp_path: Path) -> None:
    cfg = save_trunk(tmp_path / 'trunk.pth')
    by_config = build_backbone(cfg)
    ready = ViMBackbone(
        trunk=deepcopy(by_config.trunk), probe_size=SIZE, new_module='a')
    fill(ready.bank)
    assert not any(key.startswith('trunk.') for key in ready.state_dict())
    save_module(ready, 'a', tmp_path / 'zoo')
    again = build_backbone(cfg, zoo=str(tmp_path / 'zoo'), modules=['a'])
    assert equal(again(pictures()), ready(pictures()))
    again.load_state_dict(ready.state_dict())
    other = ViMBackbone(
        trunk=MODELS.build(vit()), probe_size=SIZE, new_module='a')
    with pytest.raises(ValueError, match='beside another trunk'):
        other.load_state_dict(ready.state_dict())


class Gives(nn.Module):
    """Returns anything made of a linear layer's output."""

    def __init__(self, what: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.what = what

    def forward(self, x: Tensor) -> object:
        return self.what(self.layer(x))


def detector() -> nn.Module:
    init_default_scope('mmdet')
    cfg = model_cfg('det', dict(trunk=vit()), fusion_neck('det'))
    return MODELS.build(cfg)


@pytest.mark.parametrize(('trunk', 'sentence'), [
    (lambda: 'ResNet', "`model.backbone.trunk` is 'ResNet'; give a config"),
    (lambda: None, '`model.backbone.trunk` is None'),
    (nn.Identity, 'Identity has no parameters'),
    (lambda: Gives(lambda y: dict(out=y)), 'returns a dict, .* wrap it'),
    (lambda: Gives(lambda y: (y, 'text')), 'returns a str'),
    (lambda: Gives(lambda y: y(1, 2)), 'refuses an image of 56x56 px'),
    (lambda: nn.Bilinear(3, 3, 4), 'refuses an image .* one batch'),
    (detector, 'No default slots are known for FCOS'),
])
def test_what_is_no_trunk(trunk: Callable, sentence: str) -> None:
    slots = None if trunk is detector else '(layer)?'
    with pytest.raises(ValueError, match=sentence):
        ViMBackbone(trunk=trunk(), probe_size=SIZE, slots=slots)


# --------------------------------------------------------------------- add


@pytest.mark.parametrize('adapter', [
    None, dict(type='LoRA', rank=2), dict(type='SideLadder', hidden_dims=3),
    dict(type='vim_mm.BottleneckAdapter', slots=r'layers\.[02]\.ffn')])
def test_add_is_new_module(adapter: dict) -> None:
    trunk = MODELS.build(vit())
    torch.manual_seed(0)
    at_once = ViMBackbone(
        trunk=deepcopy(trunk), adapter=adapter, new_module='a',
        probe_size=SIZE)
    later = ViMBackbone(trunk=trunk, probe_size=SIZE)
    torch.manual_seed(0)
    later.add('a', adapter)
    assert same(snapshot(later.bank), snapshot(at_once.bank))
    assert later.bank.slots_of('a') == at_once.bank.slots_of('a')
    assert later.bank.adapter_cfg('a') == at_once.bank.adapter_cfg('a')
    assert all(p.requires_grad for p in later.bank.parameters())


def test_add_in_slots_of_its_own_between_passes() -> None:
    backbone = build_backbone()
    x = pictures()
    plain = backbone(x)
    backbone.add('a', dict(type='LoRA', rank=2), slots=r'.*\.1\.ffn.*\.0\.0')
    assert backbone.bank.slots_of('a') == ['layers.1.ffn.layers.0.0']
    assert equal(backbone(x), plain)
    fill(backbone.bank, 1.)
    assert not equal(backbone(x), plain)
    # the argument wins over the config's
    backbone.add('b', dict(type='ConvPass', slots=r'layers\.0\.ffn'),
                 slots=r'layers\.1\.attn')
    assert backbone.bank.slots_of('b') == ['layers.1.attn']


@pytest.mark.parametrize(('args', 'sentence'), [
    (('a', ), "already holds a module 'a'"),
    (('a', dict(type='LoRA'), r'layers\.\d\.attn\.qkv'), 'already holds'),
    (('no dots.', ), 'cannot name a module'),
    (('n', 'LoRA'), "adapter` is 'LoRA'; give a config"),
    (('n', dict(type='Lora')), "'Lora' is no kind .*'LoRA', .*'SideLadder'"),
    (('n', dict(type='LoRA', r=8)), 'LoRA takes no r'),
    (('n', dict(type='LoRA'), r'layers\.\d\.ffn'), 'sits in linear layers'),
    (('n', None, 'nothing'), 'matches no submodule'),
    (('n', None, ['attn']), 'no regular'),
    (('n', dict(type='SideLadder', levels=[0])), 'gives out'),
])
def test_add_refuses_and_changes_nothing(args: tuple, sentence: str) -> None:
    backbone = build_backbone()
    add_modules(backbone, 'a')
    expected, before = backbone(pictures()), snapshot(backbone)
    with pytest.raises(ValueError, match=sentence):
        backbone.add(*args)
    assert backbone.bank.names == ['a']
    assert same(snapshot(backbone), before)
    assert equal(backbone(pictures()), expected)


def test_submodules_that_never_run_are_asked_once(monkeypatch) -> None:
    from vim_mm.models.backbones import slotted_trunk
    calls = []
    probe = slotted_trunk.probe_slots
    monkeypatch.setattr(
        slotted_trunk, 'probe_slots',
        lambda *args: calls.append(args) or probe(*args))
    backbone = build_backbone(TRUNKS['resnet'], new_module='a')
    backbone.trunk.layer5 = nn.ModuleList([nn.Conv2d(8, 8, 1)])
    for name in 'bcd':
        backbone.add(name)
    assert len(calls) == 2  # one for what is new


# ------------------------------------------------------------------ remove


def test_remove_leaves_the_others() -> None:
    backbone = build_backbone()
    add_modules(backbone, 'a')
    alone = backbone(pictures())
    add_modules(backbone, 'b')
    assert len(backbone(pictures())) == 2
    backbone.remove('b')
    assert backbone.bank.names == ['a']
    assert equal(backbone(pictures()), alone)
    backbone.remove('a')
    assert equal(backbone(pictures()), backbone.trunk(pictures()))
    add_modules(backbone, 'a')  # the name is free again
    assert equal(backbone(pictures()), alone)


def test_remove_forgets_roles(tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    first = build_backbone(trunk, new_module='a')
    save_module(first, 'a', tmp_path / 'zoo')
    first.remove('a')
    assert first.new_module is None
    tuned = build_backbone(
        trunk, zoo=str(tmp_path / 'zoo'), modules=['a'], tune_modules=True)
    tuned.add('b')
    tuned.remove('a')
    tuned.set_fusion(dict(type='EnsMoE'))  # asks for tuned modules
    assert tuned.bank.names == ['b']


def test_remove_refuses() -> None:
    backbone = build_backbone()
    add_modules(backbone, *NAMES)
    backbone.set_fusion(
        dict(type='EnsMoE', tasks=dict(x=['a', 'b'], y=['b'])))
    expected = backbone(pictures())
    for name, sentence in (('a', r"the tasks \['x'\] of the fusion"),
                           ('b', r"the tasks \['x', 'y'\]"),
                           ('z', r"no modules \['z'\]")):
        with pytest.raises(ValueError, match=sentence):
            backbone.remove(name)
    with backbone.only('c'), pytest.raises(ValueError, match='`only`'):
        backbone.remove('c')
    backbone.remove('c')
    assert backbone.bank.names == ['a', 'b']
    assert equal(backbone(pictures()), expected)


# ------------------------------------------------------------------ status


def test_status_of_all_there_is() -> None:
    backbone = build_backbone()
    add_modules(backbone, 'frozen')
    backbone.add('fresh', dict(type='vim_mm.LoRA', rank=2))
    backbone.add('part')
    backbone.bank.adapter('part', 'layers.0.attn').requires_grad_(False)
    backbone.set_fusion(
        dict(type='EnsMoE', tasks=dict(x=['frozen', 'part'], y=['fresh'])))
    status = backbone.status()
    numbers = {m.name: m for m in status.modules}
    assert list(numbers) == ['frozen', 'fresh', 'part']
    count = {name: sum(t.numel() for t in backbone.bank.export(name).values())
             for name in numbers}
    assert {n: m.stored for n, m in numbers.items()} == count
    assert numbers['fresh'].trained == count['fresh']
    assert numbers['frozen'].trained == 0
    assert 0 < numbers['part'].trained < count['part']
    assert [m.learns for m in status.modules] == [False, True, 'irregular']
    assert [m.active for m in status.modules] == [True, False, True]
    assert [m.kind for m in status.modules] == ['ConvPass', 'LoRA', 'ConvPass']
    assert numbers['fresh'].slots == backbone.bank.slots_of('fresh')
    learns = [p for p in backbone.parameters() if p.requires_grad]
    assert status.trained == sum(p.numel() for p in learns)
    assert status.trunk == sum(p.numel() for p in backbone.trunk.parameters())
    gates = 6 * 2 + 6
    assert status.stored == sum(count.values()) + gates
    assert (status.fusion, status.tasks, status.task, status.learning) == (
        'EnsMoE', ['x', 'y'], 'x', ['x'])
    text = str(status)
    for said in (*count, 'irregular', f'{status.trunk:,}', 'tasks x, y',
                 f"{count['part']:,}", 'runs x'):
        assert said in text
    assert asdict(status)['modules'][1]['name'] == 'fresh'
    backbone.select_task('y')

    def active() -> List[str]:
        return [m.name for m in backbone.status().modules if m.active]

    assert active() == ['fresh']
    with backbone.for_tasks(['x', 'y']):
        assert active() == list(numbers)
    with backbone.only('part'):
        assert active() == ['part']


def test_status_of_nothing() -> None:
    backbone = build_backbone(save_trunk=True)
    status = backbone.status()
    assert status.modules == status.tasks == [] and status.fusion is None
    assert status.trained == 0 and status.stored == status.trunk
    assert 'VisionTransformer, 6 slots' in str(status)


# ------------------------------------------------------------------- merge

FUSIONS = [
    dict(type='EnsMoE'),
    dict(type='EnsMoE', top_k=2, tasks=dict(x=['c', 'a', 'b'], y=['a'])),
    dict(type='EnsMoE', zero_module=True),
    dict(type='LinearMoE'),
    dict(type='FixedFusion', weights=dict(a=1.5, c=-0.7)),
    dict(type='ParameterMerge'),
    dict(type='FixedMerge', weights=dict(a=1.5, c=-0.7)),
]
ADAPTERS = [
    dict(type='ConvPass', hidden_dims=3, scale=2.),
    dict(type='BottleneckAdapter', hidden_dims=3),
    dict(type='LoRA', rank=2, alpha=6),
    dict(type='SideLadder', hidden_dims=3),
]


def fused(fusion: dict, adapter: dict = ADAPTERS[0]) -> ViMBackbone:
    backbone = build_backbone().eval()
    for index, name in enumerate(NAMES):
        backbone.add(name, adapter)
        fill(backbone.bank.members[name], seed=index)
    backbone.set_fusion(fusion)
    fill(backbone.fusion, 1.)
    return backbone


@pytest.mark.parametrize('adapter', ADAPTERS, ids=lambda c: c['type'])
@pytest.mark.parametrize('fusion', FUSIONS, ids=str)
def test_merge_gives_what_ran(fusion: dict, adapter: dict,
                              tmp_path: Path) -> None:
    backbone = fused(fusion, adapter)
    with torch.no_grad():
        expected = backbone(pictures())
    backbone.merge()
    assert backbone.bank.names == ['merged']
    assert backbone.fusion is None and backbone.tasks == []
    found = backbone(pictures())
    close(found, expected)
    assert not found[-1].requires_grad and backbone.status().trained == 0
    # it is a module as any other
    save_module(backbone, 'merged', tmp_path / 'zoo')
    again = ViMBackbone(
        trunk=deepcopy(backbone.trunk), probe_size=SIZE,
        zoo=str(tmp_path / 'zoo'), modules=['merged'])
    assert equal(again(pictures()), found)
    assert Zoo(tmp_path / 'zoo').card('merged').kind == adapter['type']
    backbone.remove('merged')
    assert equal(backbone(pictures()), backbone.trunk(pictures()))


def test_merge_takes_the_task_that_runs_and_weights_that_are_given() -> None:
    backbone = fused(FUSIONS[1])
    backbone.select_task('y')
    with backbone.only('a'):
        alone = backbone(pictures())
    mine = deepcopy(backbone)
    mine.merge('mine')
    close(mine(pictures()), alone)  # the other one has what it had
    assert backbone.bank.names == NAMES and backbone.tasks == ['x', 'y']
    gates = backbone.gates()
    assert gates == {slot: dict(a=1.) for slot in backbone.slots}
    given = {slot: dict(b=.5, c=-float(index))
             for index, slot in enumerate(backbone.slots)}
    backbone.set_fusion(dict(type='FixedFusion', weights=given))
    expected = backbone(pictures())
    backbone.merge()
    close(backbone(pictures()), expected)


@pytest.mark.parametrize(('change', 'sentence'), [
    (lambda b: setattr(b, 'fusion', None), 'no `fusion` to fold'),
    (lambda b: b.set_fusion(dict(type='RoutedMoE')), 'for every image'),
    (lambda b: b.set_fusion(dict(type='FixedFusion', weights={})), 'nothing'),
    (lambda b: b.add('merged'), "already holds a module 'merged'"),
    (lambda b: (b.add('d', dict(type='LoRA', rank=2), r'layers\.1\.attn\.qkv'),
                b.set_fusion(dict(type='EnsMoE'))), 'differ'),
])
def test_merge_refuses_and_changes_nothing(change, sentence: str) -> None:
    backbone = fused(FUSIONS[0])
    change(backbone)
    names, fusion = backbone.bank.names, backbone.fusion
    before = snapshot(backbone)
    with pytest.raises(ValueError, match=sentence):
        backbone.merge()
    assert backbone.bank.names == names and backbone.fusion is fusion
    assert same(snapshot(backbone), before)


@pytest.mark.parametrize('context', [
    lambda b: b.only('a'), lambda b: b.for_tasks(['x', 'y'])])
def test_merge_waits_for_the_end_of_a_context(context: Callable) -> None:
    backbone = fused(dict(type='EnsMoE', tasks=['x', 'y']))
    with context(backbone), pytest.raises(ValueError, match='leave that'):
        backbone.merge()
    assert backbone.bank.names == NAMES
