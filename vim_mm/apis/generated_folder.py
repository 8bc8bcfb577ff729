# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A folder of generated images, laid out as data sets of their kind are.

    images/            of classifiers in a folder for each class
    labels/            label maps, of segmentors
    annotations.json   boxes and masks in COCO's format, of detectors
    manifest.json      each image's guide, seed, losses and checksum; settings
    dataset.py         a config that reads the folder
    sheet.png          guides above what became of them
"""

import json
import logging
from pathlib import Path
from pprint import pformat
from typing import Any, Dict, Optional, Sequence

import cv2
import numpy as np
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement

from vim_mm.models.generators.teacher import is_labelled, kind_of
from vim_mm.utils.drafts import is_draft
from vim_mm.utils.files import sha256, write_atomic
from vim_mm.utils.manifest import (ANNOTATIONS, IMAGES, LABEL_SUM, LABELS,
                                   MANIFEST, SUM, files_of, read_manifest,
                                   write_manifest)
from .generated_annotations import ANNOTATE, as_coco

CONFIG = 'dataset.py'
SUFFIXES = ('.png', '.jpg')


class GeneratedFolder:
    """Writes images and what belongs to them; can be taken up again.

    An image counts once the manifest names it, which is written after the
    image itself, and as a whole.

    Args:
        root (Path): The folder; made if it is not there.
        settings (dict): What the images depend on, as plain values.
        classes (Sequence[str]): Class names.
        suffix (str): ``'.png'`` or ``'.jpg'``.

    Raises:
        ValueError: If there are images of other settings, something else, or
            the folder cannot be made.
    """

    def __init__(self,
                 root: Path,
                 settings: Dict[str, Any],
                 classes: Sequence[str],
                 suffix: str = '.png') -> None:
        if suffix not in SUFFIXES:
            raise ValueError(f'`generate.suffix` is {suffix!r}; give '
                             f'{" or ".join(map(repr, SUFFIXES))}.')
        self.root, self.suffix = Path(root), suffix
        self.classes = list(classes)
        # what json makes of them is what a manifest gives back
        self.settings = json.loads(json.dumps(settings, default=str))
        self.records: Dict[str, dict] = {}
        self.kind: Optional[str] = None
        try:
            self._open()
        except OSError as error:
            raise _cannot_write(self.root, error) from error

    def _open(self) -> None:
        path = self.root / MANIFEST
        if not path.exists():
            if self.root.exists() and not all(
                    map(is_draft, self.root.iterdir())):
                raise ValueError(f"'{self.root}' is no folder of generated "
                                 f'images: it has no {MANIFEST} but other '
                                 'files; name a new folder.')
            self.root.mkdir(parents=True, exist_ok=True)
            return
        manifest = read_manifest(path)
        theirs, self.records = manifest['settings'], manifest['images']
        self.kind = manifest['kind']
        unlike = sorted(key for key in {*theirs, *self.settings}
                        if theirs.get(key) != self.settings.get(key))
        if unlike:
            raise ValueError(
                f"'{self.root}' holds images of other settings (of "
                f'{", ".join(unlike)}); name a new folder, or give the '
                'settings that its manifest names.')

    def has(self, key: str) -> bool:
        """Whether an image is there, and whole."""
        record = self.records.get(key)
        if record is None or not (self.root / IMAGES /
                                  record['file']).is_file():
            return False
        for each in files_of(record):
            if not each.is_in(self.root):
                print_log(
                    f"'{self.root / each.name}' is damaged, so it is made "
                    'again.',
                    logger='current',
                    level=logging.WARNING)
                return False
        return True

    def add(self, batch: Sequence[tuple]) -> None:
        """Write images and then the manifest that names them.

        Args:
            batch (Sequence[tuple]): For each image its key, the pixels
                (H, W, 3), BGR and uint8, its data sample, and what is noted
                of it.

        Raises:
            ValueError: If an annotation does not fit the folder, or the disk
                is full.
        """
        try:
            if not (self.root / MANIFEST).exists():
                self._write_manifest()  # without it images are nobody's
            fresh = {key: self._write(key, *rest) for key, *rest in batch}
            self.records.update(fresh)
            self._write_manifest()
        except OSError as error:
            raise _cannot_write(self.root, error) from error

    def _write_manifest(self, **notes: Any) -> None:
        write_manifest(
            self.root / MANIFEST,
            dict(
                kind=self.kind,
                classes=self.classes,
                settings=self.settings,
                images=self.records,
                **notes))

    def _write(self, key: str, pixels: np.ndarray, sample: BaseDataElement,
               note: dict) -> dict:
        self.kind = kind_of(sample)
        name = f'{key}_{Path(sample.get("img_path") or "image").stem}'
        file, annotation = name + self.suffix, None
        if is_labelled(sample):
            annotation = ANNOTATE[self.kind](sample, pixels.shape[:2])
        if self.kind == 'cls' and annotation is not None:
            file = f'{self.class_folder(annotation)}/{file}'
        sums = {}
        if self.kind == 'seg' and annotation is not None:
            label = f'{name}.png'
            sums[LABEL_SUM] = self._encode(self.root / LABELS / label,
                                           annotation, '.png')
            annotation = label
        sums[SUM] = self._encode(self.root / IMAGES / file, pixels,
                                 self.suffix)
        return dict(
            file=file,
            height=pixels.shape[0],
            width=pixels.shape[1],
            annotation=annotation,
            **sums,
            **note)

    def class_folder(self, label: int) -> str:
        """The folder of a class."""
        return self.classes[label].replace('/', '-')

    @staticmethod
    def _encode(path: Path, pixels: np.ndarray, suffix: str) -> str:
        """Write an image; the sha256 of its file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == '.jpg' else []
        done, data = cv2.imencode(suffix, pixels, quality)
        assert done, path
        content = data.tobytes()
        write_atomic(path, content)
        return sha256(content)

    # ------------------------------------------------------------- the end

    def finish(self) -> None:
        """Write the files that are about all images.

        Raises:
            ValueError: If the disk is full.
        """
        try:
            if self.kind == 'det' and self.is_labelled:
                coco = as_coco(self.records.values(), self.classes)
                text = json.dumps(coco)
                write_atomic(self.root / ANNOTATIONS, text)
                self._write_manifest(annotations={SUM: sha256(text.encode())})
            if self.kind == 'cls' and self.is_labelled:
                # mmpretrain expects a folder of each class, an empty one too
                for label in range(len(self.classes)):
                    (self.root / IMAGES / self.class_folder(label)).mkdir(
                        exist_ok=True)
            text = ('# Generated images: their annotations are their '
                    "guides'.\ndataset = " +
                    pformat(self.dataset(), sort_dicts=False) + '\n')
            write_atomic(self.root / CONFIG, text)
        except OSError as error:
            raise _cannot_write(self.root, error) from error

    @property
    def is_labelled(self) -> bool:
        """Whether the images have annotations."""
        return any(record['annotation'] is not None
                   for record in self.records.values())

    def dataset(self) -> dict:
        """Config of a data set of the images, for soft targets alone.

        It lacks a pipeline, which is that of the student.
        """
        # mmengine puts in where the config lies, so the folder can be moved
        own: Dict[str, Any] = dict(data_root='{{fileDirname}}')
        if self.is_labelled:
            own.update(getattr(self, f'_{self.kind}_dataset')())
        else:
            own.update(
                type='mmpretrain.CustomDataset',
                data_prefix=IMAGES,
                with_label=False,
                metainfo=dict(classes=tuple(self.classes)))
        return dict(
            type='vim_mm.SoftOnly',
            manifest='{{fileDirname}}/' + MANIFEST,
            dataset=dict(own, pipeline=[]))

    def _cls_dataset(self) -> dict:
        return dict(
            type='mmpretrain.CustomDataset',
            data_prefix=IMAGES,
            classes=list(map(self.class_folder, range(len(self.classes)))))

    def _det_dataset(self) -> dict:
        return dict(
            type='mmdet.CocoDataset',
            metainfo=dict(classes=tuple(self.classes)),
            ann_file=ANNOTATIONS,
            data_prefix=dict(img=f'{IMAGES}/'),
            filter_cfg=dict(filter_empty_gt=False))

    def _seg_dataset(self) -> dict:
        return dict(
            type='mmseg.BaseSegDataset',
            metainfo=dict(classes=tuple(self.classes)),
            data_prefix=dict(img_path=IMAGES, seg_map_path=LABELS),
            img_suffix=self.suffix,
            seg_map_suffix='.png')


def _cannot_write(root: Path, error: OSError) -> ValueError:
    return ValueError(f"Generated images cannot be written to '{root}': "
                      f'{error.strerror or error}; what the manifest names '
                      'is whole, so the same command goes on from there.')
