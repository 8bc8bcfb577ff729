# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""PEFT adapters as people publish them: whole models, heads, two towers."""

from copy import deepcopy
from pathlib import Path
from typing import Dict, List, NamedTuple

import pytest
import timm
import torch
from _weights import drawn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vim_mm.interchange import (LAYOUTS, export_adapter, import_adapter,
                                peft_adapter)
from vim_mm.models.backbones import build_trunk
from vim_mm.registry import MODELS
from vim_mm.zoo import Zoo, ZooError

peft = pytest.importorskip('peft', reason='the package peft is not installed')
transformers = pytest.importorskip(
    'transformers', reason='the package transformers is not installed')

DIMS, SIZE = 32, 64
V5 = int(transformers.__version__.split('.')[0]) >= 5
HF = dict(
    hidden_size=DIMS,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=4 * DIMS,
    image_size=SIZE,
    patch_size=16)
TEXT = dict(
    hidden_size=DIMS,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=DIMS,
    vocab_size=99)
DINOV3 = dict(HF, num_register_tokens=4)
TINY = dict(embed_dim=DIMS, depth=2, num_heads=2, img_size=SIZE)
CONVNEXT = dict(depths=(1, 1, 2, 1), dims=(8, 8, 16, 16))
SWIN = dict(
    embed_dim=8,
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 2, 2),
    window_size=2,
    img_size=SIZE)


class Net(NamedTuple):
    """A whole model as it is published, and its backbone as a trunk.

    Attributes:
        theirs (nn.Module): The whole model.
        tower (str): Where its backbone is.
        trunk (dict): Config of the trunk.
        exact (bool): Whether both round alike.
    """

    theirs: nn.Module
    tower: str
    trunk: dict
    exact: bool = True


def timm_trunk(name: str, flat: bool = True, **kwargs) -> dict:
    last = 2 if 'depth' in kwargs else 4
    levels = dict(
        features_only=True, out_indices=tuple(range(last))) if flat else {}
    return dict(
        type='mmpretrain.TIMMBackbone', model_name=name, **levels, **kwargs)


def hf(kind: str, **config) -> nn.Module:
    cls = getattr(transformers, kind)
    return drawn(cls(cls.config_class(**config)))


def two_towers(kind: str) -> nn.Module:
    return hf(kind, text_config=TEXT, vision_config=HF)


_SIGLIP = 'vit_base_patch16_siglip_256'
_CLIP = 'vit_base_patch16_clip_quickgelu_224'
_DINOV3 = 'vit_small_patch16_dinov3_qkvb'
NETS = dict(
    # whole models of timm, heads included
    timm_vit=lambda: Net(
        drawn(timm.create_model('vit_tiny_patch16_224', **TINY)), '',
        timm_trunk('vit_tiny_patch16_224', **TINY)),
    timm_eva02=lambda: Net(
        drawn(timm.create_model('eva02_base_patch14_448',
                                **dict(TINY, img_size=56))), '',
        timm_trunk('eva02_base_patch14_448', **dict(TINY, img_size=56))),
    timm_dinov3=lambda: Net(
        drawn(timm.create_model('vit_small_plus_patch16_dinov3',
                                init_values=1., num_classes=3, **TINY)), '',
        timm_trunk('vit_small_plus_patch16_dinov3', init_values=1., **TINY)),
    timm_siglip=lambda: Net(
        drawn(timm.create_model(_SIGLIP, **TINY)), '',
        timm_trunk(_SIGLIP, **TINY)),
    timm_pe=lambda: Net(
        drawn(timm.create_model('vit_pe_core_base_patch16_224', **TINY)), '',
        timm_trunk('vit_pe_core_base_patch16_224', **TINY)),
    timm_convnext=lambda: Net(
        drawn(timm.create_model('convnext_tiny', **CONVNEXT)), '',
        timm_trunk('convnext_tiny', **CONVNEXT)),
    timm_convnext_plain=lambda: Net(
        drawn(timm.create_model('convnext_tiny', **CONVNEXT)), '',
        timm_trunk('convnext_tiny', flat=False, **CONVNEXT)),
    timm_swin=lambda: Net(
        drawn(timm.create_model('swin_tiny_patch4_window7_224', **SWIN)), '',
        timm_trunk('swin_tiny_patch4_window7_224', **SWIN)),
    # whole models of transformers
    clip=lambda: Net(
        two_towers('CLIPModel'), 'vision_model', timm_trunk(_CLIP, **TINY)),
    siglip=lambda: Net(
        two_towers('SiglipModel'), 'vision_model',
        timm_trunk(_SIGLIP, act_layer='gelu_tanh', **TINY)),
    siglip_classifier=lambda: Net(
        hf('SiglipForImageClassification', vision_config=HF), 'vision_model',
        timm_trunk(_SIGLIP, act_layer='gelu_tanh', **TINY)),
    dinov2_classifier=lambda: Net(
        hf('Dinov2WithRegistersForImageClassification',
           **{k: v for k, v in HF.items() if k != 'intermediate_size'},
           num_register_tokens=4), 'dinov2_with_registers',
        timm_trunk('vit_base_patch14_reg4_dinov2', patch_size=16, **TINY)),
    dinov3=lambda: Net(
        hf('DINOv3ViTModel', **DINOV3), '',
        timm_trunk(_DINOV3, init_values=1., **TINY)),
    dinov3_gated=lambda: Net(
        hf('DINOv3ViTModel', **dict(
            DINOV3, use_gated_mlp=True, hidden_act='silu')), '',
        timm_trunk('vit_small_plus_patch16_dinov3_qkvb', init_values=1.,
                   **TINY)),
    dinov3_convnext=lambda: Net(
        hf('DINOv3ConvNextModel', depths=[1, 1, 2, 1],
           hidden_sizes=[8, 8, 16, 16]), '',
        timm_trunk('convnext_tiny', **CONVNEXT)),
)


