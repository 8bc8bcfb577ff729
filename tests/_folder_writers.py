# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What writes folders, all at once or part by part."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Tuple

import _tdmr
import torch
from _upstream import CARD, auto_encoder
from _upstream import release as published
from _upstream import write_images
from mmdet.structures import DetDataSample
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from _tiny import add_modules, build_backbone, vit
from vim_mm.apis.generated_folder import GeneratedFolder
from vim_mm.apis.release import re_represent_folder
from vim_mm.datasets import View
from vim_mm.engine.hooks import StudentHook
from vim_mm.features.store import FeatureStore
from vim_mm.interchange import export_adapter
from vim_mm.models.generators import (load_upstream_release,
                                      save_upstream_release)
from vim_mm.utils.checkpoint import load_from_local, load_from_safetensors
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


def zoo_of(root: Path, *names: str) -> Tuple[Zoo, Any]:
    backbone = build_backbone(vit())
    add_modules(backbone, *names)
    for name in names:
        save_module(backbone, name, root, dict(w=torch.ones(2)))
    return Zoo(root), backbone


# ------------------------------------------------------------------ folders


def release(root: Path) -> Writer:
    model = auto_encoder()
    return Writer(
        lambda folder, version: save_upstream_release(
            model, folder / 'x', num_images=3, **CARD),
        lambda folder: (folder / 'x').exists() and load_upstream_release(
            folder / 'x') and SECOND or None, None, repeats=False)


def copies(root: Path) -> Writer:
    """Images that a release has changed."""
    source = write_images(root / 'images', 2, (9, 9))
    from_release = published(root / 'release')

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


def peft(root: Path) -> Writer:
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


def pulled(root: Path) -> Writer:
    """A module out of a tar, into a zoo that has another."""
    zoo, backbone = zoo_of(root / 'zoo', 'm', 'n')
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


def student(root: Path) -> Writer:
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


def store(root: Path) -> Writer:
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


def generated(kind: str, root: Path) -> Writer:
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
