# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: foreign files, damaged checkpoints, and pickles that would act."""

import json
import os
import pickle
import random
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import numpy as np
import torch
from _hostile import (IN_PLACE, JSON_FILES, ODD_VALUES, TENSOR_FILES, odd_json,
                      put)
from _readers import NOTES, TENSORS
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from reliability_cases import Campaign, Tally, damaged, some

from _tiny import build_runner, fusion_neck, model_cfg, vit
from vim_mm.apis.serving import load_model
from vim_mm.interchange.trunks import FAMILIES, convert_trunk
from vim_mm.models.backbones.weights import load_trunk_weights
from vim_mm.registry import MODELS
from vim_mm.report.routing import read_usage
from vim_mm.utils.checkpoint_form import SPARE

# ------------------------------------------------------------ foreign files


def foreign_files(tally: Tally, root: Path, share: float, seed: int) -> None:
    """All readers of tensors and of notes, on what is none of theirs."""
    rng = random.Random(seed)
    for number, (name, make) in enumerate({**TENSORS, **NOTES}.items()):
        folder = root / str(number)
        folder.mkdir()
        reader = make(folder)
        cases = list(_contents(name, reader.good, rng))
        for what, content in some(cases, share, rng):
            reader.write(content)
            with tally.case(f'{name}: {what}', len(content)):
                reader.read()
        reader.write(reader.good)
        reader.read()


def _contents(name: str, good: bytes,
              rng: random.Random) -> Iterator[Tuple[str, bytes]]:
    if name in TENSORS:
        for what, change in TENSOR_FILES.items():
            yield what, change(good)
    else:
        yield from JSON_FILES.items()
        for what, content in odd_json(json.loads(good)):
            yield what, json.dumps(content).encode()
    for index in range(25):
        yield f'damaged {index}', damaged(good, rng)


# ------------------------------------------------------ damaged checkpoints


def trained(root: Path) -> Tuple[Config, bytes]:
    """A config, and what its run has left after a step."""
    model = model_cfg('cls', dict(trunk=vit(), new_module='m'),
                      fusion_neck('cls'))
    runner = build_runner('cls', model, root / 'run', iters=1)
    runner.train()
    data = (root / 'run' / 'iter_1.pth').read_bytes()
    model.backbone.save_trunk = True
    return Config(dict(model=model, default_scope='mmpretrain')), data


def damaged_checkpoints(tally: Tally, root: Path, share: float,
                        seed: int) -> None:
    """All that reads a checkpoint, on one that something has happened to."""
    rng = random.Random(seed)
    cfg, data = trained(root)
    path = root / 'damaged.pth'
    trunk = MODELS.build(vit())
    readers: Dict[str, Callable[[], Any]] = dict(
        loader=lambda: CheckpointLoader.load_checkpoint(
            str(path), 'cpu', 'silent'),
        model=lambda: load_model(cfg, str(path)),
        usage=lambda: read_usage(path),
        trunk=lambda: load_trunk_weights(trunk, str(path)),
        resumed=lambda: _resume(cfg, path, root / 'resumed'),
        **_conversions(path, root / 'trunk.safetensors'))
    writes = dict(_forms(root, path, data))
    writes.update((f'damaged {index}', _writes(path, damaged(data, rng)))
                  for index in range(200))
    writes.update((f'is {what}', _puts(path, what)) for what in IN_PLACE)
    for what, write in some(list(writes.items()), share, rng):
        write()
        for name, read in readers.items():
            # resuming takes a while, and reads as the others do
            if name == 'resumed' and rng.random() > .2:
                continue
            with tally.case(f'{name}: {what}', len(data)):
                read()
        path.unlink() if path.is_symlink() else put(path, 'nothing')


def _writes(path: Path, data: bytes) -> Callable:
    return lambda: path.write_bytes(data)


def _puts(path: Path, what: str) -> Callable:
    return lambda: put(path, what)


