# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""``tools/compare.py`` on tiny data of each kind, from config to verdict."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Callable, List

import pytest
from _outside import write_project
from mmengine.config import Config

from _tiny import KINDS, add_modules, build_backbone, vit
from vim_mm.report import compare
from vim_mm.report.evidence import usefulness
from vim_mm.utils.processes import RunError
from vim_mm.zoo import save_module

ROOT = Path(__file__).parents[2]
FUSED = """
model['backbone'].update(new_module=None, zoo='zoo', modules=['a', 'b'])
custom_hooks = [
    dict(type='vim_mm.ScoreGatesHook'),
    dict(type='vim_mm.WarmHeadHook', epochs=1),
    dict(type='vim_mm.GateLogHook')]
default_hooks = dict(checkpoint=dict(save_best='auto', rule='greater'))
"""
IN_TRUNK = "model['backbone'].update(fusion=dict(type='vim_mm.LinearMoE'))\n"
IN_NECK = """
model['neck'] = dict(modules=['a', 'b'], fusion=dict(type='vim_mm.EnsMoE'))
"""


def project(folder: Path, kind: str, more: str = IN_TRUNK) -> str:
    """A config of a fused task outside the repository, and its zoo."""
    path = write_project(folder, kind, FUSED + more)
    outs = dict(out_type='raw') if kind == 'cls' else {}
    trunk = vit(
        init_cfg=dict(type='Pretrained', checkpoint=str(folder / 'trunk.pth')),
        **outs)
    backbone = build_backbone(trunk)
    add_modules(backbone, 'a', 'b')
    for name in 'ab':
        save_module(backbone, name, str(folder / 'zoo'))
    return path.name


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys) -> Callable:
    """Runs the tool in this process: its code, and the runs it made."""

    def tool(folder: Path, *args: str, broken: str = '') -> tuple:
        made: List[str] = []

        def run_here(name: str, run: Callable, log: Path, console) -> None:
            made.append(name)
            log.parent.mkdir(parents=True, exist_ok=True)
            if broken and name.startswith(broken):
                raise RunError(f'{name} failed; its log is {log}')
            run()

        script = runpy.run_path(str(ROOT / 'tools' / 'compare.py'))
        script['main'].__globals__['run_logged'] = run_here
        monkeypatch.setattr(compare, 'run_logged', run_here)
        monkeypatch.setattr(sys, 'argv', ['tools/compare.py', *args])
        monkeypatch.chdir(folder)
        code = 0
        try:
            script['main']()
        except SystemExit as end:
            code = end.code
        return code, made, capsys.readouterr()

    return tool


METRICS = dict(cls='accuracy', det='AP', seg='mIoU')


@pytest.mark.parametrize('kind', KINDS)
def test_a_table_a_page_and_evidence(kind: str, tmp_path: Path,
                                     tool: Callable) -> None:
    # one in the trunk is told from one in the neck
    config = project(tmp_path, kind, IN_NECK if kind == 'seg' else IN_TRUNK)
    args = [config, '--seeds', '0', *(['--full'] * (kind != 'seg'))]
    code, made, said = tool(tmp_path, *args)
    methods = ['frozen trunk', 'single: a', 'single: b', 'uniform',
               'recommended', *(['full fine-tuning'] * (kind != 'seg'))]
    assert code == 0 and made == [f'{name}, seed 0' for name in methods]
    root = tmp_path / 'work_dirs' / 'compare' / Path(config).stem
    rows = json.loads((root / 'report.json').read_text())
    assert [row['method'] for row in rows] == methods
    assert {row['metric'] for row in rows} == {METRICS[kind]}
    assert all(0 <= row['value'] <= 1 and row['n_test'] == 4 for row in rows)
    assert 'One seed' in said.out and 'over the frozen trunk' in said.out
    page = (root / 'report.html').read_text()
    assert 'data:image/jpeg' in page and 'class=gates' in page
    # the report says how useful each module is
    metric, truth = usefulness(root / 'report.json', Path(config).stem)
    assert metric == METRICS[kind] and set(truth) == {*'ab', 'frozen trunk'}
    # heads start alike
    starts = list(root.glob('seed0/start-*.pth'))
    assert len(starts) == 1

    # nothing is run twice
    code, made, said = tool(tmp_path, *args)
    assert code == 0 and made == [] and said.out.count('reused') == len(rows)
    # but what a change reaches: not the fusion, for other methods
    code, made, _ = tool(
        tmp_path, *args, '--cfg-options', 'custom_hooks.0.deals=2')
    assert made == ['recommended, seed 0']


