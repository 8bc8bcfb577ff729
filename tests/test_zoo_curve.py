# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The curves of a zoo: what is left out, what is run, what it says."""

import json
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from test_no_harm import BENCHMARKS, tiny

from _tiny import Pictures, add_modules, build_backbone
from vim_mm.zoo import Zoo, ZooError, save_module

EIGHT = ('trees', 'digit-masks', 'digit-classes', 'solar', 'clothing',
         'cifar10', 'camvid', 'coco-semantic')


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(DATASETS.module_dict, 'Pictures', Pictures)
    import zoo_curve
    yield zoo_curve
    for name in ('no_harm', 'no_harm_tasks', 'zoo_curve',
                 'zoo_curve_table', 'zoo_curve_summary'):
        sys.modules.pop(name, None)


def test_zoos_lie_within_each_other_and_know_nothing(curve: Any) -> None:
    orders = set()
    for data, of in curve.CURVES.items():
        for seed in range(3):
            zoos = curve.nested(data, seed, EIGHT)
            assert [len(z) for z in zoos] == [2, 4, 8 - len(of.knowing)]
            for less, more in zip(zoos, zoos[1:]):
                assert more[:len(less)] == less
            assert set(zoos[-1]) == set(EIGHT) - set(of.knowing)
            assert zoos == curve.nested(data, seed, EIGHT[::-1])
            orders.add(tuple(zoos[0]))
    assert len(orders) > 10


def test_no_data_set_is_known_to_what_is_weighed(curve: Any) -> None:
    """By the configs that the modules are learned with."""
    learned: Dict[str, str] = {}
    configs = Path(BENCHMARKS).parent / 'configs'
    for path in (*(configs / 'demo').glob('midstream_*.py'),
                 *(configs / 'zoo_demo').glob('midstream_*.py')):
        cfg = Config.fromfile(path)
        learned[cfg.model.backbone.new_module] = cfg.data_root
    assert set(learned) == set(EIGHT)
    for data, of in curve.CURVES.items():
        folder = dict(
            solar='solar_cells', trees='tree_crowns').get(
                data, 'digits_on_photographs' if 'digits' in data else data)
        knows = {name for name, root in learned.items()
                 if Path(root).name == folder}
        assert knows == set(of.knowing) and knows, data


def wide(folder: Path) -> Config:
    """A tiny task, and a zoo of eight modules of which two are real."""
    cfg = tiny(folder)
    midstream = build_backbone(cfg.model.backbone.trunk)
    add_modules(midstream, *EIGHT, std=.05)
    zoo = folder / 'eight'
    for name in EIGHT:
        save_module(midstream, name, str(zoo))
    cfg.zoo = str(zoo)
    return cfg


def rows_of(log: Path) -> List[dict]:
    return list(map(json.loads, log.read_text().splitlines()))


