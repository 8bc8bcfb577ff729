# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""IRF: the head on re-represented images first, then everything on originals.
"""

import shutil
import sys
from pathlib import Path
from typing import Iterator, List, Optional

import pytest
import torch
from _upstream import config, release, write_images
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.runner import CheckpointLoader, Runner

from _tiny import DIMS, KINDS, TRUNKS, build_runner, model_cfg, same, snapshot
from vim_mm.apis.release import publish_upstream
from vim_mm.engine.hooks import WarmHeadHook
from vim_mm.features.loaders import finite
from vim_mm.models.generators import load_upstream_release, re_represent
from vim_mm.registry import MODELS
from vim_mm.zoo import ZooError


def plain_model(kind: str) -> Config:
    """An ordinary model over a CNN with batch norms that learn."""
    cfg = model_cfg(kind, {})
    # its third level has DIMS channels
    cfg.backbone = dict(
        TRUNKS['resnet'], out_indices=(2, ), norm_eval=False)
    if kind == 'cls':
        cfg.neck = dict(type='mmpretrain.GlobalAveragePooling')
    if kind == 'det':
        cfg.neck = dict(
            type='mmdet.ChannelMapper', in_channels=[DIMS], out_channels=DIMS)
    return cfg


def hook(folder: Optional[str], epochs: int = 3, **kwargs) -> dict:
    return dict(
        type='vim_mm.WarmHeadHook', epochs=epochs, release=folder, **kwargs)


@pytest.mark.parametrize('source', ['release', 'original'])
@pytest.mark.parametrize('kind', KINDS)
def test_the_backbone_waits(kind: str, source: str, tmp_path: Path) -> None:
    """Test 3 of the notes, and the LP-FT control."""
    folder = release(tmp_path / 'r') if source == 'release' else None
    run = build_runner(kind, plain_model(kind), tmp_path / 'w')
    backbone, model = snapshot(run.model.backbone), snapshot(run.model)
    assert any('running_var' in key for key in backbone)
    WarmHeadHook(epochs=3, release=folder).before_train(run)
    assert same(snapshot(run.model.backbone), backbone)
    head = {
        key: value for key, value in snapshot(run.model).items()
        if not torch.equal(value, model[key])
    }
    assert head
    run.train()
    after = snapshot(run.model.backbone)
    changed = [key for key in backbone
               if not torch.equal(after[key], backbone[key])]
    for part in ('weight', 'running_mean', 'running_var'):
        assert any(key.endswith(part) for key in changed), part


@pytest.mark.parametrize('source', ['release', 'original'])
def test_what_the_head_sees(source: str, tmp_path: Path) -> None:
    """Standardisers are fitted on the very features that the head reads."""
    cfg = plain_model('cls')
    cfg.neck = dict(type='vim_mm.StandardizedPooling', in_channels=2 * DIMS)
    cfg.head.in_channels = 2 * DIMS
    folder = release(tmp_path / 'r') if source == 'release' else None
    run = build_runner('cls', cfg, tmp_path / 'w')
    WarmHeadHook(epochs=0, release=folder).before_train(run)
    run.model.eval()
    pooled = []
    for data in finite(run.train_dataloader):
        if folder:
            data['inputs'] = re_represent(
                load_upstream_release(folder), data['inputs'])
        inputs = run.model.data_preprocessor(data)['inputs']
        pooled.append(run.model.extract_feat(inputs)[0].detach())
    torch.testing.assert_close(
        torch.cat(pooled).mean(0), torch.zeros(2 * DIMS), atol=1e-3, rtol=0)


# ------------------------------------------------------------------- privacy

WATCHED: List[str] = []
OPENED: List[str] = []


def watch(event: str, args: tuple) -> None:
    """Note whatever is opened or listed under a watched folder."""
    if WATCHED and event in ('open', 'os.listdir', 'os.scandir'):
        path = str(args[0])
        if any(path.startswith(folder) for folder in WATCHED):
            OPENED.append(path)


@pytest.fixture
def watching() -> Iterator[None]:
    if watch not in getattr(sys, '_vim_mm_watch', []):
        sys.addaudithook(watch)  # stays for ever, so once
        sys._vim_mm_watch = [watch]
    yield
    WATCHED.clear()
    OPENED.clear()


def test_the_user_reads_no_upstream_image(tmp_path: Path,
                                          watching: None) -> None:
    """Test 1 of the notes: weights and the release alone are read."""
    upstream = write_images(tmp_path / 'upstream', 8)
    other = write_images(tmp_path / 'other', 8, seed=1)
    folder = str(tmp_path / 'r')
    publish_upstream(Config(config(upstream, other, tmp_path / 'p')), folder)
    WATCHED.extend(map(str, (upstream, other)))
    run = build_runner(
        'cls', plain_model('cls'), tmp_path / 'w', custom_hooks=[hook(folder)])
    run.train()
    assert not OPENED
    # what a pipeline reads would have been seen
    Compose([dict(type='LoadImageFromFile')])(
        dict(img_path=str(upstream / '0.png')))
    assert OPENED == [str(upstream / '0.png')]
    shutil.rmtree(upstream)
    load_upstream_release(folder)


@pytest.mark.parametrize('edit', [
    lambda folder: (folder / 'codebook.safetensors').write_bytes(b'x'),
    shutil.rmtree
])
def test_a_damaged_release_ends_before_training(edit, tmp_path: Path) -> None:
    folder = release(tmp_path / 'r')
    edit(Path(folder))
    with pytest.raises(ZooError):
        build_runner(
            'cls', plain_model('cls'), tmp_path / 'w',
            custom_hooks=[hook(folder)])
    assert not list((tmp_path / 'w').rglob('*.pth'))


# --------------------------------------------------------------- consistency


def consistent(kind: str, folder: str, **kwargs) -> dict:
    return dict(
        type='vim_mm.ConsistentModel',
        student=plain_model(kind),
        release=folder,
        **kwargs)


def batch_of(run: Runner) -> dict:
    data = next(iter(finite(run.train_dataloader)))
    return run.model.data_preprocessor(data, True)


@pytest.mark.parametrize('kind', KINDS)
def test_features_are_pulled_together(kind: str, tmp_path: Path) -> None:
    cfg = consistent(kind, release(tmp_path / 'r'), weight=0.5)
    run = build_runner(kind, cfg, tmp_path / 'w')
    model, batch = run.model, batch_of(run)
    model.eval()  # batch norms give both passes the same statistics
    found = model.loss(**batch)
    own = model.student.loss(*batch.values())
    assert found.keys() - own.keys() == {'loss_consistency'}
    inputs = batch['inputs']
    images = (inputs * 60 + 60).flip(1) / 255  # the tiny models read BGR
    decoded = model.outside['release'].network.reconstruct(images.clamp(0, 1))
    again = (decoded.flip(1) * 255 - 60) / 60
    with torch.no_grad():
        first, second = (model.backbone(x)[0] for x in (inputs, again))
    torch.testing.assert_close(
        found['loss_consistency'].detach(),
        0.5 * (first - second).square().mean(), rtol=1e-3, atol=1e-7)
    found['loss_consistency'].backward()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


def test_equal_images_cost_nothing(tmp_path: Path) -> None:
    run = build_runner(
        'cls', consistent('cls', release(tmp_path / 'r')), tmp_path / 'w')
    network = run.model.outside['release'].network
    network.reconstruct = lambda images: images
    found = run.model.train().loss(**batch_of(run))
    assert found['loss_consistency'] < 1e-8


def test_padding_stays_blank(tmp_path: Path) -> None:
    run = build_runner(
        'det', consistent('det', release(tmp_path / 'r')), tmp_path / 'w')
    batch = batch_of(run)
    sample = batch['data_samples'][1]
    sample.set_metainfo(dict(img_shape=(40, 30)))
    batch['inputs'][1, :, 40:] = 0
    batch['inputs'][1, :, :, 30:] = 0
    found = run.model.re_represented(**batch)
    assert (found[1, :, 40:] == 0).all() and (found[1, :, :, 30:] == 0).all()
    assert (found[1, :, :40, :30] != 0).any()
    assert (found[0, :, 40:] != 0).any()


def test_it_is_saved_as_the_plain_model(tmp_path: Path) -> None:
    folder = release(tmp_path / 'r')
    run = build_runner(
        'cls', consistent('cls', folder), tmp_path / 'w',
        custom_hooks=[hook(folder)])
    before = snapshot(run.model.student.head)
    run.train()
    assert not same(snapshot(run.model.student.head), before)
    saved = CheckpointLoader.load_checkpoint(
        str(tmp_path / 'w' / 'iter_4.pth'))['state_dict']
    plain = MODELS.build(plain_model('cls'))
    plain.load_state_dict(saved, strict=True)
