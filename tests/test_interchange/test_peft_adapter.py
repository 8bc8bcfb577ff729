# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""LoRA modules against PEFT itself, on small random nets of both sides."""

import json
import runpy
import sys
from copy import deepcopy
from pathlib import Path
from typing import Dict, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vim_mm.interchange import LAYOUTS, export_adapter, import_adapter
from vim_mm.interchange.trunks import convert_trunk
from vim_mm.models.backbones import build_trunk
from vim_mm.registry import MODELS
from vim_mm.zoo import ModuleCard, Zoo, ZooError, trunk_fingerprint

peft = pytest.importorskip('peft', reason='the package peft is not installed')
transformers = pytest.importorskip(
    'transformers', reason='the package transformers is not installed')

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'model_converters' / 'peft_adapter.py'
DIMS, DEPTH, PATCH, SIZE = 64, 2, 14, 28
LINEARS = ('attn.qkv', 'attn.proj', 'ffn.layers.0.0', 'ffn.layers.1')
TIMM_LINEARS = ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')
#: The installed transformers has names of its version in memory.
V5 = int(transformers.__version__.split('.')[0]) >= 5
HERE = ('timm', 'vit', 'clip', 'dinov2')
CLOSE = dict(rtol=1e-9, atol=1e-9)  # double precision: rounding alone


class Twins(NamedTuple):
    """A net of another library and the config of the same net as a trunk."""

    layout: str
    theirs: nn.Module
    ours: dict
    blocks: str = 'layers'

    @property
    def names(self) -> str:
        """Layout of the other net's names in memory."""
        return f'{self.layout}-v5' if V5 and self.layout != 'timm' else \
            self.layout

    @property
    def slots(self) -> Dict[str, str]:
        """Linears of every block, as in mmpretrain's ViT, to our slots."""
        own = LINEARS if self.blocks == 'layers' else TIMM_LINEARS
        return {
            f'layers.{i}.{x}': f'{self.blocks}.{i}.{y}'
            for i in range(DEPTH) for x, y in zip(LINEARS, own)
        }

    def run_theirs(self, net: nn.Module, x: Tensor) -> Tensor:
        if self.layout == 'timm':
            return net.forward_features(x)
        return net(pixel_values=x).last_hidden_state


def build_timm() -> nn.Module:
    from timm.models import VisionTransformer
    return VisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dim=DIMS,
        depth=DEPTH,
        num_heads=1,
        init_values=0.7,
        num_classes=0)


def build_hugging_face(layout: str) -> nn.Module:
    kinds = dict(
        vit=(transformers.ViTModel, transformers.ViTConfig),
        clip=(transformers.CLIPVisionModel, transformers.CLIPVisionConfig),
        dinov2=(transformers.Dinov2Model, transformers.Dinov2Config))
    model, config = kinds[layout]
    kwargs = dict(add_pooling_layer=False) if layout == 'vit' else {}
    sizes = dict(
        hidden_size=DIMS,
        num_hidden_layers=DEPTH,
        num_attention_heads=1,
        image_size=SIZE,
        patch_size=PATCH,
        intermediate_size=4 * DIMS)
    return model(config(**sizes), **kwargs)


def convert(layout: str, state: Dict[str, Tensor], folder: Path) -> dict:
    """Our trunk's config, its weights converted to ours."""
    save_file(state, folder / 'theirs.safetensors')
    path = folder / 'trunk.safetensors'
    family = 'dinov2' if layout == 'timm' else layout
    convert_trunk(family, folder / 'theirs.safetensors', path)
    with safe_open(path, 'pt') as file:
        cfg = json.loads(file.metadata()['backbone'])
    return dict(
        cfg,
        out_type='raw',
        final_norm=layout != 'clip',
        init_cfg=dict(type='Pretrained', checkpoint=str(path)))


def timm_trunk(state: Dict[str, Tensor], folder: Path,
               features_only: bool) -> dict:
    """The same net as a trunk that is timm's own, names included."""
    prefix = 'timm_model.model.' if features_only else 'timm_model.'
    path = folder / 'timm.safetensors'
    save_file({prefix + key: value for key, value in state.items()}, path)
    levels = dict(
        features_only=True, out_indices=(DEPTH - 1, )) if features_only else {}
    return dict(
        type='mmpretrain.TIMMBackbone',
        model_name='vit_tiny_patch16_224',
        img_size=SIZE,
        patch_size=PATCH,
        embed_dim=DIMS,
        depth=DEPTH,
        num_heads=1,
        init_values=0.7,
        num_classes=0,
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
        **levels)


