# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""All that writes files, but for zoos and runs: how, and what is there then.

Each writes a first version, and a second in its place or beside it. What is
read is verified; it is the version, or None where there is nothing.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple
from unittest import mock

import torch
from _moe_tiny import build_moe, moe_cfg, some_usage
from _upstream import CARD, auto_encoder, release, write_images
from mmdet.structures import DetDataSample
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

import _tdmr
from _export import build, classifier
from _tiny import add_modules, build_backbone, vit
from vim_mm.apis import export_model
from vim_mm.apis.generated_folder import GeneratedFolder
from vim_mm.apis.release import re_represent_folder
from vim_mm.datasets import View
from vim_mm.engine.hooks import StudentHook
from vim_mm.features.score_cache import ScoreCache
from vim_mm.features.store import FeatureStore
from vim_mm.interchange import export_adapter
from vim_mm.models.generators import (load_upstream_release,
                                      save_upstream_release)
from vim_mm.models.moe import extract, read_moe, save_moe
from vim_mm.report.page import Page, write_report
from vim_mm.utils.checkpoint import load_from_local, load_from_safetensors
from vim_mm.utils.checksum import (BLANK, NAME, is_intact, save_checkpoint,
                                   save_tensors)
from vim_mm.utils.manifest import MANIFEST, check_files, read_manifest
from vim_mm.zoo import Zoo, save_module

Version = Optional[int]
FIRST, SECOND = 1, 2


@dataclass
class Writer:
    """Something that writes.

    Attributes:
        write (Callable): Writes a version into a folder.
        read (Callable): The version that is there, verified.
        first (int, optional): The version that is there before.
        many (bool): Whether the second version appears part by part.
        repeats (bool): Whether it may be written again.
    """
    write: Callable[[Path, int], Any]
    read: Callable[[Path], Version]
    first: Version = FIRST
    many: bool = False
    repeats: bool = True


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
    zoo, _ = _zoo(root / 'zoo', 'm', 'n')

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


def _zoo(root: Path, *names: str) -> Tuple[Zoo, Any]:
    backbone = build_backbone(vit())
    add_modules(backbone, *names)
    for name in names:
        save_module(backbone, name, root, dict(w=torch.ones(2)))
    return Zoo(root), backbone


# ------------------------------------------------------------------ folders


def _release(root: Path) -> Writer:
    model = auto_encoder()
    return Writer(
        lambda folder, version: save_upstream_release(
            model, folder / 'x', num_images=3, **CARD),
        lambda folder: (folder / 'x').exists() and load_upstream_release(
            folder / 'x') and SECOND or None, None, repeats=False)


def _copies(root: Path) -> Writer:
    """Images that a release has changed."""
    source = write_images(root / 'images', 2, (9, 9))
    from_release = release(root / 'release')

    def read(folder: Path) -> Version:
        if not (folder / 'x').exists():
            return None
        check_files(folder / 'x' / MANIFEST)
        assert len(list((folder / 'x').glob('*.png'))) == 2
        return SECOND

    return Writer(
        lambda folder, version: re_represent_folder(from_release, source,
                                                    folder / 'x'), read, None,
        repeats=False)


def _peft(root: Path) -> Writer:
    backbone = build_backbone(vit())
    backbone.add(
        'm', dict(type='vim_mm.LoRA', rank=2), r'layers\.\d+\.attn\.qkv')
    save_module(backbone, 'm', root / 'lora')

    def read(folder: Path) -> Version:
        if not (folder / 'x').exists():
            return None
        json.loads((folder / 'x' / 'adapter_config.json').read_text())
        load_from_safetensors(str(folder / 'x' / 'adapter_model.safetensors'))
        return SECOND

    return Writer(
        lambda folder, version: export_adapter(root / 'lora', 'm',
                                               folder / 'x', 'timm'), read,
        None, repeats=False)