@pytest.fixture
def lines(monkeypatch) -> List[str]:
    """What is said of an adapter while it becomes a module."""
    found = []
    monkeypatch.setattr(peft_adapter, 'print_log',
                        lambda line, **kwargs: found.append(line))
    return found


@pytest.fixture(scope='module', params=NETS)
def net(request, tmp_path_factory) -> Net:
    folder = tmp_path_factory.mktemp(request.param)
    return with_weights(NETS[request.param](), folder)


def with_weights(net: Net, folder: Path) -> Net:
    """The trunk's config with a file of the whole model's weights."""
    path = folder / 'model.safetensors'
    if isinstance(net.theirs, transformers.PreTrainedModel):
        net.theirs.save_pretrained(folder)
    else:
        save_file(net.theirs.state_dict(), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    return net._replace(trunk=dict(net.trunk, init_cfg=init_cfg))


def publish(net: Net, folder: Path, **config) -> Path:
    """An adapter of random values, as PEFT saves it."""
    torch.manual_seed(5)
    tuned = peft.get_peft_model(
        deepcopy(net.theirs),
        peft.LoraConfig(**dict(dict(r=3, lora_alpha=5), **config)))
    with torch.no_grad():
        for name, param in tuned.named_parameters():
            if 'lora_' in name:
                param.copy_(0.2 * torch.randn_like(param))
    tuned.save_pretrained(str(folder))
    return folder


@torch.no_grad()
def run_ours(net: Net, zoo: Path, name: str, x: Tensor) -> List[Tensor]:
    backbone = MODELS.build(
        dict(
            type='vim_mm.ViMBackbone',
            trunk=net.trunk,
            zoo=str(zoo),
            modules=[name],
            probe_size=x.shape[-1])).double().eval()
    with backbone.only():
        bare = backbone(x)
    levels = backbone(x)
    assert (levels[-1] - bare[-1]).abs().max() > 1e-4, 'it does nothing'
    return list(levels)


@torch.no_grad()
def run_peft(net: Net, adapter: Path, x: Tensor) -> List[Tensor]:
    tuned = peft.PeftModel.from_pretrained(
        deepcopy(net.theirs), str(adapter)).double().eval()
    model = tuned.base_model.model.get_submodule(net.tower)
    levels = []
    for block in next(each for name, each in model.named_modules()
                      if name.endswith(('layers', 'layer', 'blocks', 'stages'))
                      and isinstance(each, (nn.ModuleList, nn.Sequential))):
        block.register_forward_hook(
            lambda _, __, out: levels.append(
                out[0] if isinstance(out, tuple) else out))
    if not net.trunk.get('features_only'):
        return [model.head.norm(model.forward_features(x))]
    model(x)
    return levels


def same_maps(ours: List[Tensor], theirs: List[Tensor]) -> None:
    if len(ours) == 1:
        theirs = theirs[-1:]
    for level, right in zip(ours, theirs):
        if right.dim() == 3:
            right = right[:, -level[0, 0].numel():].mT.reshape(level.shape)
        if right.shape != level.shape:  # of Swin, channels last
            level = level.permute(0, 3, 1, 2)
        # rotary tables are float32 in all libraries
        torch.testing.assert_close(level, right, rtol=1e-6, atol=1e-6)


def picture(net: Net) -> Tensor:
    size = net.trunk.get('img_size', SIZE)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(
        2, 3, size, size, generator=generator, dtype=torch.float64)


def inside(net: Net, adapter: Path) -> Dict[str, Tensor]:
    """Its tensors in blocks of the backbone."""
    blocks = ('blocks.', 'layers.', 'layer.', 'stages.')
    front = f'base_model.model.{net.tower + "." if net.tower else ""}'
    return {
        key: value
        for key, value in load_file(
            adapter / 'adapter_model.safetensors').items()
        if key.startswith(front)
        and any(block in key[len(front):] for block in blocks)
    }


def test_what_fits_computes_what_peft_computes(net, tmp_path, lines):
    path = publish(net, tmp_path / 'adapter', target_modules='all-linear')
    tensors = inside(net, path)
    card = import_adapter(path, tmp_path / 'zoo', 'a',
                          build_trunk(net.trunk))
    left = len(load_file(path / 'adapter_model.safetensors')) - len(tensors)
    assert len(lines) == bool(left)
    assert not left or f'{left // 2} layers' in lines[0]
    x = picture(net)
    same_maps(run_ours(net, tmp_path / 'zoo', 'a', x), run_peft(net, path, x))
    # no bit of their tensors is lost
    ours = Zoo(tmp_path / 'zoo').load('a')[1]
    known = {value for t in ours.values() for value in t.flatten().tolist()}
    assert known.issuperset(
        value for t in tensors.values() for value in t.flatten().tolist())
    assert card.num_params == sum(t.numel() for t in ours.values())


@pytest.mark.parametrize('kind', ['clip', 'siglip'])
def test_q_and_v_in_both_towers(kind, tmp_path, lines):
    net = with_weights(NETS[kind](), tmp_path)
    path = publish(
        net, tmp_path / 'adapter', target_modules=['q_proj', 'v_proj'])
    import_adapter(path, tmp_path / 'zoo', 'a', build_trunk(net.trunk))
    said, = lines
    assert '4 layers' in said
    for name in ('q_proj', 'v_proj'):
        assert f'text_model.encoder.layers.*.self_attn.{name} (2)' in said
    x = picture(net)
    same_maps(run_ours(net, tmp_path / 'zoo', 'a', x), run_peft(net, path, x))


@pytest.mark.parametrize(('kind', 'head'), [
    ('siglip_classifier', 'classifier'),
    ('dinov2_classifier', 'classifier'),
    ('timm_vit', 'head'),
    ('timm_convnext', 'head'),
    ('clip', 'visual_projection'),
    ('clip', 'text_model'),
    ('siglip', 'head'),
])
def test_modules_to_save_beside_the_backbone(kind, head, tmp_path, lines):
    net = with_weights(NETS[kind](), tmp_path)
    targets = dict(
        timm_vit=['qkv'],
        timm_convnext=['fc1'],
        dinov2_classifier=['query', 'value', 'q_proj', 'v_proj'])
    path = publish(
        net,
        tmp_path / 'adapter',
        target_modules=targets.get(kind, r'vision_model.encoder.*[qv]_proj'),
        modules_to_save=[head])
    import_adapter(path, tmp_path / 'zoo', 'a', build_trunk(net.trunk))
    assert 'left out' in lines[0] and head in lines[0]
    x = picture(net)
    same_maps(run_ours(net, tmp_path / 'zoo', 'a', x), run_peft(net, path, x))


@pytest.mark.parametrize(('kind', 'config'), [
    ('clip', dict(modules_to_save=['post_layernorm'])),
    ('clip', dict(modules_to_save=['position_embedding'])),
    ('timm_vit', dict(modules_to_save=['norm1'])),
    ('timm_vit', dict(modules_to_save=['patch_embed'])),
    ('timm_vit', dict(target_modules=['qkv', 'patch_embed.proj'])),
    ('timm_convnext', dict(target_modules=['fc1', 'stem.0'])),
    ('dinov2_classifier',
     dict(target_modules=['query', 'q_proj', 'projection'])),
])
def test_what_the_backbone_depends_on_is_not_left_out(kind, config, tmp_path):
    net = with_weights(NETS[kind](), tmp_path)
    targets = dict(timm_vit=['qkv'], clip=['q_proj'])
    config = dict(dict(target_modules=targets.get(kind)), **config)
    path = publish(net, tmp_path / 'adapter', **config)
    with pytest.raises(ZooError) as error:
        import_adapter(path, tmp_path / 'zoo', 'a', build_trunk(net.trunk))
    name = next(iter(config.get('modules_to_save', ()) or reversed(
        config['target_modules'])))
    assert name in str(error.value) and 'modules_to_save' in str(error.value)
    assert not (tmp_path / 'zoo').exists()


def test_only_the_text_tower_is_refused(tmp_path):
    net = with_weights(NETS['clip'](), tmp_path)
    path = publish(
        net, tmp_path / 'adapter', target_modules=r'text_model.*q_proj')
    with pytest.raises(ZooError, match='text_model.*is no linear'):
        import_adapter(path, tmp_path / 'zoo', 'a', build_trunk(net.trunk))


# ----------------------------------------------------------- every layout

#: Nets that have the parts of a layout; others have those of a plain ViT.
PARTS = {
    'timm-gated': 'timm_eva02',
    'hub-gated': 'timm_eva02',
    'dinov3': 'timm_dinov3',
    'dinov3-v5': 'timm_dinov3',
    'timm-convnext': 'timm_convnext',
    'hub-convnext': 'timm_convnext',
    'convnext': 'timm_convnext',
    'dinov3-convnext': 'timm_convnext',
    'dinov3-convnext-v5': 'timm_convnext',
}


def tensors_of(adapter: Path) -> Dict[str, Tensor]:
    return load_file(adapter / 'adapter_model.safetensors')


def layers_of(adapter: Path) -> List[str]:
    return sorted({
        key.removeprefix('base_model.model.').partition('.lora_')[0]
        for key in tensors_of(adapter)
    })


def equal(first: Dict[str, Tensor], second: Dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    'layout', [x for x in LAYOUTS if 'dinov2-gated' not in x])
def test_written_and_read_back_bit_for_bit(layout, tmp_path):
    net = with_weights(NETS[PARTS.get(layout, 'timm_vit')](), tmp_path)
    adapter = publish(net, tmp_path / 'adapter', target_modules='all-linear')
    trunk = build_trunk(net.trunk)
    zoo = Zoo(tmp_path / 'zoo')
    card = import_adapter(adapter, zoo, 'a', trunk)
    path = export_adapter(zoo, 'a', tmp_path / 'b', layout, prefix='of.all')
    assert all(name.startswith('of.all.') for name in layers_of(path))
    if LAYOUTS[layout].wrapped:  # their names could be anyone's
        path = export_adapter(zoo, 'a', tmp_path / 'c', layout)
    back = import_adapter(path, zoo, 'b', trunk)
    assert (back.slots, back.dims, back.adapter) == (card.slots, card.dims,
                                                     card.adapter)
    assert equal(*(zoo.load(name)[1] for name in 'ab'))


def test_gates_packed_with_what_they_gate(tmp_path):
    """As in DINOv2's giant; transformers has unpacked it in version 5."""
    sizes = {k: v for k, v in HF.items() if k != 'intermediate_size'}
    theirs = hf('Dinov2Model', use_swiglu_ffn=True, **sizes)
    net = Net(
        theirs, '',
        dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=DIMS,
                num_layers=2,
                num_heads=2,
                feedforward_channels=4 * DIMS),
            img_size=SIZE,
            layer_cfgs=dict(ffn_type='swiglu_fused')))
    adapter = publish(
        net,
        tmp_path / 'adapter',
        target_modules=['gate_proj', 'up_proj', 'down_proj']
        if V5 else ['weights_in', 'weights_out'])
    zoo = Zoo(tmp_path / 'zoo')
    card = import_adapter(adapter, zoo, 'a', MODELS.build(net.trunk))
    assert card.slots[:2] == ['layers.0.ffn.w12', 'layers.0.ffn.w3']
    for layout in ('dinov2-gated', 'dinov2-gated-v5'):
        again = export_adapter(zoo, 'a', tmp_path / layout, layout)
        if layout.endswith('-v5') == V5:
            assert layers_of(again) == layers_of(adapter)
        import_adapter(again, zoo, layout, MODELS.build(net.trunk))
        assert equal(*(zoo.load(name)[1] for name in ('a', layout)))
    with pytest.raises(ZooError, match='ffn.w12'):
        export_adapter(zoo, 'a', tmp_path / 'b', 'clip')