def test_seeds_best_modules_and_metrics(tmp_path: Path,
                                        tool: Callable) -> None:
    config = project(tmp_path, 'seg')
    args = [config, '--seeds', '0', '1', '0', '--work-dir', 'out']
    code, made, said = tool(tmp_path, *args, '--best', '1', '--metric', 'aAcc')
    assert code == 0 and made[0] == 'Ranking the modules'
    scores = json.loads((tmp_path / 'out/ranking/scores.json').read_text())
    best = max(scores, key=scores.get)
    names = ['frozen trunk', f'single: {best}', 'uniform', 'recommended']
    assert made[1:] == [f'{n}, seed {s}' for s in (0, 1) for n in names]
    assert 'aAcc' in said.out and ' ± ' in said.out
    rows = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert [row['seed'] for row in rows] == [0] * 4 + [1] * 4
    # images of the first seed only
    assert not list((tmp_path / 'out' / 'seed1').rglob('*.jpg'))
    with pytest.raises(ValueError, match="the metric 'AP'; known are"):
        tool(tmp_path, *args, '--best', '1', '--metric', 'AP')


def test_a_broken_run_is_named_and_the_others_go_on(tmp_path: Path,
                                                    tool: Callable) -> None:
    config = project(tmp_path, 'cls')
    args = [config, '--seeds', '0', '--work-dir', 'out']
    code, made, said = tool(tmp_path, *args, broken='single: a')
    assert len(made) == 5 and '1 of 5 runs broke' in code
    assert 'single: a, seed 0' in code and 'single: a, seed 0' in said.err
    rows = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert [row['method'] for row in rows] == [
        'frozen trunk', 'single: b', 'uniform', 'recommended'
    ]
    code, made, _ = tool(tmp_path, *args)  # it alone is run again
    assert code == 0 and made == ['single: a, seed 0']
    code, made, said = tool(tmp_path, config, '--seeds', '7', broken='')
    code, _, _ = tool(tmp_path, config, '--seeds', '8', broken='f')
    assert 'frozen trunk, seed 8' in code


def test_a_result_depends_on_its_modules_and_trunk(tmp_path: Path,
                                                   monkeypatch) -> None:
    cfg = Config.fromfile(tmp_path / project(tmp_path, 'cls'))
    monkeypatch.chdir(tmp_path)

    def digests() -> dict:
        runs = compare.Comparison(cfg, tmp_path / 'out', [0], full=True).runs
        return {run.method: run.digest for run in runs}

    def changed(before: dict) -> set:
        return {name for name, digest in digests().items()
                if digest != before[name]}

    before = digests()
    assert digests() == before and len(set(before.values())) == 6
    backbone = build_backbone(cfg.model.backbone.trunk)
    add_modules(backbone, 'b', std=.5)
    save_module(backbone, 'b', 'zoo', overwrite=True)
    assert changed(before) == {'single: b', 'uniform', 'recommended'}
    before = digests()
    (tmp_path / 'trunk.pth').write_bytes(b'other weights')
    assert changed(before) == set(before)
    before = digests()
    cfg.work_dir = 'elsewhere'
    assert not changed(before)
    cfg.optim_wrapper.optimizer.lr = 7.
    assert changed(before) == set(before)


@pytest.mark.parametrize(('change', 'said'), [
    ("model['backbone']['zoo'] = 'absent'", "absent"),
    ("model['backbone']['modules'] = ['c']", "'c'"),
    ("model['backbone'].update(fusion=None)", 'weighs no modules'),
    ("dataset['data_prefix'] = 'absent'", 'absent'),
])
def test_mistakes_end_in_a_sentence_before_any_run(change: str, said: str,
                                                   tmp_path: Path) -> None:
    config = project(tmp_path, 'cls', IN_TRUNK + change)
    result = run_tool(tmp_path, config)
    assert result.returncode == 1 and result.stderr.startswith('Error: ')
    assert said in result.stderr and result.stderr.count('\n') == 1
    assert not (tmp_path / 'work_dirs').exists()


def run_tool(folder: Path, *args: str) -> subprocess.CompletedProcess:
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'compare.py'), *args],
        cwd=folder,
        env=dict(env, CUDA_VISIBLE_DEVICES=''),
        text=True,
        capture_output=True,
        timeout=600)


def test_runs_are_processes_of_their_own(tmp_path: Path) -> None:
    """One that is killed is named, the others have their own memory."""
    config = project(tmp_path, 'cls', IN_TRUNK + """
import os, pathlib
if pathlib.Path('kill').exists():
    model['backbone']['probe_size'] = 'none'
""")
    result = run_tool(tmp_path, config, '--seeds', '0')
    assert result.returncode == 0, result.stderr
    assert 'frozen trunk' in result.stdout
    root = tmp_path / 'work_dirs' / 'compare' / 'mine_cls'
    assert (root / 'seed0' / 'recommended' / 'log.txt').read_text()
    (tmp_path / 'kill').write_text('')
    result = run_tool(tmp_path, config, '--seeds', '0')
    assert result.returncode == 1 and '5 of 5 runs broke' in result.stderr
    assert 'Traceback' not in result.stdout