def _pulled(root: Path) -> Writer:
    """A module out of a tar, into a zoo that has another."""
    zoo, backbone = _zoo(root / 'zoo', 'm', 'n')
    zoo.push('n', root / 'x.tar')

    def write(folder: Path, version: int) -> None:
        if version == FIRST:
            save_module(backbone, 'm', folder / 'zoo')
        else:
            Zoo(folder / 'zoo').pull(str(root / 'x.tar'))

    def read(folder: Path) -> int:
        there = Zoo(folder / 'zoo')
        assert there.verify() == [] and 'm' in there
        return len(there.names())

    return Writer(write, read, repeats=False)


def _student(root: Path) -> Writer:
    """What a distillation leaves."""
    runner = _tdmr.runner(root / 'run')
    runner.train()
    weight = next(runner.model.student.parameters())

    def write(folder: Path, version: int) -> None:
        runner._work_dir = str(folder)
        with torch.no_grad():
            weight.fill_(version)
        StudentHook().after_train(runner)

    def read(folder: Path) -> int:
        json.loads((folder / 'student' / 'card.json').read_text())
        loaded = load_from_local(str(folder / 'student' / 'student.pth'))
        return int(next(iter(loaded['state_dict'].values())).flatten()[0])

    return Writer(write, read)


# -------------------------------------------------------- what grows in parts


def _store(root: Path) -> Writer:
    """Features of images, and then those of more."""
    source = dict(trunk='abc', dtype='float32')
    views = [View(f'{index}.png', 0, index) for index in range(8)]

    def write(folder: Path, version: int) -> None:
        store = FeatureStore(folder / 'x', source)
        missing = [view for view in views[:4 * version]
                   if view[:2] not in store]
        with store.writer() as writer:
            writer.add(missing, torch.tensor([[float(view.pixels)]
                                              for view in missing]))

    def read(folder: Path) -> int:
        store = FeatureStore(folder / 'x', source)
        known = views[:len(store)]
        assert store.read(known).flatten().tolist() == [
            view.pixels for view in known]
        assert len(store) in (4, 8)
        return len(store) // 4

    return Writer(write, read, many=True)


def _sample(kind: str) -> BaseDataElement:
    if kind == 'cls':
        return DataSample().set_gt_label(1)
    if kind == 'seg':
        labels = PixelData(data=torch.zeros(1, 4, 4, dtype=torch.long))
        return SegDataSample(gt_sem_seg=labels)
    boxes = InstanceData(bboxes=torch.tensor([[0., 0., 2., 2.]]),
                         labels=torch.tensor([0]))
    return DetDataSample(gt_instances=boxes)


def _generated(kind: str, root: Path) -> Writer:
    """Images in a folder, and then more of them."""
    import numpy as np
    keys, sample = ('000000_0', '000001_0', '000002_0'), _sample(kind)

    def opened(folder: Path) -> GeneratedFolder:
        return GeneratedFolder(folder / 'x', dict(a=1), ('a', 'b'))

    def write(folder: Path, version: int) -> None:
        there = opened(folder)
        for key in keys:
            if not there.has(key):
                pixels = np.full((4, 4, 3), int(key[5]), np.uint8)
                there.add([(key, pixels, sample, {})])
        there.finish()

    def read(folder: Path) -> Version:
        if not (folder / 'x' / MANIFEST).exists():
            return None
        there = opened(folder)
        assert all(map(there.has, there.records))
        if len(there.records) < len(keys) or not (
                folder / 'x' / 'dataset.py').exists():
            return None
        manifest = read_manifest(folder / 'x' / MANIFEST)
        if kind == 'det' and 'annotations' not in manifest:
            return None
        check_files(folder / 'x' / MANIFEST)
        return SECOND

    return Writer(write, read, None, many=True)


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
    pulled=_pulled,
    release=_release,
    copies=_copies,
    peft=_peft,
    student=_student,
    store=_store,
    **{f'generated_{kind}': lambda root, kind=kind: _generated(kind, root)
       for kind in ('cls', 'det', 'seg')})