@pytest.fixture(scope='module', params=[*HERE, 'TIMMBackbone'])
def twins(request, tmp_path_factory) -> Twins:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in HERE:
        return make_twins(request.param, folder)
    twins = make_twins('timm', folder)
    ours = timm_trunk(twins.theirs.state_dict(), folder, features_only=False)
    return twins._replace(ours=ours, blocks='timm_model.blocks')


@pytest.fixture(scope='module')
def clip(tmp_path_factory) -> Twins:
    return make_twins('clip', tmp_path_factory.mktemp('refused'))


@torch.no_grad()
def make_twins(layout: str, folder: Path) -> Twins:
    torch.manual_seed(0)
    theirs = build_timm() if layout == 'timm' else build_hugging_face(layout)
    for param in theirs.parameters():
        param.copy_(0.2 * torch.randn_like(param))
    state = {
        key: value
        for key, value in theirs.state_dict().items()
        if 'position_ids' not in key and 'mask_token' not in key
    }
    return Twins(layout, theirs.eval(), convert(layout, state, folder))


def picture() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(
        2, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)


@torch.no_grad()
def run_ours(twins: Twins, zoo: Path, name: str) -> Tensor:
    net = MODELS.build(
        dict(
            type='vim_mm.ViMBackbone',
            trunk=twins.ours,
            zoo=str(zoo),
            modules=[name],
            probe_size=SIZE)).double().eval()
    with net.only():
        bare = net(picture())[-1]
    output = net(picture())[-1]
    assert (output - bare).abs().max() > 1e-2, 'the module does nothing'
    return output


@torch.no_grad()
def run_peft(twins: Twins, adapter: Path) -> Tensor:
    net = peft.PeftModel.from_pretrained(deepcopy(twins.theirs), str(adapter))
    net = net.double().eval()
    return twins.run_theirs(net.base_model.model, picture())


def save_lora(twins: Twins,
              zoo: Path,
              name: str = 'ours',
              linears=LINEARS,
              **adapter) -> None:
    """A LoRA module of random values on some linears of every block."""
    trunk = build_trunk(twins.ours)
    cfg = dict(dict(type='vim_mm.LoRA', rank=3), **adapter)
    generator = torch.Generator().manual_seed(7)
    tensors, dims = {}, {}
    for layer, slot in twins.slots.items():
        if not layer.endswith(linears):
            continue
        linear = trunk.get_submodule(slot)
        widths = [linear.in_features, linear.out_features]
        dims[slot] = widths[0] if widths[0] == widths[1] else widths
        for param, shape in (('down', (cfg['rank'], widths[0])),
                             ('up', (widths[1], cfg['rank']))):
            tensors[f'{slot}.{param}.weight'] = 0.2 * torch.randn(
                shape, generator=generator)
    card = ModuleCard(
        name=name,
        kind='LoRA',
        adapter=cfg,
        slots=list(dims),
        dims=dims,
        trunk=dict(
            type=type(trunk).__name__,
            fingerprint=trunk_fingerprint(trunk, list(dims))))
    Zoo(zoo).save(card, tensors)


@torch.no_grad()
def save_peft(twins: Twins, folder: Path, **config) -> Path:
    """An adapter of random values, as PEFT saves it."""
    torch.manual_seed(5)
    net = peft.get_peft_model(
        deepcopy(twins.theirs),
        peft.LoraConfig(**dict(dict(r=3, lora_alpha=5), **config)))
    for name, param in net.named_parameters():
        if 'lora_' in name:
            param.copy_(0.2 * torch.randn_like(param))
    net.save_pretrained(str(folder))
    return folder


# --------------------------------------------------------------- exactness


@pytest.mark.parametrize(
    'adapter', [
        dict(rank=3, alpha=7),
        dict(rank=4, linears=('attn.qkv', 'ffn.layers.1')),
    ],
    ids=['all', 'some'])
def test_peft_computes_what_the_module_computes(twins, adapter, tmp_path):
    save_lora(twins, tmp_path / 'zoo', **adapter)
    path = export_adapter(tmp_path / 'zoo', 'ours', tmp_path / 'adapter',
                          twins.names)
    torch.testing.assert_close(
        run_ours(twins, tmp_path / 'zoo', 'ours'), run_peft(twins, path),
        **CLOSE)


