# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Moe files from the command line."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest
import torch
from _moe_tiny import TASKS, images, moe_cfg, ordinary_cfg, task_cfg, write_moe
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from _multitask import loader
from _tiny import fill
from vim_mm.apis.experts import moe_card
from vim_mm.models.moe import load_moe, moe_layers, read_moe
from vim_mm.models.tasks import select_task
from vim_mm.utils.cli import add_experts_per_token, run_cli

SCRIPT = Path(__file__).parents[2] / 'tools' / 'moe.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('moe_cli', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main(*argv: object) -> int:
        with pytest.raises(SystemExit) as caught:
            run_cli(lambda: module.main(list(map(str, argv))))
        return caught.value.code or 0

    return main


class Run:
    """A finished run of two tasks: a config and a checkpoint."""

    def __init__(self, folder: Path, **kwargs) -> None:
        model = dict(
            type='vim_mm.MultiTaskModel',
            backbone=moe_cfg(tasks=None),
            tasks={task: task_cfg(task)
                   for task in TASKS})
        cfg = ConfigDict(
            model=dict(model, **kwargs),
            default_scope='vim_mm',
            train_dataloader={task: loader(task)
                              for task in TASKS})
        self.model = MODELS.build(cfg.model)
        fill(self.model, .2)
        if self.model.routing is not None:
            for name, value in self.model.routing.named_buffers():
                value.copy_(torch.rand(value.shape)**4 + .01)
        self.config, self.checkpoint = folder / 'run.py', folder / 'run.pth'
        Config(cfg).dump(self.config)
        torch.save(dict(state_dict=self.model.state_dict()), self.checkpoint)
        self.out = folder / 'out.safetensors'

    def args(self, *argv: object) -> List[object]:
        return [
            'extract', self.config, self.checkpoint, '--out', self.out, *argv
        ]


@pytest.fixture()
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_extract_all(tool, run: Run, capsys) -> None:
    assert tool(*run.args()) == 0
    out = capsys.readouterr().out
    assert 'cls: 8 of 8 experts' in out and 'known for: no task' in out
    again = load_moe(str(run.out))
    run.model.eval(), again.eval()
    for task in TASKS:
        select_task(run.model, task)
        select_task(again, task)
        assert torch.equal(again(images())[0], run.model.backbone(images())[0])


def test_extract_one_task_by_measured_usage(tool, run: Run) -> None:
    assert tool(
        *run.args('--tasks', 'seg', '--threshold', 20, '--batches', 2)) == 0
    file = read_moe(run.out)
    assert file.tasks == ['seg']
    assert min(x.structure.num_experts for x in file.layers.values()) < 8
    for name, layer in file.layers.items():
        assert len(file.usage[name]['seg']) == layer.structure.num_experts
    load_moe(str(run.out))
    # the same command leaves the same file
    data = run.out.read_bytes()
    assert tool(
        *run.args('--tasks', 'seg', '--threshold', 20, '--batches', 2)) == 0
    assert run.out.read_bytes() == data


def test_extract_by_what_training_has_counted(tool, tmp_path: Path) -> None:
    run = Run(tmp_path, routing=dict(type='vim_mm.MutualInformation'))
    usage = run.model.routing.usage()
    assert tool(*run.args('--tasks', 'cls', '--threshold', 10)) == 0
    for name, layer in read_moe(run.out).layers.items():
        counts = usage[name]['cls']
        percent = 100 * counts / counts.sum()
        kept = set((percent > 5).nonzero().flatten().tolist())
        kept |= set(counts.topk(2).indices.tolist())
        assert layer.structure.num_experts == len(kept) < 8


def test_extract_with_fewer_active_experts(tool, run: Run) -> None:
    assert tool(*run.args('--k', 1, '--threshold', 3, '--batches', 1)) == 0
    file = read_moe(run.out)
    assert file.tasks == TASKS
    assert {layer.k for layer in file.layers.values()} == {1}


def test_a_moe_file_says_what_it_was_made_of(tool, run: Run, tmp_path: Path,
                                             capsys) -> None:
    text = run.config.read_text()
    run.config.write_text(
        text + "\nmodule_card = dict(licence='CC BY-NC-SA 4.0', dataset='d')")
    assert tool(*run.args()) == 0
    out = capsys.readouterr().out
    assert 'Licence: CC BY-NC-SA 4.0.' in out and 'Dataset: d.' in out
    card = read_moe(run.out).card
    assert set(card['classes']) == set(card['image_size']) == set(TASKS)
    more = tmp_path / 'more.safetensors'
    assert tool('add-task', run.out, '--task', 'new', '--out', more) == 0
    assert read_moe(more).card == card
    # what is learned from it inherits the licence
    cfg = Config(dict(model=dict(backbone=dict(
        type='vim_mm.load_moe', checkpoint=str(run.out)))))
    assert moe_card(cfg, ['new'], {})['licence'] == 'CC BY-NC-SA 4.0'


