# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: hostile folders in a zoo, kills while it changes, many users."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from _failing import ERRORS, failing
from _hostile import (IN_PLACE, JSON_FILES, TENSOR_FILES, exchange, odd_json,
                      put)
from reliability_cases import (Campaign, Tally, damaged, die_at, forked,
                               joined, some)
from torch import Tensor

from vim_mm.zoo import ModuleCard, Zoo, ZooError
from vim_mm.zoo.folder import CARD, HEAD, MODULE

SLOTS, DIMS = ['layers.0.attn', 'layers.0.ffn'], 6
FILES = (CARD, MODULE, HEAD)


def card(name: str, **fields: Any) -> ModuleCard:
    return ModuleCard(
        name=name,
        kind='ConvPass',
        adapter=dict(type='ConvPass', hidden_dims=2),
        slots=SLOTS,
        dims=dict.fromkeys(SLOTS, DIMS),
        trunk=dict(type='Net', fingerprint='f' * 64),
        metrics=[dict(name='AP', value=.5, n=7)],
        **fields)


def tensors(seed: int = 0) -> Dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f'{slot}.{param}': torch.randn(shape, generator=generator)
        for slot in SLOTS for param, shape in {
            'down.weight': (2, DIMS),
            'up.weight': (DIMS, 2)
        }.items()
    }


def save(zoo: Zoo, name: str, seed: int = 0, overwrite: bool = False) -> None:
    """Write a version, which its card tells."""
    zoo.save(
        card(name, version=str(seed)), tensors(seed),
        dict(w=torch.full((3, ), float(seed))), overwrite)


def version(zoo: Zoo, name: str) -> int:
    """The version that is read, if it is whole."""
    found, read = zoo.load(name)
    seed = int(found.version)
    expected = tensors(seed)
    assert all(torch.equal(read[key], expected[key]) for key in expected)
    head = zoo.load_head(name)
    assert list(head) == ['w'] and head['w'].numel() == 3
    return seed


# ------------------------------------------------------------ hostile folders


def spoilers(good: Path,
             rng: random.Random) -> Iterator[Tuple[str, Callable]]:
    """What may be done to the folder of a module, by name."""
    for file in FILES:
        for what in IN_PLACE:
            yield f'{file} is {what}', _put(file, what)
    for what, content in JSON_FILES.items():
        yield f'card {what}', _write(CARD, content)
    notes = json.loads((good / CARD).read_text())
    for what, content in odd_json(notes):
        yield f'card {what}', _write(CARD, json.dumps(content).encode())
    for file, key in ((MODULE, 'sha256'), (HEAD, 'head_sha256')):
        data = (good / file).read_bytes()
        for what, change in TENSOR_FILES.items():
            yield f'{file} {what}', _vouch(file, change(data), key)
        for index in range(60):
            yield f'{file} damaged {index}', _vouch(file, damaged(data, rng),
                                                    key)
    for file in FILES:
        data = (good / file).read_bytes()
        for index in range(60):
            yield f'{file} as damaged {index}', _write(file,
                                                       damaged(data, rng))


def _put(file: str, what: str) -> Callable:
    return lambda folder: put(folder / file, what)


def _write(file: str, data: bytes) -> Callable:
    return lambda folder: (folder / file).write_bytes(data)


def _vouch(file: str, data: bytes, key: str) -> Callable:
    return lambda folder: exchange(folder, file, data, key)


def hostile_folders(tally: Tally, root: Path, share: float, seed: int) -> None:
    """Spoil one of two modules, and look at both in all ways."""
    rng = random.Random(seed)
    zoo, source = Zoo(root / 'zoo'), Zoo(root / 'source')
    for name in ('bad', 'good'):
        save(source, name)
    cases = list(spoilers(source.root / 'bad', rng))
    for what, spoil in some(cases, share, rng):
        for path in (zoo.root, root / 'other'):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source.root, zoo.root)
        spoil(zoo.root / 'bad')
        size = (zoo.root / 'bad' / MODULE).stat().st_size if os.path.isfile(
            zoo.root / 'bad' / MODULE) else 0
        with tally.case(what, size):
            try:
                version(zoo, 'bad')
            except AssertionError:
                pass  # other numbers, for which its card vouches
        with tally.case(f'{what}, beside it'):
            look_at_good(zoo, Zoo(root / 'other'))


def look_at_good(zoo: Zoo, other: Zoo) -> None:
    """A good module beside a bad one."""
    bad: Dict[str, str] = {}
    assert zoo.names() == ['bad', 'good']
    assert zoo.cards(bad)[-1].name == 'good'
    assert not any("'good'" in problem for problem in zoo.verify())
    assert version(zoo, 'good') == 0
    bad = {}
    assert 'good' in other.add(zoo.root, problems=bad)
    for problem in bad.values():
        assert '\n' not in problem and problem.isprintable()


# -------------------------------------------------------------------- kills


def changes(zoo: Zoo, source: Zoo) -> Dict[str, Tuple[Callable, tuple]]:
    """What is killed, and which versions may be there then."""
    return dict(
        overwrite=(lambda: save(zoo, 'm', 2, True), (1, 2)),
        add=(lambda: zoo.add(source.root / 'n'), (1, )),
        add_all=(lambda: zoo.add(source.root), (1, )),
        remove=(lambda: zoo.remove('m'), (1, None)))


