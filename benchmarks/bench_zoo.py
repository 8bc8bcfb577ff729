# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: a zoo of many modules, and importing the package."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Iterator, List, Tuple

import vit_models
from harness import Benchmark, Goal, Result, Settings, Times, take_turns

from vim_mm.zoo import Zoo, save_module
from vim_mm.zoo.folder import CARD, MODULE

SMALL, LARGE, LOADED = 10, 1000, 8


def grow(root: Path, num: int) -> None:
    """Let a zoo of one module ``m0`` have many, each with a card of its own.

    They hold the same bytes, so one file serves all.
    """
    card = Zoo(root).card('m0')
    for index in range(1, num):
        folder = root / f'm{index}'
        folder.mkdir()
        os.link(root / 'm0' / MODULE, folder / MODULE)
        (folder / CARD).write_text(
            replace(card, name=folder.name).to_json(), encoding='utf-8')


@contextmanager
def zoos(settings: Settings) -> Iterator[Tuple[Any, Path, Zoo, Zoo]]:
    """A backbone, a module's folder, and a small and a large zoo of it."""
    made = vit_models.backbone(settings, new_module='m0')
    vit_models.fill(made.bank)
    # the modules are to be loaded into one that holds none
    backbone = vit_models.backbone(settings)
    backbone.trunk.load_state_dict(made.trunk.state_dict())
    with TemporaryDirectory() as folder:
        roots = [Path(folder) / name for name in ('small', 'large')]
        for root, num in zip(roots, (SMALL, 20 if settings.quick else LARGE)):
            save_module(made, 'm0', str(root))
            grow(root, num)
        source = Path(folder) / 'another'
        save_module(made, 'm0', str(source))
        yield backbone, source / 'm0', *map(Zoo, roots)


def of_zoo(settings: Settings) -> Iterator[Result]:
    """List all, add one, load eight."""
    with zoos(settings) as (backbone, source, small, large):
        listing = take_turns(dict(list=large.cards), settings.runs(5))
        seconds = listing.median('list')
        yield Result(seconds, seconds, runs=settings.runs(5))

        fresh = count()

        def add(zoo: Zoo) -> None:
            zoo.add(source, f'new{next(fresh)}')

        def load(zoo: Zoo) -> None:
            names = [f'm{index}' for index in range(LOADED)]
            backbone.load_modules(str(zoo.root), names)
            for name in names:
                backbone.bank.remove(name)

        for act, repeats in ((add, 30), (load, 10)):
            times = take_turns(
                dict(large=lambda: act(large), small=lambda: act(small)),
                settings.runs(repeats))
            yield times.against('large', 'small')


def import_seconds(package: str) -> float:
    """Seconds of an import in a fresh interpreter, without its own start."""
    code = ('import time; start = time.perf_counter(); '
            f'import {package}; print(time.perf_counter() - start)')
    done = subprocess.run([sys.executable, '-c', code],
                          capture_output=True,
                          text=True,
                          check=True)
    return float(done.stdout.split()[-1])


def of_import(settings: Settings) -> Iterator[Result]:
    """`import vim_mm` against `import mmengine`, in fresh interpreters."""
    seconds: Dict[str, List[float]] = dict(vim_mm=[], mmengine=[])
    for _ in range(settings.runs(15) + 1):
        for name, found in seconds.items():
            found.append(import_seconds(name))
    # the first ones read the disk
    times = Times({name: found[1:] for name, found in seconds.items()})
    yield times.against('vim_mm', 'mmengine')


ZOO = f'zoo of {LARGE:,} modules'
IMPORT = 'import vim_mm'
#: 'flat' leaves room for what files take at random
FLAT = 1.2
BENCHMARKS = [
    Benchmark(ZOO, [
        Goal(f'{ZOO}: list', 'one second', 1.),
        Goal(f'{ZOO}: add one', f'zoo of {SMALL}', FLAT),
        Goal(f'{ZOO}: load {LOADED}', f'zoo of {SMALL}', FLAT)
    ], of_zoo),
    Benchmark(IMPORT, [Goal(IMPORT, 'import mmengine', 1.3)], of_import),
]
