# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Counts of parameters and multiply-adds against those done by hand."""

import importlib.util
import json
from pathlib import Path
from typing import Callable, Dict

import pytest
from _moe_tiny import build_moe, moe_cfg, ordinary_cfg, task_cfg, write_moe
from mmengine.config import Config, ConfigDict

from _tiny import DIMS
from vim_mm.models.moe import add_task, freeze, moe_layers, set_k
from vim_mm.models.moe.counting import Cost, count_moe
from vim_mm.models.tasks import learn_tasks
from vim_mm.registry import MODELS
from vim_mm.utils.cli import run_cli

SCRIPT = Path(__file__).parents[2] / 'tools/analysis_tools/count_moe.py'
SIZE = 56
#: 4 x 4 patches and a class token; 2 of 3 blocks have experts
TOKENS, LAYERS = 17, 2
#: an expert is 32 -> 32 -> 32, a router 32 -> 8 -> 8
EXPERT, EXPERT_MACS = 2 * 32 * 32 + 64, 2 * 32 * 32
ROUTER, ROUTER_MACS = 32 * 8 + 8 + 8 * 8 + 8, 32 * 8 + 8 * 8
#: patches; queries, keys and values, products, projection; one dense MLP
SHARED_MACS = (16 * 3 * 14 * 14 * 32 + 3 *
               (17 * 32 * 96 + 2 * 17 * 17 * 32 + 17 * 32 * 32) +
               17 * 2 * 32 * 64)
SHARED = (
    3 * 14 * 14 * 32 + 32  # patches
    + 32 + 17 * 32  # class token and positions
    + 3 * (4 * 32 * 32 + 4 * 32 + 4 * 32)  # attention and norms
    + 2 * 32 * 64 + 64 + 32)  # dense MLP


@pytest.mark.parametrize('dispatch', ['loop', 'grouped', 'dense'])
def test_by_hand(dispatch: str) -> None:
    found = count_moe(build_moe(dispatch=dispatch), SIZE)
    assert found['routers'] == Cost(4 * ROUTER, 4 * ROUTER, LAYERS * ROUTER,
                                    LAYERS * TOKENS * ROUTER_MACS)
    assert found['experts'] == Cost(16 * EXPERT, 16 * EXPERT,
                                    LAYERS * 2 * EXPERT,
                                    LAYERS * TOKENS * 2 * EXPERT_MACS)
    assert found['shared'] == Cost(SHARED, SHARED, SHARED, SHARED_MACS)
    assert found['total'] == (
        found['routers'] + found['experts'] + found['shared'])


def test_attention_by_hand() -> None:
    """Blocks 0 and 2 have attention experts, block 1 has MLP experts."""
    trunk = build_moe(attention=True)
    dims = moe_layers(trunk)['layers.0.attn'].experts.hidden
    found = count_moe(trunk, SIZE)
    expert = EXPERT_MACS + 2 * (2 * DIMS * dims)
    assert found['experts'].macs == TOKENS * 2 * expert
    assert found['routers'].macs == TOKENS * 3 * DIMS * 8
    # each token has two queries of one head
    attention = TOKENS * DIMS * 2 * dims + 2 * 2 * TOKENS**2 * dims
    assert found['shared'].macs == (16 * 3 * 14 * 14 * 32 + 2 * attention +
                                    17 * 32 * 96 + 2 * 17 * 17 * 32 +
                                    17 * 32 * 32 + 2 * 17 * 2 * 32 * 64)


def prune(trunk) -> None:
    for layer, kept in zip(moe_layers(trunk).values(), ([0, 1, 2], [3, 4])):
        layer.keep(kept)


#: surgery; then routers, experts per token, trained
CASES: Dict[str, tuple] = dict(
    fewer_active=(lambda t: set_k(t, 1), 4 * ROUTER, 16, 1,
                  4 * ROUTER + 16 * EXPERT + SHARED),
    pruned=(prune, 4 * ROUTER, 5, 2, 4 * ROUTER + 5 * EXPERT + SHARED),
    router_only=(lambda t: (learn_tasks(t, ['seg']), freeze(t, 'routers')),
                 4 * ROUTER, 16, 2, 2 * ROUTER),
    some_experts=(lambda t: (learn_tasks(t, ['seg']),
                             freeze(t, ['routers', 'experts'], dict(num=3))),
                  4 * ROUTER, 16, 2, 2 * ROUTER + 6 * EXPERT),
    # the new router has two rows more
    new_task=(lambda t: (add_task(t, 'new', 2), freeze(t, 'shared')),
              6 * ROUTER + 2 * 2 * 9, 20, 2, SHARED),
    all_of_it=(lambda t: (set_k(t, 1), prune(t), freeze(t, 'experts')),
               4 * ROUTER, 5, 1, 5 * EXPERT))


