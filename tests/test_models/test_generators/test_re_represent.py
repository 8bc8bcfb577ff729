# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images change, sizes and annotations do not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from _upstream import auto_encoder, release
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from _tiny import SCOPES
from vim_mm.models.generators import ReRepresent, re_represent
from vim_mm.models.pixels import from_images, to_images


@pytest.mark.parametrize('sizes', [
    [(24, 24)] * 3, [(24, 24), (7, 30), (24, 24)], [(5, 3)]])
def test_each_image_as_if_alone(sizes: list) -> None:
    model = auto_encoder().eval()
    images = [
        torch.randint(256, (3, *size)).byte() for size in sizes]
    found = re_represent(model, images)
    for before, after in zip(images, found):
        alone = model.reconstruct(to_images(before)[None])[0]
        # sums of a batch may round otherwise
        assert (after.int() - from_images(alone).int()).abs().max() <= 1
        assert after.dtype == torch.uint8 and after.shape == before.shape
        assert not torch.equal(before, after)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
def test_a_batch_stays_one(dtype: torch.dtype) -> None:
    model = auto_encoder().eval()
    images = torch.randint(256, (2, 3, 9, 9)).to(dtype)
    found = re_represent(model, images)
    assert found.dtype == dtype and found.shape == images.shape
    assert torch.equal(found[1], re_represent(model, [*images])[1])


@pytest.mark.parametrize('scale', [0.5, 2., 2.5])
def test_enlarged_in_between(scale: float) -> None:
    model = auto_encoder().eval()
    seen = []
    model.reconstruct = lambda batch: seen.append(batch.shape) or batch
    image = torch.full((3, 12, 9), 77).byte()
    image[0] = 130
    found = re_represent(model, [image], scale)[0]
    assert torch.equal(found, image)  # of one colour: resizing keeps it
    assert seen[0][-2:] == (round(12 * scale), round(9 * scale))


ANNOTATIONS = dict(
    cls=dict(gt_label=3),
    det=dict(
        gt_bboxes=np.array([[2., 3., 11., 9.]], np.float32),
        gt_bboxes_labels=np.array([4]),
        gt_ignore_flags=np.array([False])),
    seg=dict(gt_seg_map=np.arange(21 * 17, dtype=np.uint8).reshape(21, 17)))
PACK = dict(
    cls='mmpretrain.PackInputs',
    det='mmdet.PackDetInputs',
    seg='mmseg.PackSegInputs')


@pytest.mark.parametrize('kind', PACK)
def test_annotations_stay_valid(kind: str, tmp_path: Path) -> None:
    """Test 2 of the notes."""
    init_default_scope(SCOPES[kind])
    folder = release(tmp_path / 'r')
    found = []
    for stages in ([], [dict(type='vim_mm.ReRepresent', release=folder)]):
        rng = np.random.default_rng(0)
        results = dict(
            img=rng.integers(0, 256, (21, 17, 3)).astype(np.uint8),
            img_shape=(21, 17),
            ori_shape=(21, 17),
            img_path='x.png',
            **ANNOTATIONS[kind])
        pack = dict(type=PACK[kind], meta_keys=('img_shape', 'ori_shape'))
        found.append(Compose([*stages, pack])(results))
    before, after = found
    assert before['inputs'].shape == after['inputs'].shape
    assert before['inputs'].dtype == after['inputs'].dtype == torch.uint8
    assert not torch.equal(before['inputs'], after['inputs'])
    assert same_annotation(before['data_samples'], after['data_samples'])


def same_annotation(first: object, second: object) -> bool:
    """Whether data samples hold equal tensors under equal names."""
    if hasattr(first, 'all_items'):
        pairs = dict(first.all_items()), dict(second.all_items())
        return pairs[0].keys() == pairs[1].keys() and all(
            same_annotation(pairs[0][key], pairs[1][key]) for key in pairs[0])
    if isinstance(first, (torch.Tensor, np.ndarray)):
        return bool((torch.as_tensor(first) == torch.as_tensor(second)).all())
    return str(first) == str(second)


def test_a_share_is_mmcvs(tmp_path: Path) -> None:
    init_default_scope('vim_mm')
    stage = dict(type='vim_mm.ReRepresent', release=release(tmp_path / 'r'))
    pipeline = Compose([
        dict(type='RandomApply', prob=0.5, transforms=[stage])])
    image = np.random.default_rng(0).integers(
        0, 256, (8, 8, 3)).astype(np.uint8)
    kept = [(pipeline(dict(img=image))['img'] == image).all()
            for _ in range(40)]
    assert 8 < sum(kept) < 32


def test_the_image_itself_is_not_overwritten(tmp_path: Path) -> None:
    stage = ReRepresent(release(tmp_path / 'r'))
    image = np.full((8, 8, 3), 77, np.uint8)
    stage(dict(img=image))
    assert (image == 77).all()
