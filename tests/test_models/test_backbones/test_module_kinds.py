# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Every kind of module in, or beside, every kind of trunk."""

import copy
from pathlib import Path
from typing import Callable, Dict, List, Optional

import pytest
import torch
from torch import Tensor

from _tiny import (DIMS, KINDS, LEVELS, SIZE, TRUNKS, Pictures, build_backbone,
                   build_model, fill, fusion_neck, same, save_trunk, snapshot,
                   vit)
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.fusion import BaseFusion
from vim_mm.registry import MODELS
from vim_mm.zoo import Zoo, ZooError, save_module, trunk_fingerprint

ADAPTERS = dict(
    conv=dict(type='ConvPass', hidden_dims=4),
    bottleneck=dict(type='BottleneckAdapter', hidden_dims=4),
    lora=dict(type='LoRA', rank=3, alpha=6),
    neck=dict(type='SideLadder', hidden_dims=4))
COMBINATIONS = [(kind, trunk) for kind in ADAPTERS for trunk in TRUNKS
                if kind != 'lora' or trunk not in ('resnet', 'timm')]


def backbone_of(trunk: str, **kwargs) -> ViMBackbone:
    probe = 64 if trunk in ('swin', 'timm') else SIZE
    return MODELS.build(
        dict(type='vim_mm.ViMBackbone', trunk=TRUNKS[trunk], probe_size=probe,
             **kwargs))


def pictures(trunk: str = 'vit', batch: int = 2) -> Tensor:
    size = (56, 84) if 'vit' in trunk else (64, 96)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *size, generator=generator)


def equal(first: tuple, second: tuple) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def close(first: tuple, second: tuple) -> None:
    torch.testing.assert_close(
        tuple(first), tuple(second), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope='module')
def zoo(tmp_path_factory) -> Path:
    """A trunk and a zoo with two modules of every kind: conv0, conv1, …"""
    folder = tmp_path_factory.mktemp('kinds')
    trunk = save_trunk(folder / 'trunk.pth')
    for kind, adapter in ADAPTERS.items():
        for index in range(2):
            backbone = build_backbone(
                trunk, new_module=f'{kind}{index}', adapter=adapter)
            fill(backbone.bank, 0.2, index)
            save_module(backbone, f'{kind}{index}', str(folder / 'zoo'))
    for index, (name, slots) in enumerate(
            dict(low=r'outputs\.[01]', high=r'outputs\.[12]').items()):
        backbone = build_backbone(
            trunk, new_module=name, adapter=dict(ADAPTERS['neck'],
                                                 slots=slots))
        fill(backbone.bank, 0.2, 2 + index)
        save_module(backbone, name, str(folder / 'zoo'))
    return folder


def from_zoo(folder: Path, *modules: str, trunk: dict = {},
             **kwargs) -> ViMBackbone:
    init_cfg = dict(type='Pretrained', checkpoint=str(folder / 'trunk.pth'))
    return build_backbone(
        vit(init_cfg=init_cfg, **trunk), modules=list(modules),
        zoo=str(folder / 'zoo'), **kwargs)


# ------------------------------------------------- one module, every trunk


@pytest.mark.parametrize(('kind', 'trunk'), COMBINATIONS)
def test_fresh_module_changes_nothing_and_learns(kind: str,
                                                 trunk: str) -> None:
    backbone = backbone_of(trunk, new_module='n', adapter=ADAPTERS[kind])
    x = pictures(trunk)
    with backbone.only():
        plain = backbone(x)
    assert equal(backbone(x), plain)
    fill(backbone.bank, 0.05)
    changed = backbone(x)
    assert not any(map(torch.equal, changed, plain))
    sum(level.square().sum() for level in changed).backward()
    assert not [n for n, p in backbone.bank.named_parameters()
                if p.grad is None or not p.grad.abs().sum() > 0]
    assert not any(p.grad is not None for p in backbone.trunk.parameters())