QUERY_VALUE = dict(
    timm=['attn.qkv'],
    vit=['q_proj', 'v_proj'] if V5 else ['query', 'value'],
    clip=['q_proj', 'v_proj'],
    dinov2=['q_proj', 'v_proj'] if V5 else ['query', 'value'])
KEY = dict(
    timm='attn.qkv',
    vit='k_proj' if V5 else 'key',
    clip='k_proj',
    dinov2='k_proj' if V5 else 'key')
LAST = dict(
    timm='mlp.fc2',
    vit='mlp.fc2' if V5 else 'output.dense',
    clip='mlp.fc2',
    dinov2='mlp.fc2')


@pytest.mark.parametrize('case', ['all', 'query_value', 'mixed', 'rslora'])
def test_module_computes_what_peft_computes(twins, case, tmp_path):
    names = [
        name for name, module in twins.theirs.named_modules()
        if isinstance(module, nn.Linear)
    ]
    config = dict(
        all=dict(target_modules=names),
        query_value=dict(target_modules=QUERY_VALUE[twins.layout]),
        mixed=dict(
            target_modules=names,
            rank_pattern={KEY[twins.layout]: 5},
            alpha_pattern={
                KEY[twins.layout]: 2,
                f'.*0.{LAST[twins.layout]}': 11
            }),
        rslora=dict(
            target_modules=names,
            use_rslora=True,
            rank_pattern={LAST[twins.layout]: 6}))[case]
    path = save_peft(twins, tmp_path / 'adapter', **config)
    card = import_adapter(path, tmp_path / 'zoo', 'theirs',
                          build_trunk(twins.ours))
    assert card.adapter['type'] == 'vim_mm.LoRA'
    assert Zoo(tmp_path / 'zoo').verify() == []
    expected = run_peft(twins, path)
    # uneven scales are multiplied into float32 weights
    close = dict(
        rtol=1e-5, atol=1e-5) if case in ('mixed', 'rslora') else CLOSE
    torch.testing.assert_close(
        run_ours(twins, tmp_path / 'zoo', 'theirs'), expected, **close)
    again = export_adapter(tmp_path / 'zoo', 'theirs', tmp_path / 'again',
                           twins.names)
    torch.testing.assert_close(run_peft(twins, again), expected, **close)


def test_round_trip_changes_no_bit(twins, tmp_path):
    save_lora(twins, tmp_path / 'zoo', rank=4, alpha=0.3)
    path = export_adapter(tmp_path / 'zoo', 'ours', tmp_path / 'adapter',
                          twins.names)
    import_adapter(path, tmp_path / 'zoo', 'back', build_trunk(twins.ours))
    zoo = Zoo(tmp_path / 'zoo')
    (card, tensors), (card_back, back) = zoo.load('ours'), zoo.load('back')
    assert card.adapter == card_back.adapter
    assert (card.slots, card.dims,
            card.trunk) == (card_back.slots, card_back.dims, card_back.trunk)
    assert tensors.keys() == back.keys()
    assert all(torch.equal(tensors[key], back[key]) for key in tensors)


def test_an_adapter_beside_a_pyramid_of_timm(tmp_path):
    """With features_only timm's ViT sits one level deeper."""
    twins = make_twins('timm', tmp_path)
    path = save_peft(twins, tmp_path / 'adapter', target_modules='all-linear')
    state = twins.theirs.state_dict()
    zoo = Zoo(tmp_path / 'zoo')
    slots = {}
    for name in ('plain', 'pyramid'):
        trunk = timm_trunk(state, tmp_path, features_only=name == 'pyramid')
        card = import_adapter(path, zoo, name, build_trunk(trunk))
        slots[name] = card.slots
    assert slots['plain'][0] == 'timm_model.blocks.0.attn.qkv'
    assert slots['pyramid'][0] == 'timm_model.model.blocks.0.attn.qkv'
    values = [list(zoo.load(name)[1].values()) for name in slots]
    assert len(values[0]) == 2 * DEPTH * len(TIMM_LINEARS)
    assert all(map(torch.equal, *values))
    again = export_adapter(zoo, 'pyramid', tmp_path / 'again', 'timm')
    torch.testing.assert_close(
        run_peft(twins, again), run_peft(twins, path), **CLOSE)


