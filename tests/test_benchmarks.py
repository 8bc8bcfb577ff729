# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The benchmark of fusions measures what it says, on tiny pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from _tiny import (KINDS, SCOPES, Pictures, add_modules, build_backbone,
                   first_of, fusion_neck, model_cfg, save_trunk)
from vim_mm.zoo import save_module

NAMES = ['a', 'b', 'c']
FEW = '--draws 2 --num-train 6 --num-test 5 --steps 2 --step-pictures 6 ' \
    '--batch-size 3'


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(
        str(Path(__file__).resolve().parents[1] / 'benchmarks'))
    monkeypatch.setitem(DATASETS.module_dict, 'Pictures', Pictures)
    import fusions
    return fusions


def config(folder: Path, kind: str) -> Path:
    """A downstream config over a zoo of three modules."""
    trunk = save_trunk(folder / 'trunk.pth')
    midstream = build_backbone(trunk)
    add_modules(midstream, *NAMES, std=.05)
    for name in NAMES:
        save_module(midstream, name, str(folder / 'zoo'))
    backbone = dict(
        trunk=trunk, zoo=str(folder / 'zoo'), modules=NAMES,
        fusion=dict(type='vim_mm.EnsMoE'))
    cfg = Config(
        dict(
            default_scope=SCOPES[kind],
            model=model_cfg(kind, backbone, fusion_neck(kind)),
            custom_hooks=[
                dict(type='vim_mm.ScoreGatesHook', deals=3)
            ],
            train_dataloader=dict(
                dataset=dict(type='Pictures', kind=kind, num=12)),
            test_dataloader=dict(
                dataset=dict(type='Pictures', kind=kind, num=8))))
    cfg.dump(folder / 'cfg.py')
    return folder / 'cfg.py'


@pytest.mark.parametrize(
    'kind', first_of(['cls', 'seg', 'det']))
def test_every_method_is_measured(tmp_path: Path, kind: str,
                                  benchmark: Any) -> None:
    out = tmp_path / 'new' / 'out.json'
    benchmark.main([str(config(tmp_path, kind)), *FEW.split(), '--out',
                    str(out)])
    report = json.loads(out.read_text())
    assert {'command', 'commit', 'torch', 'device'} <= set(report)
    task, = report['tasks']
    assert (task['num_pool'], task['num_train'], task['num_test']) == (12, 6,
                                                                       5)
    methods = task['methods']
    assert len(methods) == 1 + 3 + 2 + 2 + len(benchmark.METHODS)
    for result in methods.values():
        assert not result['skipped']
        assert all(0 <= value <= 1 for value in result['accuracy'])
        assert len(result['accuracy']) == 2
    singles = [methods[f'single: {n}']['accuracy'] for n in NAMES]
    assert methods[benchmark.ORACLE]['accuracy'] == [
        max(values) for values in zip(*singles)
    ]
    chosen = methods[benchmark.CHOSEN]
    assert chosen['accuracy'] == [
        methods[name]['accuracy'][i] for i, name in enumerate(chosen['chosen'])
    ]
    # three modules and the bare trunk
    assert chosen['passes'] == [4 * 6] * 2
    # these, all alike, and modules that enter one by one
    assert all(5 * 6 <= each <= (8 + 4 * 3) * 6
               for each in methods['Ens-MoE from scores']['passes'])
    # two steps of six pictures, each once without and once with a graph
    uniform = methods['Ens-MoE hold-out from uniform']
    assert uniform['passes'] == [2 * 6 * 2] * 2
    assert uniform['backward'] == [2 * 6] * 2
    gates = methods['Ens-MoE hold-out from uniform']['gates'][0]
    assert list(gates) == NAMES and set(gates.values()) != {1 / 3}


def test_draws_differ_and_hold_classes_in_equal_numbers(
        benchmark: Any) -> None:
    pool = Pictures('cls', 12).samples
    draws = [benchmark.draw(pool, 6, seed) for seed in range(5)]
    assert all(sum(i % 2 for i in drawn) == 3 for drawn in draws)
    assert len(set(map(tuple, draws))) > 1
    assert draws[0] == benchmark.draw(pool, 6, 0)


def test_training_pictures_are_not_tested_on(tmp_path: Path,
                                             benchmark: Any) -> None:
    class Named(Pictures):

        def __init__(self, **kwargs) -> None:
            super().__init__(**kwargs)
            for index, sample in enumerate(self.samples):
                sample['data_samples'].set_metainfo(
                    dict(img_path=f'{index}.png'))

    DATASETS.module_dict['Pictures'] = Named
    with pytest.raises(ValueError, match='5 test images are training'):
        benchmark.main([str(config(tmp_path, 'seg')), *FEW.split()])