def _forms(root: Path, path: Path,
           data: bytes) -> Iterator[Tuple[str, Callable]]:
    """Whole files with other contents, part by part."""
    (root / 'good.pth').write_bytes(data)
    content = torch.load(root / 'good.pth', weights_only=False)
    for key in [*content, 'none']:
        for name, value in ODD_VALUES.items():
            yield f'{key}={name}', _saves(path, dict(content, **{key: value}))
    first = next(iter(content['state_dict']))
    for name, value in dict(
            ODD_VALUES,
            sparse=torch.ones(2, 2).to_sparse(),
            meta=torch.ones(2, device='meta'),
            expanded=torch.ones(1).expand(1 << 25),
            array=np.ones(2),
            nested=[torch.ones(1)]).items():
        state = dict(content['state_dict'], **{first: value})
        yield f'{first}={name}', _saves(path, dict(content, state_dict=state))
    for name in (3, None, 'a' * 600, '', '..', ('a', 'b')):
        state = {name: torch.ones(1), **content['state_dict']}
        yield f'name {name!r:.9}', _saves(path,
                                          dict(content, state_dict=state))
    for name, value in ODD_VALUES.items():
        yield f'whole={name}', _saves(path, value)
    yield 'compressed', lambda: _compress(path, data)


def _saves(path: Path, content: Any) -> Callable:
    return lambda: torch.save(content, path)


def _compress(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(SPARE + (1 << 20)))


def _resume(cfg: Config, path: Path, folder: Path) -> None:
    runner = build_runner(
        'cls', cfg.model, folder, iters=2, load_from=str(path), resume=True)
    runner.load_or_resume()


def _conversions(path: Path, out: Path) -> Dict[str, Callable[[], Any]]:
    return {
        f'converted as {family}': partial(convert_trunk, family, path, out)
        for family in FAMILIES
    }


# ----------------------------------------------------------------- payloads


class Payload:
    """Unpickling it makes a folder, were it done."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.target, )


def payloads(tally: Tally, root: Path, share: float, seed: int) -> None:
    """Pickles under all names, to all readers: nothing may be done."""
    target, rng = root / 'made', random.Random(seed)
    contents = dict(some(list(_payloads(root, target)), share, rng))
    for number, (name, make) in enumerate({**TENSORS, **NOTES}.items()):
        folder = root / str(number)
        folder.mkdir()
        reader = make(folder)
        for what, content in contents.items():
            reader.write(content)
            with tally.case(f'{name}: {what}', len(content)):
                reader.read()
            tally.keep(f'{name}: {what} was run', not target.exists())
    cfg, _ = trained(root)
    for what, content in contents.items():
        for suffix in ('pth', 'pt', 'bin', 'safetensors'):
            path = root / f'payload.{suffix}'
            path.write_bytes(content)
            for name, read in dict(
                    loader=lambda: CheckpointLoader.load_checkpoint(
                        str(path), 'cpu', 'silent'),
                    model=lambda: load_model(cfg, str(path)),
                    **_conversions(path, root / 'o.safetensors')).items():
                with tally.case(f'{name}.{suffix}: {what}', len(content)):
                    read()
                tally.keep(f'{name}.{suffix}: {what} was run',
                           not target.exists())


def _payloads(root: Path, target: Path) -> Iterator[Tuple[str, bytes]]:
    payload = Payload(target)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield f'protocol {protocol}', pickle.dumps(payload, protocol)
        yield f'inside, protocol {protocol}', pickle.dumps(
            dict(state_dict=dict(a=payload)), protocol)
    for legacy in (False, True):
        for key in ('state_dict', 'meta', 'message_hub', 'optimizer', 'a'):
            torch.save({key: payload, 'w': torch.ones(1)},
                       root / 'x.pth',
                       _use_new_zipfile_serialization=not legacy)
            yield f'{key}, {"old" if legacy else "new"}', (
                root / 'x.pth').read_bytes()


CAMPAIGNS = [
    Campaign('foreign files to every reader', foreign_files),
    Campaign('damaged checkpoints', damaged_checkpoints),
    Campaign('payloads in pickles', payloads)
]
