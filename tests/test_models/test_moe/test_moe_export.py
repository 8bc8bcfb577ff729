# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Every expert is in an exported graph, whatever the example visits."""

from pathlib import Path
from typing import List, Optional

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from _tiny import fill
from vim_mm.models.moe import ExpertGroup, MoEMlp
from vim_mm.models.tasks import select_task
from vim_mm.registry import MODELS

DIMS, TOKENS = 32, 20
WAYS = ['auto', 'loop', 'grouped', 'dense']


def layer(dispatch: str = 'auto',
          kept: int = 6,
          like: Optional[str] = None) -> MoEMlp:
    """A layer with a router narrower than its experts, if it is pruned."""
    torch.manual_seed(0)
    moe = MoEMlp(DIMS, 16, 6, 1, ['a', 'b'], dispatch=dispatch).eval()
    for param in moe.parameters():
        nn.init.normal_(param, std=.3)
    if kept < 6:
        moe.keep(range(6 - kept, 6))
    moe.add_task('late', num_experts=2, like=like)
    for part in moe.routers['late'].added:
        nn.init.normal_(part.weight, std=.3)
    moe.experts.split([0])
    select_task(moe, 'late')
    return moe


def tokens_for(moe: MoEMlp) -> List[Tensor]:
    """Three batches, each of tokens that visit one expert, all different."""
    many = torch.randn(
        4000, DIMS, generator=torch.Generator().manual_seed(1)) * 2
    experts = moe.choose(moe.router(many))[1][:, 0]
    visited = experts.bincount().argsort(descending=True)[:3]
    batches = []
    for expert in visited:
        own = many[experts == expert]
        batches.append(own[torch.arange(TOKENS) % len(own)].unsqueeze(0))
    return batches


def check(run, moe: MoEMlp) -> None:
    """What was exported gives what PyTorch does."""
    for x in tokens_for(moe):
        torch.testing.assert_close(run(x), moe(x), rtol=1e-4, atol=1e-5)


def has_every_expert(path: str, model: nn.Module) -> bool:
    """Whether a file has each number of each expert, however laid out."""
    stored = np.concatenate([
        numpy_helper.to_array(each).ravel()
        for each in onnx.load(path).graph.initializer
    ])
    return all(
        np.isin(param.numpy(), stored).all() for group in model.modules()
        if isinstance(group, ExpertGroup) for param in group.parameters())


@pytest.mark.parametrize('dispatch, like', [(way, None) for way in WAYS] +
                         [('auto', 'b')])
@torch.no_grad()
def test_torch_export(dispatch: str, like: Optional[str],
                      tmp_path: Path) -> None:
    moe = layer(dispatch, like=like)
    example = tokens_for(moe)[0]
    tokens = torch.export.Dim('tokens', min=2, max=4096)
    program = torch.export.export(
        moe, (example, ), dynamic_shapes=({
            1: tokens
        }, ))
    path = str(tmp_path / 'moe.pt2')
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    check(loaded, moe)
    x = torch.randn(3, 1 + TOKENS, DIMS)[:1]
    torch.testing.assert_close(loaded(x), moe(x))


@pytest.mark.parametrize('dispatch, like', [(way, None) for way in WAYS] +
                         [('auto', 'b')])
@torch.no_grad()
def test_trace(dispatch: str, like: Optional[str]) -> None:
    moe = layer(dispatch, like=like)
    traced = torch.jit.trace(moe, (tokens_for(moe)[0], ))
    check(traced, moe)
    x = torch.randn(2, 2 * TOKENS, DIMS)
    torch.testing.assert_close(traced(x), moe(x))


@pytest.mark.parametrize('like', [None, 'b'])
@pytest.mark.parametrize('kept', [6, 3])
@pytest.mark.parametrize('dynamo', [False, True])
@torch.no_grad()
def test_onnx(dynamo: bool, kept: int, like: Optional[str],
              tmp_path: Path) -> None:
    if dynamo:
        pytest.importorskip('onnxscript')
    moe = layer('grouped', kept, like)
    path = str(tmp_path / 'moe.onnx')
    torch.onnx.export(
        moe, (tokens_for(moe)[0], ), path, input_names=['x'], dynamo=dynamo)
    session = onnxruntime.InferenceSession(path)
    check(lambda x: torch.from_numpy(session.run(None, dict(x=x.numpy()))[0]),
          moe)
    assert has_every_expert(path, moe)


@torch.no_grad()
def test_onnx_of_a_whole_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = MODELS.build(
        dict(
            type='vim_mm.MoEDaViT',
            arch=dict(
                embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]),
            num_experts=6,
            k=2,
            tasks=['a', 'b']))
    backbone.eval()
    fill(backbone, .2)
    path = str(tmp_path / 'backbone.onnx')
    images = [torch.randn(1, 3, 64, 96) * scale for scale in (1, 2, 4)]
    torch.onnx.export(
        backbone, (images[0], ), path, input_names=['x'], dynamo=False)
    session = onnxruntime.InferenceSession(path)
    for x in images:
        maps = session.run(None, dict(x=x.numpy()))
        for ours, expected in zip(maps, backbone(x)):
            error = (torch.from_numpy(ours) - expected).norm()
            assert error <= 1e-4 * expected.norm()
    assert has_every_expert(path, backbone)
