# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""`make bench` measures every row, and says why where it cannot."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
import torch
from torch import nn

from _tiny import first_of

KEYS = [
    'name', 'against', 'ratio', 'target', 'met', 'median_s', 'peak_mb',
    'runs', 'note'
]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(
        str(Path(__file__).resolve().parents[1] / 'benchmarks'))
    import bench
    return bench


def run(bench: Any, path: Path, *args: str) -> tuple:
    code = bench.main(['--device', 'cpu', '--out', str(path), *args])
    return code, json.loads(path.read_text())


@pytest.mark.slow
def test_every_row_is_measured_or_says_why(
        bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_training
    import bench_zoo
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    # these start processes, and those below a compiler
    monkeypatch.setattr(bench_training, 'peak_mb', lambda *_: 2.)
    monkeypatch.setattr(bench_zoo, 'import_seconds', lambda _: .1)
    benches = [b for b in bench.BENCHMARKS if 'kernels' not in b.name]
    monkeypatch.setattr(bench, 'BENCHMARKS', benches)
    code, report = run(bench, tmp_path / 'new' / 'out.json', '--quick')
    assert code == 0
    assert {'commit', 'time', 'torch', 'machine', 'device'} <= set(report)
    rows = report['rows']
    goals = [goal for each in benches for goal in each.goals]
    assert [(row['name'], row['against']) for row in rows] == [
        (goal.name, goal.against) for goal in goals
    ]
    for row in rows:
        assert list(row) == KEYS
        assert row['met'] is None  # a tiny model proves nothing
        reason = 'not run: no GPU' if 'GPU' in row['name'] else 'skipped'
        if row['note']:
            assert row['note'].startswith(reason) and not row['runs']
            assert row['ratio'] is None
        else:
            assert 'GPU' not in row['name']
            assert row['ratio'] > 0 and row['runs'] > 0
            assert row['median_s'] is None or row['median_s'] > 0
    names = [row['name'] for row in rows]
    assert len(set(zip(names, (row['against'] for row in rows)))) == len(rows)


def test_names_of_benchmarks_choose_one(bench: Any,
                                        capsys: pytest.CaptureFixture) -> None:
    names = [each.name for each in bench.BENCHMARKS]
    assert len(set(names)) == len(names)
    assert bench.main(['--list']) == 0
    assert capsys.readouterr().out.splitlines() == names
    assert [b.name for b in bench.chosen(['zoo of'])] == ['zoo of 1,000 '
                                                          'modules']
    with pytest.raises(ValueError, match=r"named like \['no such row'\]"):
        bench.main(['--only', 'no such row'])


@pytest.mark.slow
def test_a_row_that_fails_stops_no_other(
        bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture) -> None:
    from harness import Benchmark, Goal, Result

    def fails(_) -> Iterator[Result]:
        yield Result(.5, .1, 7., 3)
        raise RuntimeError('the [first] thing broke\n\nand more')

    def works(_) -> Iterator[Result]:
        yield Result(2., .1, None, 3)

    goals = [Goal(name, 'other', 1.) for name in 'abc']
    monkeypatch.setattr(bench, 'BENCHMARKS', [
        Benchmark('fails', goals, fails),
        Benchmark('gpu', goals[:1], fails, needs_gpu=True),
        Benchmark('works', goals[:1], works)
    ])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    code, report = run(bench, tmp_path / 'out.json')
    assert code == 1
    notes = [row['note'] for row in report['rows']]
    said = 'failed: RuntimeError: the [first] thing broke; and more'
    assert notes == ['', said, said, 'not run: no GPU', '']
    assert [row['met'] for row in report['rows']] == [
        True, None, None, None, False
    ]
    assert report['rows'][0] == dict(
        name='a', against='other', ratio=.5, target=1., met=True,
        median_s=.1, peak_mb=7., runs=3, note='')
    assert '[first]' in capsys.readouterr().out
    code, _ = run(bench, tmp_path / 'out.json', '--only', 'works', 'gpu')
    assert code == 0  # a missed target is a figure, no failure


@pytest.mark.parametrize('args', first_of([['--quick'],
                                           ['--only', 'import']]))
def test_only_a_whole_run_replaces_the_results(
        bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        args: list) -> None:
    from harness import Benchmark, Goal, Result
    target = tmp_path / 'results' / 'latest.json'
    monkeypatch.setattr(bench, 'RESULTS', target)
    monkeypatch.setattr(bench, 'BENCHMARKS', [
        Benchmark('import', [Goal('import', 'other', 1.)],
                  lambda _: iter([Result(1.)]))
    ])
    assert bench.main(args) == 0
    assert not target.exists()
    assert bench.main([]) == 0
    assert len(json.loads(target.read_text())['rows']) == 1


def test_contestants_take_turns(bench: Any) -> None:
    from harness import take_turns
    seen = []
    times = take_turns(
        dict(a=lambda: seen.append('a'), b=lambda: seen.append('b')),
        4,
        warmup=2)
    assert ''.join(seen) == 'ab' * (2 + 4)
    assert [len(values) for values in times.seconds.values()] == [4, 4]
    result = type(times)(dict(a=[1., 9., 2.], b=[4., 4., 5.])).against(
        'a', 'b')
    assert (result.ratio, result.median_s, result.runs) == (.5, 2., 3)


@pytest.mark.slow
def test_memory_of_a_step_is_what_it_holds(bench: Any) -> None:
    import bench_training
    from harness import Settings
    if not Path('/proc/self/status').exists():
        pytest.skip('the system does not count it')
    name = 'ConvPass'
    assert bench_training.peak_mb(name, Settings(quick=True)) > 0
    # in a process of its own: here, memory that was freed may serve again
    code = ('import torch, bench_training; '
            'now = bench_training.resident_mb; before = now("VmRSS"); '
            'held = torch.ones(50_000_000, dtype=torch.uint8); '
            'print(now("VmRSS") - before)')
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code],
                         cwd=Path(bench_training.__file__).parent,
                         capture_output=True, text=True, check=True).stdout
    assert float(out.split()[-1]) == pytest.approx(50, abs=10)


