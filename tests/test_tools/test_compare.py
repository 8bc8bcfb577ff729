# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""``tools/compare.py`` on tiny data of each kind, from config to verdict."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, List

import _outside
import pytest
from _crowd import spoil
from mmengine.config import Config

from _tiny import KINDS, add_modules, build_backbone, vit
from vim_mm.report import compare
from vim_mm.report.evidence import usefulness
from vim_mm.report.steps import Gallery
from vim_mm.utils.cli import is_user_error
from vim_mm.utils.messages import LINES
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
    path = _outside.write_project(folder, kind, FUSED + more)
    if kind == 'det':
        show_both_classes(folder / 'data' / 'det.json')
    outs = dict(out_type='raw') if kind == 'cls' else {}
    trunk = vit(
        init_cfg=dict(type='Pretrained', checkpoint=str(folder / 'trunk.pth')),
        **outs)
    backbone = build_backbone(trunk)
    add_modules(backbone, 'a', 'b')
    for name in 'ab':
        save_module(backbone, name, str(folder / 'zoo'))
    return path.name


def show_both_classes(path: Path) -> None:
    """Images of one class each, all alike, have no halves to be scored."""
    coco = json.loads(path.read_text())
    for box in coco['annotations'][:]:
        other = dict(box, id=box['id'] + 100, bbox=[28, 28, 28, 28])
        coco['annotations'].append(
            dict(other, category_id=11 - box['category_id']))
    path.write_text(json.dumps(coco))