def test_same_values_in_peft_s_own_file(clip, tmp_path):
    """Of q and v alone, the key's third of the stacked layer is zero."""
    path = save_peft(
        clip, tmp_path / 'adapter', target_modules=['q_proj', 'v_proj'])
    card = import_adapter(path, tmp_path / 'zoo', 'a', build_trunk(clip.ours))
    assert card.adapter == dict(type='vim_mm.LoRA', rank=6, alpha=10)
    assert card.slots == [f'layers.{i}.attn.qkv' for i in range(DEPTH)]
    assert card.dims['layers.0.attn.qkv'] == [DIMS, 3 * DIMS]
    tensors = Zoo(tmp_path / 'zoo').load('a')[1]
    theirs = load_file(path / 'adapter_model.safetensors')
    base = f'{BLOCK}1.self_attn.'
    up = tensors['layers.1.attn.qkv.up.weight']
    down = tensors['layers.1.attn.qkv.down.weight']
    for rows, columns, x in ((0, 0, 'q'), (2, 3, 'v')):
        a, b = (theirs[f'{base}{x}_proj.lora_{y}.weight'] for y in 'AB')
        assert torch.equal(down[columns:columns + 3], a)
        block = up[rows * DIMS:(rows + 1) * DIMS].clone()
        assert torch.equal(block[:, columns:columns + 3], b)
        block[:, columns:columns + 3] = 0
        assert not block.any()
    assert not up[DIMS:2 * DIMS].any()


def test_prefix_of_a_whole_model(clip, tmp_path):
    twins = make_twins('vit', tmp_path)
    model = transformers.ViTForImageClassification(twins.theirs.config)
    model.vit.load_state_dict(twins.theirs.state_dict())
    save_lora(twins, tmp_path / 'zoo')
    bare = export_adapter(tmp_path / 'zoo', 'ours', tmp_path / 'a',
                          twins.names)
    with pytest.raises(ValueError, match='not found in the base model'):
        peft.PeftModel.from_pretrained(model, str(bare))
    path = export_adapter(
        tmp_path / 'zoo',
        'ours',
        tmp_path / 'b',
        twins.names,
        prefix='vit',
        base_model='mine')
    net = peft.PeftModel.from_pretrained(model, str(path)).double().eval()
    with torch.no_grad():
        output = net.base_model.model.vit(picture()).last_hidden_state
    torch.testing.assert_close(output, run_ours(twins, tmp_path / 'zoo',
                                                'ours'), **CLOSE)
    config = json.loads((path / 'adapter_config.json').read_text())
    assert config['base_model_name_or_path'] == 'mine'
    import_adapter(path, tmp_path / 'zoo', 'back', build_trunk(twins.ours))


#: What transformers 5.24 calls the linears of the first block.
VERSION_5 = {
    'vit-v5': 'layers.0.attention.{q,k,v,o}_proj layers.0.mlp.fc{1,2}',
    'clip-v5': 'encoder.layers.0.self_attn.{q,k,v,out}_proj '
    'encoder.layers.0.mlp.fc{1,2}',
    'dinov2-v5': 'encoder.layer.0.attention.{q,k,v,o}_proj '
    'encoder.layer.0.mlp.fc{1,2}',
}


@pytest.mark.parametrize('layout', VERSION_5)
@pytest.mark.parametrize('whole', [False, True])
def test_names_of_transformers_5(layout, whole, clip, tmp_path):
    """Written and read back bit for bit; PEFT itself needs version 5."""
    prefix = LAYOUTS[layout].wrapped[0].rstrip('.') if whole else ''
    save_lora(clip, tmp_path / 'zoo')
    path = export_adapter(
        tmp_path / 'zoo', 'ours', tmp_path / 'a', layout, prefix=prefix)
    stored = {
        key.removeprefix('base_model.model.').partition('.lora_')[0]
        for key in load_file(path / 'adapter_model.safetensors')
    }
    expected = set()
    for names in VERSION_5[layout].split():
        head, _, rest = names.partition('{')
        parts, _, tail = rest.partition('}')
        expected |= {
            f'{prefix and prefix + "."}{head}{part}{tail}'
            for part in parts.split(',')
        }
    assert expected == {name for name in stored if '.0.' in name}
    import_adapter(path, tmp_path / 'zoo', 'back', build_trunk(clip.ours))
    first, back = (Zoo(tmp_path / 'zoo').load(name)[1]
                   for name in ('ours', 'back'))
    assert first.keys() == back.keys()
    assert all(torch.equal(first[key], back[key]) for key in first)


@pytest.mark.parametrize(('layout', 'prefix'), [('clip-v5', 'text_model'),
                                                ('clip-v5', 'model'),
                                                ('vit-v5', 'model')])