@pytest.mark.parametrize('trunk', ['vit', 'swin', 'convnext'])
def test_lora_is_the_trunk_with_changed_weights(trunk: str) -> None:
    backbone = backbone_of(trunk, new_module='n', adapter=ADAPTERS['lora'])
    fill(backbone.trunk, 0.1)
    fill(backbone.bank, 0.3)
    merged = copy.deepcopy(backbone.trunk)
    for hooked in merged.modules():
        hooked._forward_hooks.clear()
    for slot in backbone.bank.slots_of('n'):
        adapter = backbone.bank.adapter('n', slot)
        weight = merged.get_submodule(slot).weight
        weight.data += 2 * adapter.up.weight @ adapter.down.weight
    x = pictures(trunk)
    close(backbone(x), merged(x))
    with backbone.only():
        assert not torch.allclose(backbone(x)[-1], merged(x)[-1], atol=1e-2)


def test_default_slots_of_each_kind() -> None:
    slots = {
        kind: build_backbone(new_module='n', adapter=adapter).slots
        for kind, adapter in ADAPTERS.items()
    }
    branches = [f'layers.{i}.{b}' for i in range(3) for b in ('attn', 'ffn')]
    assert list(slots['conv']) == list(slots['bottleneck']) == branches
    linears = [f'layers.{i}.attn.{n}' for i in range(3)
               for n in ('qkv', 'proj')]
    assert list(slots['lora']) == linears
    assert [s.widths for s in slots['lora'].values()] == [[32, 96], 32] * 3
    assert list(slots['neck']) == [f'outputs.{i}' for i in range(3)]


def test_lora_on_a_table_that_pictures_share() -> None:
    trunk = dict(
        type='mmpretrain.SwinTransformerV2',
        arch=dict(
            embed_dims=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            extra_norm_every_n_blocks=0),
        img_size=64,
        window_size=4,
        pad_small_map=True,
        out_indices=(0, 1, 2, 3))
    backbone = MODELS.build(
        dict(type='vim_mm.ViMBackbone', trunk=trunk, probe_size=64,
             new_module='n', adapter=dict(
                 ADAPTERS['lora'], slots=r'.*\.cpb_mlp\.[02]')))
    fill(backbone.bank, 0.3)
    x = pictures('swin', batch=3)
    alone = [backbone(picture[None]) for picture in x]
    close(backbone(x), [torch.cat(level) for level in zip(*alone)])
    with backbone.only():
        assert not torch.allclose(
            backbone(x)[-1], torch.cat([a[-1] for a in alone]), atol=1e-4)


@pytest.mark.parametrize(('adapter', 'names'), [
    (dict(type='ConvPass', slots=r'.*\.ffn'),
     [f'layers.{i}.ffn' for i in range(3)]),
    (dict(type='LoRA', slots=r'layers\.1\.ffn\.layers\.(0\.0|1)'),
     ['layers.1.ffn.layers.0.0', 'layers.1.ffn.layers.1']),
    (dict(type='SideLadder', slots=r'outputs\.[02]'),
     ['outputs.0', 'outputs.2'])])
def test_a_module_may_name_its_slots(adapter: dict, names: List[str],
                                     tmp_path: Path) -> None:
    backbone = build_backbone(new_module='n', adapter=adapter)
    assert backbone.bank.slots_of('n') == names
    # what it occupies is on its card, not in its config
    card = save_module(backbone, 'n', str(tmp_path))
    assert 'slots' not in card.adapter and card.slots == names
    fill(backbone.bank)
    with backbone.only():
        plain = backbone(pictures())
    changed = [not torch.equal(a, b)
               for a, b in zip(backbone(pictures()), plain)]
    assert changed[-1] and (changed[1] or names[0] == 'outputs.0')
    assert (not changed[1]) == (names[0] == 'outputs.0')