@pytest.fixture(autouse=True)
def enough_to_be_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_outside, 'NUM', 8)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys) -> Callable:
    """Runs the tool in this process: its code, and the runs it made."""

    def tool(folder: Path, *args: str, broken: str = '') -> tuple:
        made: List[str] = []

        def run_here(name: str, run: Callable, log: Path, *_) -> None:
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that train nothing; their metrics grow with method and seed."""

    def run(self: compare.Run) -> None:
        value = len(self.method) + self.seed
        found = dict(
            metrics={'mIoU': value, 'aAcc': value / 2},
            seconds=1.,
            peak_mb=2.,
            n_train=8,
            n_test=8,
            gates={},
            gallery=asdict(Gallery()),
            origin='here',
            digest=self.digest)
        (self.folder / 'result.json').write_text(json.dumps(found))

    monkeypatch.setattr(compare.Run, '__call__', run)


METRICS = dict(cls='accuracy', det='AP', seg='mIoU')


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_table_a_page_and_evidence(kind: str, tmp_path: Path,
                                     tool: Callable) -> None:
    # fused in the trunk, and in the neck
    config = project(tmp_path, kind, IN_NECK if kind == 'seg' else IN_TRUNK)
    args = [config, '--seeds', '0', *(['--full'] * (kind == 'cls'))]
    code, made, said = tool(tmp_path, *args)
    methods = ['frozen trunk', 'single: a', 'single: b', 'uniform',
               'recommended', *(['full fine-tuning'] * (kind == 'cls'))]
    assert code == 0 and made == [f'{name}, seed 0' for name in methods]
    root = tmp_path / 'work_dirs' / 'compare' / Path(config).stem
    rows = json.loads((root / 'report.json').read_text())
    assert [row['method'] for row in rows] == methods
    assert {row['metric'] for row in rows} == {METRICS[kind]}
    assert all(0 <= row['value'] <= 1 and row['n_test'] == 8 for row in rows)
    assert 'One seed' in said.out and 'over the frozen trunk' in said.out
    page = (root / 'report.html').read_text()
    assert 'data:image/jpeg' in page and 'class=gates' in page
    # the report says how useful each module is
    metric, truth = usefulness(root / 'report.json', Path(config).stem)
    assert metric == METRICS[kind] and set(truth) == {
        *'ab', 'frozen trunk', 'uniform weights', 'recommended fusion'
    }
    # heads start alike
    assert len(list(root.glob('seed0/start-*.pth'))) == 1
    # nothing is run twice
    code, made, said = tool(tmp_path, *args)
    assert code == 0 and made == [] and said.out.count('reused') == len(rows)


def test_what_a_change_concerns_is_run_again(tmp_path: Path, tool: Callable,
                                             quick: None) -> None:
    config = project(tmp_path, 'seg')
    assert len(tool(tmp_path, config)[1]) == 15
    hook = ['--cfg-options', 'custom_hooks.0.deals=2']
    assert tool(tmp_path, config, '--seeds', '1', *hook)[1] == [
        'recommended, seed 1'
    ]
    lr = ['--cfg-options', 'optim_wrapper.optimizer.lr=7.']
    assert len(tool(tmp_path, config, '--seeds', '1', '3', *lr)[1]) == 10


def test_seeds_best_modules_and_metrics(
        tmp_path: Path, tool: Callable, quick: None,
        monkeypatch: pytest.MonkeyPatch) -> None:
    config = project(tmp_path, 'seg')
    scores = {'frozen trunk': .9, 'b': .5, 'other': .4, 'a': .3}
    ranking = SimpleNamespace(
        scores={name: dict(ours=each) for name, each in scores.items()})
    monkeypatch.setattr(compare, 'rank_modules', lambda *_: ranking)
    args = [config, '--seeds', '0', '1', '0', '--work-dir', 'out']
    code, made, said = tool(tmp_path, *args, '--best', '1', '--metric', 'aAcc')
    assert code == 0 and made[0] == 'Ranking the modules'
    names = ['frozen trunk', 'single: b', 'uniform', 'recommended']
    assert made[1:] == [f'{n}, seed {s}' for s in (0, 1) for n in names]
    assert 'aAcc' in said.out and '6.250 ± 0.354' in said.out
    rows = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert [row['seed'] for row in rows] == [0] * 4 + [1] * 4
    code, made, said = tool(tmp_path, *args)
    assert len(made) == 2 and 'Use the frozen trunk' in said.out
    assert 'mIoU' in said.out and '0.125 ± 0.007' in said.out
    with pytest.raises(ValueError, match="the metric 'AP'; known are"):
        tool(tmp_path, *args, '--metric', 'AP')
    code, made, said = tool(tmp_path, config, '--seeds', '0', '-1')
    assert (code, made) == (2, []) and '0 or more' in said.err


def test_a_page_of_a_zoo_with_bad_folders(tmp_path: Path, tool: Callable,
                                          quick: None) -> None:
    """The good ones are ranked and run; a line says of each bad one why."""
    config = project(tmp_path, 'seg')
    number = spoil(tmp_path / 'zoo')
    args = [config, '--seeds', '0', '--work-dir', 'out', '--best', '1']
    code, made, said = tool(tmp_path, *args)
    assert code == 0 and len(made) == 5
    assert {'single: a, seed 0', 'single: b, seed 0'} & set(made)
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert 'single: ' in page and page.endswith('</html>\n')
    assert said.out.count('Not valid: ') == LINES
    assert f'… and {number - LINES} more' in said.out
    assert not set(said.out + said.err) & set('\x1b\x9b\x07')


def test_a_broken_run_is_named_and_the_others_go_on(tmp_path: Path,
                                                    tool: Callable,
                                                    quick: None) -> None:
    config = project(tmp_path, 'seg')
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
    code, made, said = tool(tmp_path, config, '--seeds', '8', broken='f')
    assert 'frozen trunk, seed 8' in code and 'single: a' in said.out


def test_all_runs_broken(tmp_path: Path, tool: Callable,
                         monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(self: compare.Run) -> None:
        raise RunError(f'{self.name} failed')

    monkeypatch.setattr(compare.Run, '__call__', fail)
    config = project(tmp_path, 'seg')
    code, made, said = tool(tmp_path, config, '--seeds', '0')
    assert len(made) == 5 and '5 of 5 runs broke' in code
    assert said.err.count('failed') == 5


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
    ("model['backbone']['zoo'] = 'absent'", 'absent'),
    ("model['backbone']['modules'] = ['c']", "'c'"),
    ("model['backbone'].update(fusion=None)", 'weighs no modules'),
    ("dataset['data_root'] = 'absent'", 'absent'),
])
def test_mistakes_end_in_a_sentence_before_any_run(change: str, said: str,
                                                   tmp_path: Path,
                                                   tool: Callable) -> None:
    config = project(tmp_path, 'seg', IN_TRUNK + change)
    with pytest.raises(Exception, match=said) as caught:
        tool(tmp_path, config)
    assert is_user_error(caught.value)
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.slow
def test_runs_are_processes_of_their_own(tmp_path: Path) -> None:
    config = project(tmp_path, 'cls', IN_TRUNK + "model['backbone'].update("
                     "modules=['b'])")
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    result = subprocess.run(
        [sys.executable, str(ROOT / 'tools/compare.py'), config,
         '--seeds', '0'],
        cwd=tmp_path,
        env=dict(env, CUDA_VISIBLE_DEVICES=''),
        text=True,
        capture_output=True,
        timeout=600)
    assert result.returncode == 0, result.stderr
    assert 'frozen trunk' in result.stdout
    assert 'WarmHeadHook' in result.stdout  # its progress
    logs = (tmp_path / 'work_dirs').rglob('log.txt')
    assert all('Traceback' not in log.read_text() for log in logs)


def test_commands_of_the_docs_are_understood() -> None:
    script = runpy.run_path(str(ROOT / 'tools' / 'compare.py'))
    commands = []
    for page in ('compare.md', 'fusion.md', '../README.md'):
        text = (ROOT / 'docs' / page).read_text().replace('\\\n', ' ')
        commands += re.findall(r'python tools/compare.py ([^`\n]+)', text)
    assert len(commands) > 4
    parsed = [script['parse_args'](shlex.split(each)) for each in commands]
    assert {args.best for args in parsed} == {None, 2}
    assert any(args.full and len(args.seeds) == 5 for args in parsed)
    assert any(args.metric == 'coco/bbox_mAP_50' for args in parsed)
    with pytest.raises(SystemExit):
        script['parse_args'](['CONFIG', '--best', '0'])
