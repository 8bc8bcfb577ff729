# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The benchmark of fusion: its runs, and what they say."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS

from _tiny import (SCOPES, Pictures, add_modules, build_backbone, fusion_neck,
                   model_cfg, save_trunk)
from vim_mm.zoo import save_module

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture
def no_harm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(DATASETS.module_dict, 'Pictures', Pictures)
    import no_harm
    yield no_harm
    for name in ('no_harm', 'no_harm_tasks', 'no_harm_summary'):
        sys.modules.pop(name, None)


def tiny(folder: Path) -> Config:
    trunk = save_trunk(folder / 'trunk.pth')
    midstream = build_backbone(trunk)
    add_modules(midstream, 'a', 'b', std=.05)
    for name in 'ab':
        save_module(midstream, name, str(folder / 'zoo'))
    loader = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'))
    return Config(
        dict(
            default_scope=SCOPES['cls'],
            zoo=str(folder / 'zoo'),
            model=model_cfg('cls', dict(trunk=trunk), fusion_neck('cls')),
            train_dataloader=dict(
                loader, dataset=dict(type='Pictures', kind='cls', num=12)),
            test_dataloader=dict(
                loader, dataset=dict(type='Pictures', kind='cls', num=8)),
            test_evaluator=dict(type='mmpretrain.Accuracy', topk=(1, ))))


def test_runs_are_added_one_by_one(tmp_path: Path, no_harm: Any,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny(tmp_path)
    monkeypatch.setattr(no_harm, 'read_config', lambda *_: cfg)
    command = ['--zoo', cfg.zoo, '--work-dir', str(tmp_path / 'work'),
               '--seeds', '0', '--tasks', 'solar-40', '--length', '2']
    no_harm.main(command)
    log = tmp_path / 'work/runs.jsonl'
    rows = list(map(json.loads, log.read_text().splitlines()))
    assert [row['method'] for row in rows] == [
        'frozen trunk', 'single: a', 'single: b', 'uniform weights',
        'recommended fusion', 'best at 1, next at 0.25', 'best two alike'
    ]
    assert all(0 <= row['value'] <= 100 for row in rows)
    assert {row['epochs'] for row in rows} == {80}
    found = {row['method']: row for row in rows}
    assert found['best two alike']['weights'] == dict(a=.5, b=.5)
    # the same weights are the same head
    assert found['best two alike']['value'] == found['uniform weights'][
        'value']
    assert found['recommended fusion']['passes'] <= 16
    # what is there is not run again
    log.write_text(''.join(log.read_text().splitlines(True)[:-2]))
    no_harm.main(command)
    again = list(map(json.loads, log.read_text().splitlines()))
    assert [row['run'] for row in again] == [row['run'] for row in rows]
    assert [row['value'] for row in again] == [row['value'] for row in rows]


def test_another_length_has_a_folder_of_its_own(no_harm: Any) -> None:
    assert no_harm.parse_args([]).work_dir != no_harm.parse_args(
        ['--length', '2']).work_dir


def runs(fused: float, trunk: float = 50., single: float = 60.) -> dict:
    """Three seeds of one task."""
    values = {
        'frozen trunk': (trunk, .5),
        'single: a': (single, .6),
        'uniform weights': (trunk + 1, .55),
        'recommended fusion': (fused, .7)
    }
    return {
        seed: {
            f'camvid-40/{method}': dict(
                seed=seed, run=f'camvid-40/{method}', task='camvid-40',
                method=method, value=value + seed + place / 10 * (seed == 1),
                score=score, weights=dict(a=place), commit='c', tries=5,
                passes=4., search_seconds=1)
            for place, (method, (value, score)) in enumerate(values.items())
        }
        for seed in range(3)
    }


@pytest.mark.parametrize(('fused', 'single', 'held'), [
    (62., 60., dict(trunk=True, single=True, gain=True, order=True)),
    (55., 60., dict(trunk=True, single=False, gain=False)),
    (45., 60., dict(trunk=False, single=False, gain=False, order=False)),
    (50., 40., dict(trunk=True, single=True, gain=True)),
])
def test_verdicts_follow_from_the_figures(fused: float, single: float,
                                          held: dict, no_harm: Any) -> None:
    import no_harm_summary as summary
    made = runs(fused, single=single)
    said = summary.judge(made)
    assert set(said) == set(summary.CLAIMS)
    for claim, holds in held.items():
        expected = 'holds' if holds else 'does not hold'
        assert said[claim]['verdict'] == expected, (claim, said[claim])
    rows = list(summary.rows(made))
    ours, = (row for row in rows if row['claim'] == 'trunk'
             and row['method'] == 'recommended fusion')
    assert ours['baseline']['difference'] == pytest.approx(fused - 50 + .1)
    assert (ours['seeds'], ours['n_train'], ours['passes']) == (3, 40, 4.)