def test_extract_with_fewer_active_experts_by_layer(tool, run: Run) -> None:
    names = list(moe_layers(run.model.backbone))
    patterns = ['--k', f'{names[0]}=1', '--k', '.*=2']
    assert tool(*run.args(*patterns, '--batches', 1)) == 0
    ks = {name: layer.k for name, layer in read_moe(run.out).layers.items()}
    assert ks == dict(dict.fromkeys(names, 2), **{names[0]: 1})


@pytest.mark.parametrize('given', [['x'], ['a='], ['1', '2'], ['1', 'a=2'],
                                   ['a=2', '1'], ['']])
def test_k_that_is_none(given: List[str], capsys) -> None:
    parser = argparse.ArgumentParser()
    add_experts_per_token(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([word for k in given for word in ('--k', k)])
    assert 'argument --k' in capsys.readouterr().err


def test_extract_from_an_adapted_model(tool, tmp_path: Path) -> None:
    path = tmp_path / 'trunk.safetensors'
    write_moe(path)
    model = ordinary_cfg(
        'cls',
        checkpoint=str(path),
        task='new',
        train='experts',
        experts=dict(num=2))
    cfg = ConfigDict(
        model=model,
        default_scope='mmpretrain',
        train_dataloader=loader('cls'))
    Config(cfg).dump(tmp_path / 'run.py')
    built = MODELS.build(cfg.model)
    torch.save(built.state_dict(), tmp_path / 'run.pth')
    out = tmp_path / 'out.safetensors'
    args = ['extract', tmp_path / 'run.py', tmp_path / 'run.pth', '--out', out]
    assert tool(*args, '--threshold', 3, '--batches', 1) == 0
    file = read_moe(out)
    assert file.tasks == ['new'] and file.backbone == read_moe(path).backbone
    assert tool(*args, '--tasks', 'seg', '--threshold', 3) == 1


def test_status(tool, tmp_path: Path, capsys) -> None:
    path = tmp_path / 'trunk.safetensors'
    trunk = write_moe(path)
    assert tool('status', path) == 0
    out = capsys.readouterr().out
    assert 'known for: cls, seg.' in out and 'vim_mm.to_moe' in out
    assert tool('status', path, '--json') == 0
    found = json.loads(capsys.readouterr().out)
    assert found['tasks'] == TASKS and len(found['layers']) == 2
    assert found['num_params'] == sum(p.numel() for p in trunk.parameters())


@pytest.mark.slow
def test_stdout_holds_the_answer_alone(tmp_path: Path) -> None:
    """Whatever libraries print in a process of the tool's own."""
    path = tmp_path / 'trunk.safetensors'
    write_moe(path)
    done = subprocess.run([sys.executable, SCRIPT, 'status', path, '--json'],
                          stdout=subprocess.PIPE,
                          check=True)
    assert json.loads(done.stdout)['tasks'] == TASKS


def test_add_task(tool, tmp_path: Path) -> None:
    path, out = tmp_path / 'trunk.safetensors', tmp_path / 'more.safetensors'
    trunk = write_moe(path)
    assert tool('add-task', path, '--task', 'new', '--like', 'seg',
                '--num-experts', 3, '--out', out) == 0
    again = load_moe(str(out))
    assert [len(x.experts) for x in moe_layers(again).values()] == [11, 11]
    again.eval()
    assert torch.equal(again(images())[0], trunk(images())[0])


@pytest.mark.parametrize('argv, words', [
    (['--tasks', 'det'], "There is no task 'det'"),
    (['--k', 9], '`k` is 9'),
    (['--k', 0], '`k` is 0'),
    (['--batches', 0], '`batches` is 0'),
    (['--threshold', -1], '`threshold` is -1'),
    (['--out', 'trunk.pth'], 'name ends in .safetensors; trunk.pth does not'),
    (['--threshold', 3, '--cfg-options', 'train_dataloader.cls=None'
      ], "no `train_dataloader` of task 'cls'"),
    (['--cfg-options', 'model.backbone.num_experts=4'], 'this model is'),
])
def test_mistakes(tool, run: Run, argv: list, words: str, capsys) -> None:
    assert tool(*run.args(*argv)) == 1
    err = capsys.readouterr().err
    assert words in err and err.startswith('Error: ') and '\n' not in err[:-1]
    assert not run.out.exists()


def test_other_files(tool, run: Run, tmp_path: Path, capsys) -> None:
    assert tool('status', run.checkpoint) == 1
    assert 'no safetensors file' in capsys.readouterr().err
    assert tool('status', tmp_path / 'nothing.safetensors') == 1
    assert 'no moe file' in capsys.readouterr().err
    torch.save(dict(a=torch.ones(1)), run.checkpoint)
    assert tool(*run.args()) == 1
    assert 'lacks' in capsys.readouterr().err
