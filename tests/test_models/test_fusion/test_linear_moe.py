# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Weights that need not sum to one, alone, in a trunk and in a neck."""

import torch

from _tiny import SIZE, add_modules, build_backbone, occupy
from vim_mm.models.fusion import LinearMoE
from vim_mm.models.necks import ViMFusionNeck

NAMES = ['a', 'b', 'c']


def test_weights_are_what_is_learned() -> None:
    fusion = LinearMoE(occupy(NAMES, 4, 4))
    assert torch.equal(fusion.gates('default'), torch.full((2, 3), 1 / 3))
    fusion.logits['default'].data = torch.tensor([[2., 0, -1], [0, 0, 0]])
    assert fusion.gates('default').sum(1).tolist() == [1., 0.]
    fusion.gates('default').sum().backward()
    assert torch.equal(fusion.logits['default'].grad, torch.ones(2, 3))


def test_the_loop_over_modules_in_a_trunk() -> None:
    """One slot adds what its modules add one by one, times their weights."""
    backbone = build_backbone(slots=r'layers\.2\.ffn')
    add_modules(backbone, *NAMES)
    x = torch.randn(2, 3, SIZE, SIZE)
    with backbone.only():
        bare = backbone(x)[-1]
    deltas = [stream[-1] - bare for stream in backbone(x)]
    backbone.set_fusion(dict(type='LinearMoE'))
    backbone.fusion.logits['default'].data = torch.tensor([[1.5, -.5, 1.]])
    expected = bare + 1.5 * deltas[0] - .5 * deltas[1] + deltas[2]
    torch.testing.assert_close(
        backbone(x)[-1], expected, rtol=1e-4, atol=1e-4)


def test_the_loop_over_streams_in_a_neck() -> None:
    neck = ViMFusionNeck([4, 6],
                         scales=[1, 1],
                         modules=NAMES,
                         fusion=dict(type='LinearMoE'))
    streams = [[torch.randn(2, c, 3, 5) for c in (4, 6)] for _ in NAMES]
    weights = torch.randn(2, 3)
    neck.fusion.logits['default'].data = weights
    for level, output in enumerate(neck(streams)):
        expected = sum(w * s[level] for w, s in zip(weights[level], streams))
        torch.testing.assert_close(output, expected)
