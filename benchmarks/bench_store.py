# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: reading stored features, and epochs of TDMR from a store.

What a training reads lies in the system's cache, in both contestants: a store
is compared with what the same bytes cost without it, not with a disk.
"""

import vim_mm  # noqa: F401,I001 isort:skip

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
import torch
import vit_models
from harness import Benchmark, Goal, Result, Settings, take_turns
from mmengine.optim import OptimWrapper

from vim_mm.datasets import View
from vim_mm.features.store import FeatureStore
from vim_mm.models.distillers import TDMRDistiller
from vim_mm.registry import MODELS

SOURCE = dict(trunk='random', dtype='float32')
BATCH = 64
NORMALIZE = dict(mean=[127.] * 3, std=[128.] * 3)
#: What the two rows read: a vector of ViT-B, and a map of ViT-S at 224 px.
SHAPES: Dict[str, Tuple[int, Tuple[int, ...]]] = dict(
    vectors=(20_000, (768, )), maps=(500, (384, 16, 16)))


def views(num: int) -> List[View]:
    return [View(f'train/class/{i // 4:06d}.jpg', i % 4, i)
            for i in range(num)]


def reading(name: str, settings: Settings,
            folder: Path) -> Dict[str, Callable[[], Any]]:
    """An epoch in random order: from a store, and from a plain file."""
    num, shape = SHAPES[name]
    num = 4 * BATCH if settings.quick else num // BATCH * BATCH
    keys, rows = views(num), torch.randn(num, *shape)
    store = FeatureStore(folder / name, SOURCE)
    with store.writer() as writer:
        for start in range(0, num, BATCH):
            writer.add(keys[start:start + BATCH], rows[start:start + BATCH])
    raw = folder / f'{name}.raw'
    rows.numpy().tofile(raw)
    size = rows[0].nbytes
    order = torch.randperm(num).view(-1, BATCH).tolist()
    asked = [[keys[index] for index in batch] for batch in order]

    def stored() -> None:
        for batch in asked:
            store.read(batch)

    def plain() -> None:
        with raw.open('rb', buffering=0) as file:
            for batch in order:
                buffer = np.empty((BATCH, size), np.uint8)
                for row, index in zip(buffer, batch):
                    file.seek(index * size)
                    file.readinto(row)

    return dict(stored=stored, plain=plain)


def of_reading(settings: Settings) -> Iterator[Result]:
    """The two shapes."""
    for name in SHAPES:
        with TemporaryDirectory() as folder:
            times = take_turns(
                reading(name, settings, Path(folder)), settings.runs(10))
        yield times.against('stored', 'plain')


# ----------------------------------------------------------------- epochs


def distiller(settings: Settings) -> TDMRDistiller:
    """ViT-B/16 with random weights, and MobileNetV2."""
    normalize = dict(type='mmpretrain.ClsDataPreprocessor', **NORMALIZE)
    model = MODELS.build(
        dict(
            type='vim_mm.TDMRDistiller',
            student=dict(
                type='mmpretrain.ImageClassifier',
                backbone=dict(type='mmpretrain.MobileNetV2'),
                neck=dict(type='mmpretrain.GlobalAveragePooling'),
                head=dict(
                    type='mmpretrain.LinearClsHead',
                    num_classes=100,
                    in_channels=1280),
                data_preprocessor=normalize),
            foundations=dict(
                vit=dict(
                    model=dict(
                        type='mmpretrain.ImageClassifier',
                        backbone=vit_models.vit(
                            settings, out_type='cls_token'),
                        data_preprocessor=normalize))),
            probe_size=settings.size)).to(settings.device)
    model.proxy.fitted.fill_(1)
    return model.train()


class Epoch:
    """An epoch over batches that are loaded and augmented already.

    Args:
        settings (Settings): Device and size of images.
    """

    def __init__(self, settings: Settings) -> None:
        from mmpretrain.structures import DataSample
        self.model = distiller(settings)
        self.optimizer = OptimWrapper(
            torch.optim.SGD(self.model.student.parameters(), 0.01))
        batch, steps = settings.batch(16), settings.runs(4)
        self.batches = []
        for step in range(steps):
            keys = views(batch * steps)[step * batch:(step + 1) * batch]
            samples = [
                DataSample(metainfo=dict(view=key)).set_gt_label(0).to(
                    settings.device) for key in keys
            ]
            self.batches.append((settings.images(batch), samples))

    def train(self) -> None:
        """Steps of the student."""
        for inputs, samples in self.batches:
            self.optimizer.update_params(
                self.model.parse_losses(self.model.loss(inputs, samples))[0])

    def fill(self, store: FeatureStore) -> None:
        """The pass that stores features."""
        with store.writer() as writer:
            for inputs, samples in self.batches:
                writer.add([sample.view for sample in samples],
                           self.model.look(inputs, samples)['vit'])

    @contextmanager
    def reading(self, store: FeatureStore) -> Iterator[None]:
        """Within this context the store takes the teacher's place."""
        self.model.recall = lambda samples: dict(
            vit=store.read([sample.view for sample in samples]))
        try:
            yield
        finally:
            self.model.recall = None


def of_epochs(settings: Settings) -> Iterator[Result]:
    """From a store, and filling one, against the live teacher."""
    epoch = Epoch(settings)
    with TemporaryDirectory() as folder:
        full = FeatureStore(Path(folder) / 'full', SOURCE)
        epoch.fill(full)
        number = iter(range(10**6))

        def warm() -> None:
            with epoch.reading(full):
                epoch.train()

        def cold() -> None:
            epoch.fill(FeatureStore(Path(folder) / str(next(number)), SOURCE))

        times = take_turns(
            dict(warm=warm, cold=cold, live=epoch.train),
            settings.runs(5),
            settings.device,
            warmup=1)
    yield times.against('warm', 'live')
    yield times.against('cold', 'live')


BENCHMARKS = [
    Benchmark('store reading', [
        Goal(f'store: an epoch of {name} in random order',
             'reading the same bytes from a plain file', 1 / 0.8)
        for name in SHAPES
    ], of_reading),
    Benchmark('TDMR epochs', [
        Goal('TDMR: an epoch from a store, ViT-B to MobileNetV2',
             'the same epoch with a live teacher', 1 / 3),
        Goal('TDMR: the pass that fills the store',
             'an epoch with a live teacher', 1.1)
    ], of_epochs),
]
