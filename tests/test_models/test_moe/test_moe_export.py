# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Every expert is in an exported graph, whatever the example visits."""

from pathlib import Path
from typing import List

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from vim_mm.models.moe import MoEMlp
from vim_mm.models.tasks import select_task

DIMS, TOKENS = 32, 20
WAYS = ['auto', 'loop', 'grouped', 'dense']


def layer(dispatch: str = 'auto', kept: int = 6) -> MoEMlp:
    """A layer with a router narrower than its experts, if it is pruned."""
    torch.manual_seed(0)
    moe = MoEMlp(DIMS, 16, 6, 1, ['a', 'b'], dispatch=dispatch).eval()
    for param in moe.parameters():
        nn.init.normal_(param, std=.3)
    if kept < 6:
        moe.keep(range(6 - kept, 6))
    moe.add_task('late', num_experts=2)
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


@pytest.mark.parametrize('dispatch', WAYS)
@torch.no_grad()
def test_torch_export(dispatch: str, tmp_path: Path) -> None:
    moe = layer(dispatch)
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


@pytest.mark.parametrize('dispatch', WAYS)
@torch.no_grad()
def test_trace(dispatch: str) -> None:
    moe = layer(dispatch)
    check(torch.jit.trace(moe, (tokens_for(moe)[0], )), moe)


@pytest.mark.parametrize('kept', [6, 3])
@pytest.mark.parametrize('dynamo', [False, True])
@torch.no_grad()
def test_onnx(dynamo: bool, kept: int, tmp_path: Path) -> None:
    if dynamo:
        pytest.importorskip('onnxscript')
    moe = layer('grouped', kept)
    path = str(tmp_path / 'moe.onnx')
    torch.onnx.export(
        moe, (tokens_for(moe)[0], ), path, input_names=['x'], dynamo=dynamo)
    session = onnxruntime.InferenceSession(path)
    check(lambda x: torch.from_numpy(session.run(None, dict(x=x.numpy()))[0]),
          moe)
    # each expert's numbers, however they were laid out
    stored = np.concatenate([
        numpy_helper.to_array(each).ravel()
        for each in onnx.load(path).graph.initializer
    ])
    for value in moe.experts.weights(len(moe.experts)):
        assert np.isin(value.numpy(), stored).all()
