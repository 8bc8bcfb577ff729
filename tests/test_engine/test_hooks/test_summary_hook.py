# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a run trains, and what it costs, stands in its log."""

import re
from pathlib import Path

import pytest

from _tiny import (KINDS, build_backbone, build_model, build_runner,
                   fusion_neck, model_cfg, vit)
from vim_mm.engine.hooks.summary_hook import table_of, tokens_of

BACKBONE = dict(trunk=vit(), new_module='n', fusion=dict(type='EnsMoE'))


def rows(table: str) -> dict:
    """The numbers of each row of a table."""
    found = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in re.split('[│┃|]', line)][1:-1]
        if len(cells) == 4 and cells[0] != 'parameters':
            found[cells[0]] = [int(n.replace(',', '')) for n in cells[1:]]
    return found


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('save_trunk', [False, True])
def test_every_parameter_is_counted_once(kind: str, save_trunk: bool) -> None:
    model = build_model(kind, dict(BACKBONE, save_trunk=save_trunk))
    table = table_of(model)
    found = rows(table)
    trunk = sum(p.numel() for p in model.backbone.trunk.parameters())
    assert found['trunk'] == [0, trunk, trunk if save_trunk else 0]
    bank = sum(p.numel() for p in model.backbone.bank.parameters())
    assert found['modules'] == [bank, 0, bank]
    assert found['gates'][0] > 0 and 'neck' in found
    learning = [p for p in model.parameters() if p.requires_grad]
    assert found['all'][0] == sum(p.numel() for p in learning)
    assert found['all'][1] == trunk
    assert '17 tokens an image of 56x56 px' in table


@pytest.mark.parametrize(('extra', 'tokens'), [
    (dict(), 17), (dict(with_cls_token=False), 16)])
def test_tokens_of_other_sizes(extra: dict, tokens: int) -> None:
    backbone = build_backbone(vit(**extra), new_module='n')
    assert tokens_of(backbone, (56, 56)) == tokens
    assert tokens_of(backbone, (28, 56)) == tokens - 8


def test_a_run_says_so_once(tmp_path: Path) -> None:
    run = build_runner(
        'cls',
        model_cfg('cls', dict(BACKBONE), fusion_neck('cls')),
        tmp_path,
        iters=5,
        # what mmengine says of frozen parameters comes with it
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.1),
            paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=2.)})),
        log_level='INFO')
    run.train()
    log, = tmp_path.rglob('*.log')
    text = log.read_text()
    assert text.count('What is trained') == 1
    assert text.count('An iteration takes about') == 1
    assert 'so the 2 left some' in text
    assert 'requires_grad=False' not in text
    assert 'paramwise_options' in text