def test_separate_queries_of_ours_are_one_linear_of_theirs(tmp_path):
    net = with_weights(NETS['timm_eva02'](), tmp_path)
    adapter = publish(
        net,
        tmp_path / 'adapter',
        target_modules=['q_proj', 'v_proj'],
        alpha_pattern=dict(v_proj=2))
    zoo = Zoo(tmp_path / 'zoo')
    import_adapter(adapter, zoo, 'a', build_trunk(net.trunk))
    path = export_adapter(zoo, 'a', tmp_path / 'fused', 'timm')
    assert layers_of(path) == [f'blocks.{i}.attn.qkv' for i in range(2)]
    theirs, ours = tensors_of(adapter), tensors_of(path)
    front = 'base_model.model.blocks.1.attn.'
    down, up = (ours[f'{front}qkv.lora_{x}.weight'] for x in 'AB')
    q, k, v = (up @ down).chunk(3)
    assert not k.any()
    for change, name, alpha in ((q, 'q', 5), (v, 'v', 2)):
        a, b = (theirs[f'{front}{name}_proj.lora_{x}.weight'] for x in 'AB')
        torch.testing.assert_close(change, b @ a * alpha / 3)


# ------------------------------------------------------------ what is wrong


def test_an_adapter_of_another_network_is_refused(tmp_path):
    adapter = publish(
        NETS['timm_swin'](), tmp_path / 'adapter', target_modules='all-linear')
    for kind in ('timm_vit', 'timm_convnext'):
        trunk = MODELS.build(NETS[kind]().trunk)
        with pytest.raises(ZooError, match='is no linear|several models'):
            import_adapter(adapter, tmp_path / 'zoo', 'a', trunk)
    adapter = publish(
        NETS['dinov3_convnext'](), tmp_path / 'b', target_modules='all-linear')
    with pytest.raises(ZooError, match='no twin'):
        import_adapter(adapter, tmp_path / 'zoo', 'a',
                       MODELS.build(NETS['timm_vit']().trunk))
    trunk = MODELS.build(
        dict(NETS['timm_convnext']().trunk, depths=(1, 1, 1, 1)))
    with pytest.raises(ZooError, match=r'stages\.2\.layers\.1.*no twin'):
        import_adapter(adapter, tmp_path / 'zoo', 'a', trunk)
    assert not (tmp_path / 'zoo').exists()


def test_a_text_tower_that_reads_like_a_backbone(tmp_path):
    """Some linears of BERT have the names of ViT's, and others do not."""
    both = nn.ModuleDict(
        dict(
            vit=hf('ViTModel', **HF), text=hf('BertModel', **dict(TEXT))))
    net = Net(both, 'vit', {})
    adapter = publish(net, tmp_path / 'adapter', target_modules='all-linear')
    trunk = MODELS.build(
        dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=DIMS,
                num_layers=2,
                num_heads=2,
                feedforward_channels=4 * DIMS),
            img_size=SIZE))
    card = import_adapter(adapter, tmp_path / 'zoo', 'a', trunk)
    assert len(card.slots) == 8


def test_two_backbones_are_refused(tmp_path):
    both = nn.ModuleDict(
        {
            side: nn.ModuleDict(
                dict(vision_model=hf('CLIPVisionModel', **HF)))
            for side in ('left', 'right')
        })
    adapter = publish(
        Net(both, 'left', {}), tmp_path / 'adapter', target_modules=['q_proj'])
    trunk = MODELS.build(NETS['clip']().trunk)
    with pytest.raises(ZooError, match='several models'):
        import_adapter(adapter, tmp_path / 'zoo', 'a', trunk)
