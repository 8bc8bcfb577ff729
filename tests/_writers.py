# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""All that writes files, but for zoos and runs: how, and what is there then.

Each writes a first version, and a second in its place or beside it. What is
read is verified; it is the version, or None where there is nothing.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Dict
from unittest import mock

import torch
from _export import build, classifier
from _folder_writers import (FIRST, SECOND, Writer, copies, generated, peft,
                             pulled, release, store, student, zoo_of)
from _moe_tiny import build_moe, moe_cfg, some_usage
from _tool_writers import own_task, predictions, split_task, vim_release

from vim_mm.apis import export_model
from vim_mm.features.score_cache import ScoreCache
from vim_mm.models.moe import extract, read_moe, save_moe
from vim_mm.report.page import Page, write_report
from vim_mm.utils.checkpoint import load_from_local, load_from_safetensors
from vim_mm.utils.checksum import (BLANK, NAME, is_intact, save_checkpoint,
                                   save_tensors)
from vim_mm.zoo import Zoo

# -------------------------------------------------------------------- files


def _checkpoint(root: Path) -> Writer:
    return Writer(
        lambda folder, version: save_checkpoint(
            dict(meta=dict(version=version), state_dict=dict(
                w=torch.full((9, ), float(version)))), folder / 'x.pth'),
        lambda folder: load_from_local(str(folder / 'x.pth'))['meta'][
            'version'])


def _trunk(root: Path) -> Writer:
    """What a trunk is converted to."""
    return Writer(
        lambda folder, version: save_tensors(
            dict(w=torch.full((9, ), float(version))), {NAME: BLANK},
            folder / 'x.safetensors'),
        lambda folder: int(load_from_safetensors(
            str(folder / 'x.safetensors'))['state_dict']['w'][0]))


def _experts(root: Path) -> Writer:
    """A mixture of experts, and what is left of it for one task."""
    trunk = build_moe()
    usage = some_usage(trunk)
    pruned = build_moe()
    left = extract(pruned, ['cls'], usage, 20.)
    versions = {FIRST: (trunk, usage), SECOND: (pruned, left)}

    def write(folder: Path, version: int) -> None:
        backbone, counts = versions[version]
        save_moe(backbone, moe_cfg(), folder / 'x.safetensors', counts,
                 dict(dataset=str(version)))

    def read(folder: Path) -> int:
        file = read_moe(folder / 'x.safetensors')
        version = int(file.card['dataset'])
        own = versions[version][0].state_dict()
        assert file.tensors().keys() == own.keys()
        return version

    return Writer(write, read)


def _onnx(root: Path) -> Writer:
    model, cfg = build('cls', classifier(), size=64)
    contents = {}
    for version in (FIRST, SECOND):
        with torch.no_grad():
            next(model.parameters()).fill_(version)
        export_model(model, cfg, root / 'x.onnx')
        data = (root / 'x.onnx').read_bytes()
        contents[version] = data

    def write(folder: Path, version: int) -> None:
        with ExitStack() as stack:  # tracing takes seconds
            for name, value in dict(
                    trace=None, with_metadata=(contents[version], 17),
                    compare={}).items():
                stack.enter_context(
                    mock.patch(f'vim_mm.apis.export.{name}',
                               lambda *_, value=value: value))
            stack.enter_context(
                mock.patch('vim_mm.apis.export.signed_onnx', bytes))
            export_model(model, cfg, folder / 'x.onnx')

    def read(folder: Path) -> int:
        assert is_intact(folder / 'x.onnx')
        data = (folder / 'x.onnx').read_bytes()
        return next(v for v in contents if contents[v] == data)

    return Writer(write, read)


def _evidence(root: Path) -> Writer:
    """A file of finished runs, a line for each."""
    from evidence_rows import add
    from evidence_rows import read as read_rows

    def write(folder: Path, version: int) -> None:
        add(folder / 'runs.jsonl', dict(seed=version, run='a', value=.5))

    return Writer(write,
                  lambda folder: max(read_rows(folder / 'runs.jsonl')))


def _scores(root: Path) -> Writer:
    def read(folder: Path) -> int:
        return int(ScoreCache(folder, 'x').get('key')[0])

    return Writer(
        lambda folder, version: ScoreCache(folder, 'x').put(
            'key', [float(version)]), read)


def _report(root: Path) -> Writer:
    """A page, and the same as JSON."""

    def read(folder: Path) -> int:
        assert json.loads((folder / 'report.json').read_text()) == []
        text = (folder / 'report.html').read_text()
        assert text.endswith('</html>\n')
        return int(text.split('<title>')[1][0])

    return Writer(
        lambda folder, version: write_report(folder, Page(str(version), ''),
                                             []), read, many=True)


def _parcel(root: Path) -> Writer:
    """A module in a tar."""
    zoo, _ = zoo_of(root / 'zoo', 'm', 'n')

    def read(folder: Path) -> int:
        other = Zoo(folder / 'elsewhere')
        try:
            name, _ = other.pull(str(folder / 'x.tar'))
            assert other.verify() == []
            return 'mn'.index(name) + 1
        finally:
            for name in other.names():
                other.remove(name)

    return Writer(
        lambda folder, version: zoo.push('mn'[version - 1], folder / 'x.tar'),
        read)


#: By name, what makes one; it is given an empty folder for what it needs.
WRITERS: Dict[str, Callable[[Path], Writer]] = dict(
    checkpoint=_checkpoint,
    trunk=_trunk,
    experts=_experts,
    onnx=_onnx,
    evidence=_evidence,
    scores=_scores,
    report=_report,
    parcel=_parcel,
    pulled=pulled,
    release=release,
    copies=copies,
    peft=peft,
    student=student,
    store=store,
    new_task=own_task,
    split_task=split_task,
    predictions=predictions,
    vim_release=vim_release,
    **{f'generated_{kind}': lambda root, kind=kind: generated(kind, root)
       for kind in ('cls', 'det', 'seg')})