@pytest.mark.parametrize(('kwargs', 'sentence'), [
    (dict(adapter=dict(type='LoRA', slots=r'.*\.attn')),
     "LoRA sits in linear layers, and 'layers.0.attn' is none"),
    (dict(adapter=dict(slots=r'.*\.qkv', type='ConvPass')),
     'ConvPass cannot sit beside a layer that maps 32 channels to 96'),
    (dict(adapter=dict(type='LoRA', slots=r'layers.(\d+.attn')),
     'is no regular expression: missing'),
    (dict(adapter=dict(type='SideLadder', slots='layers.*')),
     'matches none of the outputs'),
    (dict(adapter=dict(type='SideLadder', levels=[0, 1])),
     r"'n' reads the trunk's stages \[0, 1\], and this .*\[0, 1, 2\]"),
    (dict(adapter=dict(type='ConvPass', slots=r'layers\.2\.attn'),
          trunk=vit(out_indices=[1])), 'No output of the trunk depends'),
    (dict(adapter=dict(type='LoRA'), trunk=TRUNKS['resnet']),
     'No default slots are known for ResNet'),
])
def test_mistakes_are_sentences(kwargs: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_backbone(new_module='n', **kwargs)


@pytest.mark.parametrize('kind', ['conv', 'bottleneck', 'lora'])
def test_a_size_that_patches_do_not_fill_is_cut_as_without_modules(
        kind: str) -> None:
    trunk = vit(patch_cfg=dict(padding=0))  # by default it pads by itself
    backbone = build_backbone(trunk, new_module='n', adapter=ADAPTERS[kind])
    x = torch.randn(1, 3, 56, 60)
    assert all(map(torch.equal, backbone(x), backbone.trunk(x)))


def test_tokens_in_windows_have_no_grid() -> None:
    with pytest.raises(ValueError, match='ConvPass needs .*rows and columns'):
        backbone_of('swin', new_module='n',
                    adapter=dict(type='ConvPass', slots=r'.*\.w_msa\.proj'))


# ------------------------------------------------------------- mixed kinds


def test_slots_are_those_of_all_modules_in_trunk_order(zoo: Path) -> None:
    backbone = from_zoo(zoo, 'neck0', 'lora0', new_module='n',
                        adapter=dict(type='ConvPass', slots=r'.*1\.attn'))
    assert list(backbone.slots) == [
        'layers.0.attn.qkv', 'layers.0.attn.proj', 'layers.1.attn',
        'layers.1.attn.qkv', 'layers.1.attn.proj', 'layers.2.attn.qkv',
        'layers.2.attn.proj', 'outputs.0', 'outputs.1', 'outputs.2']
    assert backbone.bank.slots_of('n') == ['layers.1.attn']
    # an unused backbone keeps the slots of its trunk's class
    assert len(from_zoo(zoo).slots) == 6


@pytest.mark.parametrize('kind', list(ADAPTERS))
def test_zoo_round_trip(kind: str, zoo: Path) -> None:
    original = from_zoo(zoo, f'{kind}0', f'{kind}1')
    other = from_zoo(zoo)
    other.load_modules(str(zoo / 'zoo'), [f'{kind}0', f'{kind}1'])
    for first, second in zip(original(pictures()), other(pictures())):
        assert equal(first, second)
    assert not torch.equal(first[-1], original(pictures())[0][-1])
    card, tensors = Zoo(zoo / 'zoo').load(f'{kind}0')
    assert card.kind == ADAPTERS[kind]['type'] and card.format_version == 1
    assert same(original.bank.export(f'{kind}0'), tensors)
    assert Zoo(zoo / 'zoo').verify() == []
    torch.manual_seed(3)
    with pytest.raises(ZooError, match='weights in its slots differ'):
        build_backbone(vit(), modules=[f'{kind}0'], zoo=str(zoo / 'zoo'))


@pytest.mark.parametrize('kind', list(ADAPTERS))
def test_one_hot_is_the_single_module(kind: str, zoo: Path) -> None:
    names = [f'{kind}0', f'{kind}1']
    streams = from_zoo(zoo, *names)(pictures())
    for index, stream in enumerate(streams):
        fused = from_zoo(zoo, *names, fusion=dict(
            type='FixedFusion', weights={names[index]: 1.}))
        close(fused(pictures()), stream)


@pytest.mark.parametrize('modules', [('conv0', 'lora0', 'bottleneck0'),
                                     ('neck0', 'neck1')])
def test_gates_learn_in_trunk_and_beside(modules: tuple, zoo: Path) -> None:
    backbone = from_zoo(zoo, *modules, fusion=dict(type='EnsMoE'))
    outputs = backbone(pictures())
    sum(level.square().sum() for level in outputs).backward()
    grad = backbone.fusion.logits['default'].grad
    # every row is that of a slot where a module sits, and learns
    assert (grad.abs().sum(dim=1) > 0).all()
    assert backbone.gates().keys() == {
        slot for name in modules for slot in backbone.bank.slots_of(name)}


@pytest.mark.parametrize('names', [
    ['neck0', 'neck1'], ['low', 'high'], ['neck0', 'high', 'low', 'neck1']])
def test_a_fused_ladder_is_the_sum_of_the_ladders(names: List[str],
                                                  zoo: Path) -> None:
    """Also of ladders over other levels, whose states are their own."""
    backbone = from_zoo(zoo, *names, fusion=dict(type='EnsMoE'))
    backbone.fusion.set_logits('default', torch.randn(3, len(names)))
    with backbone.only():
        plain = backbone(pictures())
    streams = [from_zoo(zoo, name)(pictures()) for name in names]
    gates = backbone.fusion.gates('default')
    close(
        backbone(pictures()), [
            level + sum(g * (s[index] - level)
                        for g, s in zip(gates[index], streams))
            for index, level in enumerate(plain)
        ])


class RowPerPicture(BaseFusion):
    """Each image has weights of its own, the same in all slots."""

    per_picture = True

    def __init__(self, modules: List[str], rows: Tensor) -> None:
        super().__init__({name: {} for name in modules})
        self.given = rows

    def gates(self, task: str) -> Tensor:
        return self.given

    def rows(self, task: str) -> Callable[[int, Tensor], Tensor]:

        def row(place: int, x: Tensor) -> Tensor:
            assert len(x) == len(self.given)  # windows are put together again
            return self.given

        return row


@pytest.mark.parametrize(('kind', 'trunk'), [
    *((kind, 'vit') for kind in ADAPTERS), ('lora', 'swin'),
    ('conv', 'resnet'), ('neck', 'convnext')])
def test_gates_of_single_pictures(kind: str, trunk: str) -> None:
    backbone = backbone_of(trunk, new_module='a', adapter=ADAPTERS[kind])
    backbone.add('b', ADAPTERS[kind])
    fill(backbone.bank, 0.1)
    rows, x = torch.rand(3, 2), pictures(trunk, batch=3)
    backbone.fusion = RowPerPicture(['a', 'b'], rows)
    backbone.select_task(None)
    together = backbone(x)
    for index, row in enumerate(rows):
        backbone.fusion.given = row[None]
        close([level[index:index + 1] for level in together],
              backbone(x[index:index + 1]))


def test_kinds_in_and_beside_the_trunk_are_not_fused_there(
        zoo: Path) -> None:
    sentence = 'some sit in the trunk and some beside it.*ViMFusionNeck'
    names = ('conv0', 'neck0')
    with pytest.raises(ValueError, match=sentence):
        from_zoo(zoo, *names, fusion=dict(type='EnsMoE'))
    backbone = from_zoo(zoo, *names, fusion=dict(
        type='EnsMoE', tasks=dict(a=['conv0'], b=['neck0'])))
    with pytest.raises(ValueError, match=sentence):
        backbone.add_task('c')
    with pytest.raises(ValueError, match=sentence):
        with backbone.only(*names):
            pass
    assert backbone.fusion.tasks == ['a', 'b']
    backbone.eval()
    for task, name in zip('ab', names):
        backbone.select_task(task)
        with backbone.only(name):
            alone = backbone(pictures())
        close(backbone(pictures()), alone)


# --------------------------------------------------------- beside the trunk


def count_passes(backbone: ViMBackbone) -> List[bool]:
    """For every pass of the trunk, whether autograd watched."""
    seen: List[bool] = []
    backbone.trunk.register_forward_hook(
        lambda *_: seen.append(torch.is_grad_enabled()))
    return seen


def test_plugin_necks_share_one_pass_without_autograd(zoo: Path) -> None:
    backbone = from_zoo(zoo, 'neck0', 'neck1', new_module='n',
                        adapter=ADAPTERS['neck'])
    seen = count_passes(backbone)
    kept: List[Tensor] = []
    backbone.trunk.register_forward_hook(lambda _, __, out: kept.extend(out))
    streams = backbone(pictures())
    assert seen == [False] and len(streams) == 3
    assert not any(level.requires_grad for level in kept)
    assert [s[-1].requires_grad for s in streams] == [False, False, True]
    for name, stream in zip(backbone.bank.names, streams):
        with backbone.only(name):
            assert equal(backbone(pictures()), stream)
    assert seen == [False] * 4
    # whoever asks for the gradient of the pictures gets it
    x = pictures().requires_grad_()
    backbone(x)[0][0].sum().backward()
    assert x.grad.abs().sum() > 0


def test_streams_of_mixed_kinds(zoo: Path) -> None:
    names = ['neck0', 'conv0', 'neck1', 'lora0']
    backbone = from_zoo(zoo, *names)
    seen = count_passes(backbone)
    streams = backbone(pictures())
    assert len(seen) == 1 + 2
    for name, stream in zip(names, streams):
        close(stream, from_zoo(zoo, name)(pictures()))


@pytest.mark.parametrize(('out_type', 'shape'), [
    ('featmap', (2, DIMS, 4, 6)), ('raw', (2, 25, DIMS)),
    ('cls_token', (2, DIMS)), ('avg_featmap', (2, DIMS))])
def test_plugin_necks_read_maps_tokens_and_vectors(out_type: str,
                                                   shape: tuple) -> None:
    trunk = vit(out_type=out_type, out_indices=[1, 2])
    backbone = build_backbone(trunk, new_module='n', adapter=ADAPTERS['neck'])
    assert backbone.bank.adapter_cfg('n')['levels'] == [1, 2]
    with backbone.only():
        plain = backbone(pictures())
    assert equal(backbone(pictures()), plain) and plain[0].shape == shape
    fill(backbone.bank)
    outputs = backbone(pictures())
    assert not any(map(torch.equal, outputs, plain))
    outputs[1].square().sum().backward()
    # the first rung reaches the second level through its state
    rung = backbone.bank.adapter('n', 'outputs.0')
    assert rung.down.weight.grad.abs().sum() > 0


def test_other_levels_are_refused(zoo: Path) -> None:
    with pytest.raises(ValueError, match=r"'neck0' reads .*\[0, 1, 2\], and "
                       r'this trunk gives out \[0, 2\]; set .*out_indices'):
        from_zoo(zoo, 'neck0', trunk=dict(out_indices=[0, 2]))


def test_fingerprint_of_outputs_is_that_of_the_whole_trunk() -> None:
    trunk = MODELS.build(vit())
    first = trunk_fingerprint(trunk, ['outputs.0'])
    assert first == trunk_fingerprint(trunk, ['outputs.2', 'outputs.1'])
    assert first != trunk_fingerprint(trunk, ['layers.0.attn'])
    trunk.pos_embed.data += 1  # another image size
    assert first == trunk_fingerprint(trunk, ['outputs.0'])
    trunk.patch_embed.projection.bias.data += 1
    assert first != trunk_fingerprint(trunk, ['outputs.0'])


@pytest.mark.parametrize('kind', KINDS)
def test_a_model_learns_with_a_plugin_neck(kind: str) -> None:
    torch.manual_seed(0)
    model = build_model(
        kind,
        dict(trunk=vit(), new_module='n', adapter=ADAPTERS['neck']))
    model.train()
    trunk = snapshot(model.backbone.trunk)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=5e-3)
    history = []
    for _ in range(8):
        data = model.data_preprocessor(Pictures(kind).batch(), True)
        loss = sum(v for k, v in model(**data, mode='loss').items()
                   if 'loss' in k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss))
    assert history[-1] < 0.8 * history[0]
    assert not [n for n, p in model.backbone.bank.named_parameters()
                if not p.grad.abs().sum() > 0]
    assert same(snapshot(model.backbone.trunk), trunk)
    model.eval()
    data = model.data_preprocessor(Pictures(kind).batch(), False)
    assert len(model(**data, mode='predict')) == 8