def test_other_transformers_are_none_for_vision(layout, prefix, clip,
                                                tmp_path):
    """Text towers and speech models name layers like those of version 5."""
    save_lora(clip, tmp_path / 'zoo')
    path = export_adapter(
        tmp_path / 'zoo', 'ours', tmp_path / 'a', layout, prefix=prefix)
    with pytest.raises(ZooError, match=f'{prefix}.*is no linear'):
        import_adapter(path, tmp_path / 'zoo', 'a', build_trunk(clip.ours))


# --------------------------------------------------------------- refusals


def refusal(twins: Twins, adapter: Path, tmp_path: Path) -> str:
    with pytest.raises(ZooError) as error:
        import_adapter(adapter, tmp_path / 'zoo', 'a', build_trunk(twins.ours))
    assert str(adapter) in str(error.value)
    assert not (tmp_path / 'zoo').exists()
    return str(error.value)


@pytest.mark.parametrize(
    'config, said', [
        (dict(target_modules=['q_proj'], use_dora=True), 'use_dora=True'),
        (dict(target_modules=['q_proj'],
              bias='lora_only'), "bias='lora_only'"),
        (dict(target_modules=['q_proj'], lora_bias=True), 'lora_bias=True'),
        (dict(target_modules=['q_proj'],
              modules_to_save=['post_layernorm']), 'modules_to_save'),
        (dict(target_modules=['q_proj'],
              init_lora_weights='pissa'), "'pissa'"),
        (dict(target_modules=['patch_embedding']), 'patch_embedding'),
    ],
    ids=lambda value: value if isinstance(value, str) else '')
def test_more_than_plain_lora_is_refused(config, said, clip, tmp_path):
    path = save_peft(clip, tmp_path / 'adapter', **config)
    assert said in refusal(clip, path, tmp_path)


def test_other_tuners_are_refused(clip, tmp_path):
    net = peft.get_peft_model(
        deepcopy(clip.theirs),
        peft.IA3Config(target_modules=['k_proj'], feedforward_modules=[]))
    net.save_pretrained(str(tmp_path / 'adapter'))
    assert "'IA3'" in refusal(clip, tmp_path / 'adapter', tmp_path)


def edit_config(folder: Path, **changes) -> None:
    path = folder / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change) -> None:
    path = folder / 'adapter_model.safetensors'
    state = load_file(path)
    change(state)
    save_file(state, path)


TOWER = '' if V5 else 'vision_model.'
BLOCK = f'base_model.model.{TOWER}encoder.layers.'
Q = f'{BLOCK}0.self_attn.q_proj.'
OTHER_Q = Q.replace(f'model.{TOWER}enc', 'model.other.vision_model.enc')


@pytest.mark.parametrize('change, said', [
    (lambda p: edit_config(p, invented_in_2030=True), 'invented_in_2030'),
    (lambda p: edit_config(p, lora_alpha=None), 'lora_alpha'),
    (lambda p: edit_config(p, lora_alpha=float('nan')), 'finite'),
    (lambda p: edit_config(p, lora_alpha=10**400), 'finite'),
    (lambda p: edit_config(p, alpha_pattern={'(': 1}), "'('"),
    (lambda p: edit_config(p, alpha_pattern=[1]), 'no object'),
    (lambda p: (p / 'adapter_config.json').write_text('[' * 10**5),
     'valid JSON'),
    (lambda p: (p / 'adapter_config.json').write_text('{'), 'valid JSON'),
    (lambda p: (p / 'adapter_config.json').unlink(), 'holds no'),
    (lambda p:
     (p / 'adapter_model.safetensors').rename(p / 'adapter_model.bin'),
     'as safetensors'),
    (lambda p:
     (p / 'adapter_model.safetensors').write_bytes(b'12'), 'truncated'),
    (lambda p: edit_tensors(p, lambda s: s.clear()), 'no linear layer'),
    (lambda p: edit_tensors(p, lambda s: s.pop(f'{Q}lora_A.weight')),
     'only one'),
    (lambda p: edit_tensors(
        p, lambda s: s.update({f'{Q}lora_A.weight': torch.ones(2, DIMS)})),
     'of rank 2'),
    (lambda p: edit_tensors(
        p, lambda s: s.update({
            f'{Q}lora_A.weight': torch.ones(0, DIMS),
            f'{Q}lora_B.weight': torch.ones(DIMS, 0)
        })), 'of rank 0'),
    (lambda p: edit_tensors(
        p, lambda s: s.update({
            f'{Q}lora_A.weight'.removeprefix('base_model.model.'):
            torch.ones(3, DIMS)
        })), 'two lora_A'),
    (lambda p: edit_tensors(
        p, lambda s: s.update({
            f'{Q}lora_A.weight': torch.ones(3, 32),
            f'{Q}lora_B.weight': torch.ones(DIMS, 3)
        })), 'differ in width'),
    (lambda p: edit_tensors(
        p, lambda s: [
            s.update({key: torch.ones(2 * DIMS, 3)})
            for key in list(s) if 'lora_B' in key
        ]), '64 to 384'),
    (lambda p: edit_tensors(
        p, lambda s: s.update({
            f'{BLOCK}7.mlp.fc1.lora_A.weight':
            torch.ones(3, DIMS),
            f'{BLOCK}7.mlp.fc1.lora_B.weight':
            torch.ones(4 * DIMS, 3)
        })), 'layers.7.mlp.fc1'),
    (lambda p: edit_tensors(
        p, lambda s: s.update({
            f'{OTHER_Q}lora_A.weight':
            torch.ones(3, DIMS),
            f'{OTHER_Q}lora_B.weight':
            torch.ones(DIMS, 3)
        })), 'several models'),
])
def test_what_is_wrong_is_named(change, said, clip, tmp_path):
    path = save_peft(
        clip, tmp_path / 'adapter', target_modules=['q_proj', 'v_proj'])
    change(path)
    assert said in refusal(clip, path, tmp_path)