def kills(tally: Tally, root: Path, share: float, seed: int) -> None:
    """Die before every file operation of every change of a zoo."""
    source, every = Zoo(root / 'source'), max(1, round(1 / share))
    for name in ('n', 'o'):
        save(source, name, 5)
    for what in changes(source, source):
        for step in range(seed % every, 1000, every):
            zoo = Zoo(root / f'{what}{step}')
            save(zoo, 'm', 1)
            change, allowed = changes(zoo, source)[what]
            died = die_at(step, change)
            after_a_kill(tally, zoo, f'{what} at {step}', allowed)
            shutil.rmtree(zoo.root)
            if not died:
                break


def after_a_kill(tally: Tally, zoo: Zoo, what: str, allowed: tuple) -> None:
    """The old or the new version is there, and the next change tidies up."""
    found = version(zoo, 'm') if 'm' in zoo else None
    tally.keep(f'{what}: version {found}', found in allowed)
    tally.check(f'{what}: {zoo.verify()}', zoo.verify() == [])
    save(zoo, 'x', 3, True)
    hidden = [name for name in os.listdir(zoo.root) if name[0] == '.']
    tally.check(f'{what}: left {hidden}', hidden == ['.lock'])


def sudden_kills(tally: Tally, root: Path, share: float, seed: int) -> None:
    """SIGKILL at a random moment of a row of overwrites."""
    rng, zoo = random.Random(seed), Zoo(root / 'zoo')
    save(zoo, 'm', 0)

    def overwrite() -> None:
        for count in range(10**6):
            save(zoo, 'm', count, True)

    for index in range(max(3, round(150 * share))):
        child = forked(overwrite)
        time.sleep(rng.uniform(.005, .08))
        os.kill(child, signal.SIGKILL)
        tally.check(f'kill {index}', joined(child) == -signal.SIGKILL)
        after_a_kill(tally, zoo, f'kill {index}', range(10**6))


def failures(tally: Tally, root: Path, share: float, seed: int) -> None:
    """Let each file operation of each change fail; see what is left."""
    rng, source = random.Random(seed), Zoo(root / 'source')
    save(source, 'x', 1)
    changes: Dict[str, Callable[[Zoo], Any]] = dict(
        save=lambda zoo: save(zoo, 'x', 1),
        overwrite=lambda zoo: save(zoo, 'm', 1, True),
        remove=lambda zoo: zoo.remove('m'),
        add=lambda zoo: zoo.add(source.root / 'x'))
    for name, change in changes.items():
        for step in range(0, 1000, max(1, round(1 / share))):
            error = rng.choice(ERRORS)
            zoo = Zoo(root / f'{name} {step}')
            save(zoo, 'm', 0)
            what = f'{name} fails with {error} at {step}'
            with tally.case(what), failing(step, error) as end:
                change(zoo)
            if end.failed is None:
                break
            tally.keep(f'{what}: {zoo.verify()}', zoo.verify() == [] and (
                'm' in zoo or name == 'remove'))
            save(zoo, 'm', 2, True)
            tally.keep(what, version(zoo, 'm') == 2)
            shutil.rmtree(zoo.root)


# --------------------------------------------------------------- many users


def many_users(tally: Tally, root: Path, share: float, seed: int) -> None:
    """Two processes change a zoo, and four read it."""
    zoo, stop = Zoo(root / 'zoo'), root / 'stop'
    for name in ('replaced', 'goes', 'stays'):
        save(zoo, name, 0)
    writers = [forked(lambda: write(zoo, name, stop))
               for name in ('replaced', 'goes')]
    readers = [forked(lambda: read(zoo, stop, root / str(index)))
               for index in range(4)]
    time.sleep(max(1., 60 * share))
    stop.touch()
    for index, child in enumerate([*writers, *readers]):
        tally.check(f'process {index} ended', joined(child) == 0)
    for path in map(root.joinpath, '0123'):
        count, wrong = json.loads(path.read_text())
        tally.tried += count
        tally.failed += wrong


def write(zoo: Zoo, name: str, stop: Path) -> None:
    """Replace a module again and again, or remove it and bring it back."""
    count = 0
    while not stop.exists():
        count += 1
        if name == 'goes':
            zoo.remove(name)
        save(zoo, name, count % 3, name == 'replaced')


def read(zoo: Zoo, stop: Path, out: Path) -> None:
    """Look at all modules; nothing may be wrong with any."""
    count, wrong = 0, []
    looks: List[Tuple[str, Callable[[], bool]]] = [
        ('names', lambda: {'replaced', 'stays'} <= set(zoo.names())),
        ('verify', lambda: zoo.verify() == []),
        ('cards', lambda: len(zoo.cards()) in (2, 3)),
        ('replaced', lambda: version(zoo, 'replaced') in range(3)),
        ('stays', lambda: version(zoo, 'stays') == 0),
        ('goes', lambda: _goes(zoo)),
    ]
    while not stop.exists():
        for what, look in looks:
            count += 1
            try:
                if not look():
                    wrong.append(f'{what}: false')
            except Exception as error:
                wrong.append(f'{what}: {error!r}')
    out.write_text(json.dumps([count, wrong]))


def _goes(zoo: Zoo) -> bool:
    """A module that comes and goes is there, whole, or is not."""
    try:
        return version(zoo, 'goes') in range(3)
    except ZooError as error:
        return "has no module 'goes'" in str(error)


CAMPAIGNS = [
    Campaign('hostile folders in a zoo', hostile_folders),
    Campaign('a zoo is killed at every file operation', kills),
    Campaign('a zoo is killed at any moment', sudden_kills),
    Campaign('a file operation of a zoo fails', failures),
    Campaign('six processes on one zoo', many_users)
]