@pytest.mark.parametrize('case', CASES)
def test_combinations_by_hand(case: str) -> None:
    change, routers, experts, k, trained = CASES[case]
    trunk = build_moe()
    change(trunk)
    found = count_moe(trunk, SIZE)
    assert found['routers'].stored == routers
    assert found['experts'].stored == experts * EXPERT
    assert found['experts'].active == LAYERS * k * EXPERT
    assert found['experts'].macs == LAYERS * TOKENS * k * EXPERT_MACS
    assert found['shared'].macs == SHARED_MACS
    assert found['total'].trained == trained


def test_new_router_costs_more() -> None:
    trunk = build_moe()
    add_task(trunk, 'new', 2)
    found = count_moe(trunk, SIZE, 'new')
    assert found['routers'].active == LAYERS * (ROUTER + 2 * 9)
    assert found['routers'].macs == LAYERS * TOKENS * (ROUTER_MACS + 2 * 8)


def test_dense_trunk() -> None:
    found = count_moe(MODELS.build(moe_cfg()['trunk']), SIZE)
    assert found['total'] == found['shared']
    assert found['total'].macs == SHARED_MACS + 2 * 17 * 2 * 32 * 64


# --------------------------------------------------------------------- tool


@pytest.fixture(scope='module')
def tool() -> Callable:
    spec = importlib.util.spec_from_file_location('count_moe', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main(*argv: object) -> int:
        with pytest.raises(SystemExit) as caught:
            run_cli(lambda: module.main([*map(str, argv), '--size', '56']))
        return caught.value.code or 0

    return main


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    path = tmp_path / 'trunk.safetensors'
    write_moe(path)
    return path


def test_file(tool: Callable, file: Path, capsys) -> None:
    args = [
        '--task', 'new', '--like', 'seg', '--k', 1, '--threshold', 1000,
        '--train', 'routers', 'experts', '--experts', 2
    ]
    assert tool(file, *args, '--json') == 0
    found = json.loads(capsys.readouterr().out)
    # one expert is kept in each layer, and two are new
    assert found['experts'] == dict(
        trained=4 * EXPERT,
        stored=6 * EXPERT,
        active=2 * EXPERT,
        macs=LAYERS * TOKENS * EXPERT_MACS)
    # the row of a copy has no bias
    assert found['total']['trained'] == 4 * EXPERT + 2 * (ROUTER + 2 * 8)
    assert tool(file, *args) == 0
    out = capsys.readouterr().out
    assert f'{6 * EXPERT:,}' in out and 'MACs' in out


@pytest.mark.parametrize('adapted', [False, True])
def test_config(tool: Callable, file: Path, adapted: bool, capsys) -> None:
    if adapted:
        model = ordinary_cfg('cls', checkpoint=str(file), train='routers')
    else:
        model = ConfigDict(task_cfg('cls'), backbone=moe_cfg())
    config = file.with_name('run.py')
    Config(dict(model=model, default_scope='mmpretrain')).dump(config)
    head = 2 * DIMS + 2
    args = [] if adapted else ['--train', 'routers']
    assert tool(config, '--task', 'seg', '--json', *args) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['neck and heads']['stored'] == head
    assert found['total']['trained'] == head + 2 * ROUTER
    assert found['total']['stored'] == (
        head + 4 * ROUTER + 16 * EXPERT + SHARED)
    assert tool(config) == 0
    assert 'neck and heads' in capsys.readouterr().out


@pytest.mark.parametrize('argv, words', [
    (['--k', 9], '`k` is 9'),
    (['--train', 'heads'], "`train` names 'heads'"),
    (['--task', 'x', '--train', 'experts', '--experts', 0], '`experts.num`'),
    (['--task', 'cls', '--train', 'experts', '--experts', 1], 'not know new'),
    (['--threshold', 3], 'no task says'),
])
def test_mistakes(tool: Callable, file: Path, argv: list, words: str,
                  capsys) -> None:
    assert tool(file, *argv) == 1
    err = capsys.readouterr().err
    assert words in err and err.startswith('Error: ')