@pytest.mark.parametrize('kind', KINDS)
def test_mixed_kinds_are_fused_by_the_neck(kind: str, zoo: Path) -> None:
    names = ['conv0', 'lora0', 'neck0', 'bottleneck0']
    init_cfg = dict(type='Pretrained', checkpoint=str(zoo / 'trunk.pth'))
    model = build_model(
        kind,
        dict(trunk=vit(init_cfg=init_cfg), modules=names,
             zoo=str(zoo / 'zoo')), fusion_neck(kind, names))
    streams = model.backbone(pictures())
    gates = model.neck.fusion.gates('default')
    fused = [sum(g * s[level] for g, s in zip(row, streams))
             for level, row in enumerate(gates)]
    close(model.neck.fuse(streams), fused)
    assert len(fused) == len(LEVELS)
    data = model.data_preprocessor(Pictures(kind).batch(), True)
    losses: Dict[str, Tensor] = model(**data, mode='loss')
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert (model.neck.fusion.logits['default'].grad.abs() > 0).all()


# ------------------------------------------------- copies, tracing, saving


@pytest.mark.parametrize('kind', list(ADAPTERS))
def test_copies_traces_and_checkpoints(kind: str) -> None:
    def build() -> ViMBackbone:
        torch.manual_seed(0)
        return build_backbone(new_module='n', adapter=ADAPTERS[kind])

    backbone = build()
    fill(backbone.bank)
    outputs = backbone(pictures())
    other = copy.deepcopy(backbone)
    fill(other.bank, seed=5)
    assert not torch.equal(other(pictures())[-1], outputs[-1])
    assert equal(backbone(pictures()), outputs)
    fresh = build()
    fresh.load_state_dict(backbone.state_dict())
    assert equal(fresh(pictures()), outputs)
    assert not [k for k in backbone.state_dict() if k.startswith('trunk.')]
    backbone.eval()
    traced = torch.jit.trace(backbone, pictures(batch=1), check_trace=False)
    close(traced(pictures()[:1] + 1), backbone(pictures()[:1] + 1))