def test_runs_are_added_one_by_one(tmp_path: Path, curve: Any,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    import no_harm
    cfg = wide(tmp_path)
    monkeypatch.setattr(no_harm, 'read_config', lambda *_: cfg)
    monkeypatch.setattr(curve, 'OWN_IMAGES', 12)
    monkeypatch.setitem(
        curve.TASKS, 'solar-40',
        curve.TASKS['solar-40']._replace(epochs=2, num=5))
    monkeypatch.setitem(curve.CURVES, 'solar',
                        curve.CURVES['solar']._replace(sizes=(5, 6), middle=5))
    command = ['--zoo', cfg.zoo, '--work-dir', str(tmp_path / 'work'),
               '--seeds', '0', '--data', 'solar']
    curve.main(command)
    log = tmp_path / 'work/runs.jsonl'
    rows = rows_of(log)
    assert [row['run'] for row in rows] == [
        'solar/5/0', 'solar/5/2', 'solar/5/4', 'solar/5/7',
        'solar/5/own module', 'solar/6/0', 'solar/6/7'
    ]
    assert all(0 <= row['value'] <= 100 for row in rows)
    zoos = curve.nested('solar', 0, EIGHT)
    for row, names in zip(rows[1:4], zoos):
        assert row['modules'] == names
        used = {name for name, weight in row['weights'].items() if weight}
        assert used <= set(names) and 'solar' not in row['weights']
        # what holds all may weigh none, and is then the frozen trunk
        if not used:
            assert row['value'] == rows[0]['value']
    import zoo_curve_table
    values = zoo_curve_table.values_of(rows)['solar']
    assert list(values[5]) == ['0', '2', '4', 'all', 'own module']
    assert list(values[6]) == ['0', 'all']
    assert zoo_curve_table.curve_table(rows).row_count == 2
    # what is there is not run again, and nothing is built for it
    before = log.read_text()
    monkeypatch.setattr(curve, 'CurveBench', None)
    curve.main(command)
    assert log.read_text() == before


def test_some_trials_are_those_of_all(tmp_path: Path, curve: Any,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A zoo of some modules scores as it does beside the others."""
    import no_harm
    cfg = wide(tmp_path)
    monkeypatch.setattr(no_harm, 'read_config', lambda *_: cfg)
    args = curve.parse_args(
        ['--zoo', cfg.zoo, '--work-dir', str(tmp_path / 'work')])
    bench = curve.CurveBench('solar', 20, 0, args, EIGHT)
    some = curve.SomeTrials(bench.trials, ['clothing', 'trees'])
    assert some.among_all((.5, 1.)) == (1., 0., 0., 0., .5, 0., 0., 0.)
    assert some.ridge((.5, 1.)) == bench.trials.ridge(
        (1., 0., 0., 0., .5, 0., 0., 0.))
    choice = some.choose()
    assert list(choice.weights) == ['clothing', 'trees']
    some.weigh((.5, 1.))
    weights = bench.model.backbone.fusion.logits['default'][0]
    assert weights.tolist() == [1., 0., 0., 0., .5, 0., 0., 0.]


def test_an_absent_zoo_is_named(tmp_path: Path, curve: Any) -> None:
    with pytest.raises(ZooError, match='run `make zoo-demo`'):
        curve.main(['--zoo', str(tmp_path / 'zoo'), '--work-dir',
                    str(tmp_path / 'work')])
    assert not Zoo(tmp_path / 'zoo').root.exists()


def made(gains: Dict[str, float], own: float, seeds: int = 3) -> dict:
    """Runs of all data sets, by kind what each doubling of modules adds."""
    import zoo_curve_summary as summary
    runs: Dict[int, Dict[str, dict]] = {}
    for seed in range(seeds):
        rows = runs[seed] = {}
        for data, curve in summary.CURVES.items():
            kind = summary.TASKS[curve.task].kind
            whole = 8 - len(curve.knowing)
            every = [(curve.middle, 0, 0.), (curve.middle, 2, gains[kind]),
                     (curve.middle, 4, 2 * gains[kind]),
                     (curve.middle, whole, 3 * gains[kind])]
            for size in curve.sizes:
                more = 3 * gains[kind] * curve.middle / size
                every += [(size, 0, 0.), (size, whole, more)]
            for size, num, gain in every:
                noise = .1 * (num > 0) * seed
                rows[f'{data}/{size}/{num}'] = dict(
                    seed=seed, run=f'{data}/{size}/{num}', data=data,
                    size=size, num_modules=num, commit='c',
                    value=50 + seed + gain + noise)
            name = f'{data}/{curve.middle}/own module'
            rows[name] = dict(seed=seed, run=name, data=data, commit='c',
                              size=curve.middle, value=50 + seed + own)
    return runs


@pytest.mark.parametrize(('gains', 'own', 'said'), [
    (dict(cls=2., seg=1., det=3.), 9.,
     dict(cls=True, seg=True, det=True, harm=True, images=True)),
    (dict(cls=2., seg=-1., det=0.), 9.,
     dict(cls=True, seg=False, det=False, harm=False)),
    (dict(cls=-1., seg=-1., det=-1.), -1.,
     dict(cls=False, seg=False, det=False, harm=False, images=False)),
])
def test_verdicts_follow_from_the_figures(gains: dict, own: float, said: dict,
                                          curve: Any) -> None:
    import zoo_curve_summary as summary
    runs = made(gains, own)
    found = summary.judge(runs)
    assert set(found) == set(summary.CLAIMS)
    for claim, holds in said.items():
        expected = summary.HOLDS if holds else summary.NOT
        assert found[claim]['verdict'] == expected, (claim, found[claim])
        gap = 'no gap' in found[claim]['reason']
        assert gap == (own < 0 and claim in summary.KINDS)
    rows = list(summary.rows(runs))
    clothes = [row for row in rows if row['claim'] == 'cls'
               and row['data'] == 'clothing, 5 a class']
    assert [row['method'] for row in clothes] == [
        'frozen trunk', '2 modules', '4 modules', '7 modules', 'own module'
    ]
    assert clothes[3]['baseline']['difference'] == pytest.approx(
        3 * gains['cls'] + .1)
    assert (clothes[0]['n_train'], clothes[0]['n_test']) == (50, 100)
    pooled = [row for row in rows if row['method'].startswith('all modules')]
    assert [row['claim'] for row in pooled] == ['cls', 'seg', 'det']
    assert [row['seeds'] for row in pooled] == [3, 3, 3]
    assert pooled[1]['mean'] == pytest.approx(3 * gains['seg'] + .1)


@pytest.mark.parametrize('seeds', [0, 1, 2])
def test_too_few_runs_say_nothing(seeds: int, curve: Any) -> None:
    import zoo_curve_summary as summary
    runs = made(dict(cls=1., seg=1., det=1.), 1., seeds)
    for rows in runs.values():  # one data set of each kind
        for name in list(rows):
            if name.split('/')[0] not in ('clothing', 'camvid', 'coco'):
                rows.pop(name)
    found = summary.judge(runs)
    for claim in ('cls', 'seg', 'det', 'harm'):
        assert found[claim]['verdict'] == summary.UNKNOWN
        assert 'inf' not in found[claim]['reason']
    assert len(list(summary.rows(runs))) == 3 * 13 * bool(seeds)


@pytest.mark.parametrize('nums', [[0], [0, 2], [0, 2, 4]])
def test_some_modules_are_not_taken_for_all(nums: List[int],
                                            curve: Any) -> None:
    """As after an interruption."""
    import zoo_curve_summary as summary
    runs = made(dict(cls=1., seg=1., det=1.), 1.)
    kept = {f'camvid/20/{num}' for num in nums}
    runs = {
        seed: {name: row for name, row in rows.items() if name in kept}
        for seed, rows in runs.items()
    }
    assert summary.judge(runs)['seg']['verdict'] == summary.UNKNOWN
    methods = [row['method'] for row in summary.rows(runs)
               if row['data'] == 'CamVid, 20' and row['baseline']]
    assert methods == [f'{num} modules' for num in nums if num]


def test_the_page_says_what_was_run(curve: Any) -> None:
    """docs/evidence/zoo.md is what the summary makes of the log."""
    import zoo_curve_summary as summary
    from evidence_tables import tables
    log = summary.DOCS / 'zoo_runs.jsonl'
    runs = summary.read(log)
    said, rows = summary.judge(runs), list(summary.rows(runs))
    stored: List[dict] = json.loads((summary.DOCS / 'zoo.json').read_text())
    assert [{k: row[k] for k in rows[0]} for row in stored] == rows
    assert tables(rows, said) in (summary.DOCS / 'zoo.md').read_text()