def test_a_draw_of_one_picture_a_class_is_refused(tmp_path: Path,
                                                  benchmark: Any) -> None:
    with pytest.raises(ValueError, match='fewer than two classes twice'):
        benchmark.main([str(config(tmp_path, 'cls')), '--num-train', '3'])


@pytest.mark.slow
def test_what_cannot_be_merged_is_skipped(tmp_path: Path,
                                          benchmark: Any) -> None:
    path, out = config(tmp_path, 'cls'), tmp_path / 'out.json'
    cfg = Config.fromfile(path)
    backbone = build_backbone(cfg.model.backbone.trunk)
    add_modules(backbone, 'wide', hidden_dims=6)
    save_module(backbone, 'wide', str(tmp_path / 'zoo'))
    cfg.model.backbone.modules.append('wide')
    cfg.dump(path)
    benchmark.main([str(path), *FEW.split(), '--out', str(out)])
    methods = json.loads(out.read_text())['tasks'][0]['methods']
    skipped = {name for name, result in methods.items() if result['skipped']}
    assert {name for name in methods if 'erge' in name} == skipped


def test_a_draw_of_all_pictures_is_refused(tmp_path: Path,
                                           benchmark: Any) -> None:
    with pytest.raises(ValueError, match='nothing to draw'):
        benchmark.main([str(config(tmp_path, 'cls')), '--num-train', '12'])


def test_seeds_are_averaged_and_their_gains_paired(
        tmp_path: Path, benchmark: Any, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture) -> None:
    import seeds
    paths = []
    for index, values in enumerate([(.2, .5), (.4, .8)]):
        rows = [
            dict(
                step='det',
                task='t',
                metric='AP',
                method=method,
                value=value)
            for method, value in zip(('trunk', 'ours'), values)
        ]
        paths.append(tmp_path / f'{index}.json')
        paths[-1].write_text(
            json.dumps([*rows, dict(rows[0], step=f'only {index}')]))
    monkeypatch.setattr('sys.argv', ['seeds.py', *map(str, paths)])
    seeds.main()
    out = capsys.readouterr().out
    assert 'only' not in out
    trunk, ours = (line for line in out.splitlines() if 'det' in line)
    assert '0.300 ± 0.141' in trunk and '+0.000 ± 0.000' in trunk
    assert '0.650 ± 0.212' in ours and '+0.350 ± 0.071' in ours
    paths[0].write_text(json.dumps(rows[:1]))
    with pytest.raises(ValueError, match="1 of 2 reports have a row 'ours'"):
        seeds.read(paths)


@pytest.mark.parametrize('kind', first_of(KINDS))
def test_memory_of_a_step(tmp_path: Path, kind: str, benchmark: Any,
                          monkeypatch: pytest.MonkeyPatch,
                          capsys: pytest.CaptureFixture) -> None:
    import memory
    path = config(tmp_path, kind)
    monkeypatch.setattr(
        'sys.argv',
        ['memory.py', str(path), '--size', '56', '56', '--batch', '3'])
    memory.main()
    assert 'GB for 3 images of 56 x 56' in capsys.readouterr().out
    cfg = Config.fromfile(path)  # as the demo's configs have it
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    cfg.dump(path.with_name('outside.py'))
    monkeypatch.setattr('sys.argv', [
        'memory.py', str(path.with_name('outside.py')), '--size', '56', '56'
    ])
    memory.main()
    # gates in all blocks keep what the frozen trunk alone does not
    model = memory.build(Config.fromfile(path))
    kept = [
        memory.kept_for_backward(
            model, memory.batch(model, (56, 56), num), False)
        for num in (1, 2, 3)
    ]
    assert kept[2] - kept[1] == pytest.approx(kept[1] - kept[0], rel=.05)
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(modules=[], fusion=None)
    bare = memory.build(cfg)
    assert memory.kept_for_backward(
        bare, memory.batch(bare, (56, 56), 2), False) < kept[1]


def test_memory_of_one_picture_is_refused(
        benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import memory
    monkeypatch.setattr('sys.argv', ['memory.py', 'cfg.py', '--batch', '1'])
    with pytest.raises(ValueError, match='--batch 1'):
        memory.main()


def test_memory_counts_what_autograd_keeps(benchmark: Any) -> None:
    """One linear layer keeps its input, and a ReLU its output."""
    import memory
    from mmengine.model import BaseModel

    class Net(BaseModel):

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 16)

        def forward(self, inputs: torch.Tensor, mode: str) -> dict:
            return dict(loss=self.layer(inputs).relu().sum())

    kept = memory.kept_for_backward(
        Net(), dict(inputs=torch.ones(4, 8)), False)
    assert kept == 4 * (4 * 8 + 4 * 16)