def test_a_module_of_another_kind_keeps_checkpoints_loadable(
        zoo: Path) -> None:
    """The trunk is the same one, whatever is plugged in."""
    old = from_zoo(zoo, 'conv0')
    new = from_zoo(zoo, 'conv0', 'lora0', 'neck0')
    assert torch.equal(old.trunk_fingerprint, new.trunk_fingerprint)
    missing, unexpected = new.load_state_dict(old.state_dict(), strict=False)
    assert not unexpected and all('lora0' in k or 'neck0' in k
                                  for k in missing)


def test_meta_device_and_parameters_at_full_size() -> None:
    trunk = dict(type='mmpretrain.VisionTransformer', arch='b',
                 out_type='featmap', out_indices=[2, 5, 8, 11])
    sizes = dict(
        BottleneckAdapter=24 * (2 * 768 * 8 + 8 + 768),
        LoRA=12 * 8 * (768 + 3 * 768 + 2 * 768),
        SideLadder=4 * (2 * 768 * 32 + 32 + 9 * 32**2 + 32 + 768))
    for kind, size in sizes.items():
        with torch.device('meta'):
            backbone = MODELS.build(
                dict(type='ViMBackbone', trunk=trunk, new_module='n',
                     adapter=dict(type=kind)))
            x = torch.empty(1, 3, 224, 224)
        assert backbone(x)[-1].shape == (1, 768, 14, 14)
        assert sum(p.numel() for p in backbone.bank.parameters()) == size


