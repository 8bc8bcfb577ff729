# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Pooling of tokens and maps into one standardised vector."""

import pytest
import torch

from vim_mm.models.layouts import pool_tokens
from vim_mm.models.necks import StandardizedPooling


def test_tokens_by_hand() -> None:
    level = torch.randn(2, 2 + 6, 3)
    pooled = pool_tokens([level, 2 * level], num_extra_tokens=2)
    for picture in range(2):
        parts = []
        for scale in (1, 2):
            tokens = scale * level[picture]
            patches = tokens[2:]
            parts += [*tokens[0], *tokens[1]]
            parts += [sum(patches[:, c]) / 6 for c in range(3)]
            parts += [max(patches[:, c]) for c in range(3)]
        torch.testing.assert_close(pooled[picture], torch.stack(parts))


def test_maps_have_no_extra_tokens() -> None:
    level = torch.randn(2, 3, 4, 5)
    tokens = level.flatten(2).transpose(1, 2)
    assert torch.equal(pool_tokens([level], 1), pool_tokens([tokens], 0))


def test_fit_standardises_over_all_batches() -> None:
    torch.manual_seed(0)
    neck = StandardizedPooling(in_channels=9, num_extra_tokens=1)
    batches = [[torch.randn(n, 5, 3) * 7 + 3] for n in (4, 1, 3)]
    neck.fit(batches)
    outputs = torch.cat([neck(batch)[0] for batch in batches])
    torch.testing.assert_close(
        outputs.mean(0), torch.zeros(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.std(0, correction=0), torch.ones(9))
    # measured once: it is part of a checkpoint
    other = StandardizedPooling(in_channels=9)
    other.load_state_dict(neck.state_dict())
    assert torch.equal(other(batches[0])[0], neck(batches[0])[0])


def test_a_constant_feature_stays_finite() -> None:
    neck = StandardizedPooling(in_channels=9)
    batch = [torch.ones(4, 5, 3) * 1000]
    neck.fit([batch])
    assert torch.equal(neck(batch)[0], torch.zeros(4, 9))


def test_a_wrong_width_is_a_sentence() -> None:
    with pytest.raises(ValueError, match='in_channels=8, but 1 levels .* 6'):
        StandardizedPooling(in_channels=8)([torch.randn(2, 5, 3)])