def test_what_has_no_name_there_is_not_exported(clip, tmp_path):
    save_lora(clip, tmp_path / 'zoo')
    zoo = Zoo(tmp_path / 'zoo')
    card, tensors = zoo.load('ours')
    odd = card.to_dict()
    odd.update(
        name='conv', kind='ConvPass', adapter=dict(type='vim_mm.ConvPass'))
    zoo.save(ModuleCard.from_dict(odd), tensors)
    with pytest.raises(ZooError, match='ConvPass'):
        export_adapter(zoo, 'conv', tmp_path / 'a', 'clip')
    with pytest.raises(ZooError, match='take one of timm, timm-gated'):
        export_adapter(zoo, 'ours', tmp_path / 'a', 'beit')
    slots = {'layers.0.attn': 'stages.0.blocks.0.attn'}
    text = json.dumps(card.to_dict() | dict(name='swin'))
    for old, new in slots.items():
        text = text.replace(old, new)
        tensors = {k.replace(old, new): v for k, v in tensors.items()}
    zoo.save(ModuleCard.from_json(text), tensors)
    with pytest.raises(ZooError, match='stages.0.blocks.0.attn.qkv'):
        export_adapter(zoo, 'swin', tmp_path / 'a', 'clip')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'empty')
    export_adapter(zoo, 'ours', tmp_path / 'link', 'clip')
    assert (tmp_path / 'empty/adapter_config.json').is_file()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/notes.txt').write_text('mine')
    with pytest.raises(ZooError, match='new folder'):
        export_adapter(zoo, 'ours', tmp_path / 'full', 'clip')
    assert not (tmp_path / 'a').exists()


# ---------------------------------------------------------------- the tool


def run_tool(monkeypatch, *args: str) -> int:
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name='__main__')
    return end.value.code or 0


def test_command_line(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_lora(clip, tmp_path / 'zoo')
    Path('trunk.py').write_text(f'trunk = {clip.ours!r}\n')
    Path('model.py').write_text(
        f'model = dict(backbone=dict(trunk={clip.ours!r}))\n')
    Path('empty.py').write_text('lr = 1\n')
    assert run_tool(monkeypatch, 'export', 'zoo', 'ours', 'adapter',
                    '--layout', 'clip') == 0
    for name in ('trunk', 'model'):
        assert run_tool(monkeypatch, 'import', 'adapter', 'zoo', name,
                        '--trunk', f'{name}.py', '--dataset', 'birds') == 0
    card = Zoo('zoo').card('trunk')
    assert card.dataset == 'birds'
    assert card.trunk['weights'] == clip.ours['init_cfg']['checkpoint']
    capsys.readouterr()
    assert run_tool(monkeypatch, 'import', 'adapter', 'zoo', 'b', '--trunk',
                    'empty.py') == 1
    assert 'model.backbone.trunk' in capsys.readouterr().err
    assert run_tool(monkeypatch, 'import', 'adapter', 'zoo', 'trunk',
                    '--trunk', 'trunk.py') == 1
    assert "already has a module 'trunk'" in capsys.readouterr().err