# ------------------------------------------------------------ timm's trunks

TIMM = {
    'convnext_atto': (dict(features_only=True, depths=(1, 1, 2, 1)), [
        'stages_0.blocks.0', 'stages_1.blocks.0', 'stages_2.blocks.0',
        'stages_2.blocks.1', 'stages_3.blocks.0']),
    'regnetx_002': (dict(features_only=True), [
        's1.b1', 's2.b1', *(f's3.b{i}' for i in range(1, 5)),
        *(f's4.b{i}' for i in range(1, 8))]),
    'resnet10t': (dict(features_only=True),
                  [f'layer{i}.0' for i in range(1, 5)]),
    'vit_tiny_patch16_224': (
        dict(depth=2, embed_dim=24, num_heads=2, img_size=64),
        [f'blocks.{i}.{b}' for i in range(2) for b in ('attn', 'mlp')]),
}


def timm(name: str, kind: str) -> ViMBackbone:
    trunk = dict(type='mmpretrain.TIMMBackbone', model_name=name,
                 pretrained=False, **TIMM[name][0])
    return MODELS.build(
        dict(type='vim_mm.ViMBackbone', trunk=trunk, probe_size=64,
             new_module='n', adapter=ADAPTERS[kind]))


@pytest.mark.parametrize('name', list(TIMM))
def test_default_slots_of_timm(name: str) -> None:
    backbone, x = timm(name, 'conv'), torch.ones(1, 3, 64, 64)
    assert list(backbone.slots) == [f'timm_model.{n}' for n in TIMM[name][1]]
    is_map = 'vit' not in name
    assert all(s.is_map == is_map for s in backbone.slots.values())
    with backbone.only():
        plain = backbone(x)
    fill(backbone.bank)
    assert not any(
        torch.allclose(a, b) for a, b in zip(backbone(x)[1:], plain[1:]))