def test_operators_that_are_no_views_are_counted(bench: Any) -> None:
    from count import count_operators
    x, layer = torch.ones(2, 3), nn.Linear(3, 4)
    with torch.no_grad():
        assert count_operators(lambda: layer(x)) == 1
        assert count_operators(lambda: layer(x).relu().t()[0]) == 2
        assert count_operators(lambda: x.view(3, 2).unsqueeze(0)) == 0
        done = []
        assert count_operators(
            lambda: done or done.append(x + 1)) == 0  # once, and kept


CODE = '''
class Runner:
    def call(self, args):
        arg0_1, = args
        cpp_fused_relu_0(arg0_1, buf0)
        triton_poi_fused_add_0.run(buf0, buf1, 4, grid=grid(4))
        extern_kernels.addmm(arg1_1, buf0, alpha=1, out=buf1)
        buf2 = extern_kernels.convolution(buf1, arg2_1, stride=(1, 1))
        buf3 = torch.ops.aten._scaled_dot_product_flash_attention(buf2)
        assert_size_stride(buf2, (2, 3), (3, 1))
        buf4 = reinterpret_tensor(buf2, (2, 3), (3, 1), 0)
        return (buf1, )
'''


def test_kernels_are_counted_in_the_code(bench: Any) -> None:
    from count import kernels_in
    before = 'def other():\n    extern_kernels.mm(a, b)\n'
    after = '\ndef benchmark_compiled_module():\n    extern_kernels.mm(a, b)'
    assert kernels_in(before + CODE + after) == 5


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which('g++') or shutil.which('clang++')),
    reason='Inductor needs a compiler')
def test_kernels_of_a_compiled_model(bench: Any) -> None:
    from count import count_kernels

    # a matrix product, and all the rest in one kernel
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sigmoid()).eval()
    assert count_kernels(model, torch.ones(2, 3)) == 2


@pytest.mark.parametrize('args', first_of([[], ['--train'], ['--amp']]))
def test_the_bank_over_k(bench: Any, tmp_path: Path, args: list,
                         capsys: pytest.CaptureFixture) -> None:
    import bank
    path = tmp_path / 'bank.json'
    bank.main([
        '--quick', '--modules', '1', '3', '--repeats', '2', '--json',
        str(path), *args
    ])
    rows = json.loads(path.read_text())['rows']
    assert [row['modules'] for row in rows] == [1, 3]
    assert all(list(row) == ['modules', 'trunk', 'bank', 'loop']
               for row in rows)
    assert 'loop / trunk' in capsys.readouterr().out


def test_the_loop_gives_what_the_bank_gives(bench: Any) -> None:
    import vit_models
    from harness import Settings
    settings = Settings(quick=True)
    models = [
        vit_models.bank(settings, 3, adapter=adapter)
        for adapter in (None, dict(type='LonelyConvPass'))
    ]
    state = models[0].state_dict()
    models[1].trunk.load_state_dict(models[0].trunk.state_dict())
    models[1].load_state_dict(
        dict(state, trunk_fingerprint=models[1].trunk_fingerprint))
    x = settings.images(2)
    with torch.no_grad():
        first, second = (model(x)[-1] for model in models)
        with models[0].only():
            trunk = models[0](x)[-1]
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, trunk, atol=1e-4)