@pytest.mark.parametrize(('kind', 'slots', 'name'), [
    ('neck', None, 'outputs.0'),
    ('conv', r'timm_model\.layers_\d\.blocks\.\d', 'layers_0.blocks.0'),
])
def test_maps_with_channels_last_are_refused(kind: str, slots: Optional[str],
                                             name: str) -> None:
    trunk = dict(
        type='mmpretrain.TIMMBackbone',
        model_name='swin_tiny_patch4_window7_224', features_only=True,
        pretrained=False, depths=(1, 1), embed_dim=24, num_heads=(2, 2),
        img_size=64, window_size=4, out_indices=(0, 1))
    cfg = dict(type='vim_mm.ViMBackbone', trunk=trunk, probe_size=64,
               new_module='n', slots=slots, adapter=ADAPTERS[kind])
    with pytest.raises(ValueError, match=f'{name}.*channels last'):
        MODELS.build(cfg)


@pytest.mark.parametrize('kind', list(ADAPTERS))
def test_kinds_in_a_vit_of_timm(kind: str) -> None:
    backbone, x = timm('vit_tiny_patch16_224', kind), torch.randn(2, 3, 64, 64)
    if kind == 'lora':
        assert list(backbone.slots) == [
            f'timm_model.blocks.{i}.attn.{n}' for i in range(2)
            for n in ('qkv', 'proj')]
    with backbone.only():
        plain = backbone(x)
    assert equal(backbone(x), plain) and plain[0].shape == (2, 17, 24)
    backbone(x)[0].square().sum().backward()
    ups = [p for n, p in backbone.bank.named_parameters() if '.up.' in n]
    assert ups and all(p.grad.abs().sum() > 0 for p in ups)
