# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A folder of images becomes a release; a release changes a folder."""

from functools import partial
from pathlib import Path
from typing import Callable

import mmcv
import numpy as np
import pytest
import torch
from _upstream import auto_encoder, config, release, write_images
from mmengine.config import Config
from mmengine.runner import Runner

from vim_mm.apis.release import judge, publish_upstream, re_represent_folder
from vim_mm.engine.hooks import WarmHeadHook
from vim_mm.models.generators import (ReRepresent, load_upstream_release,
                                      read_upstream_card)
from vim_mm.zoo import ZooError


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    train = write_images(tmp_path / 'train', 8)
    held_out = write_images(tmp_path / 'held_out', 6, seed=1)
    return Config(config(train, held_out, tmp_path / 'work'))


def test_a_release_comes_with_its_leak_report(cfg: Config,
                                              tmp_path: Path) -> None:
    """Test 10 of the notes."""
    card = publish_upstream(cfg, tmp_path / 'r')
    assert card == read_upstream_card(tmp_path / 'r')
    assert card.num_images == card.leak['num_train'] == 8
    assert card.leak['num_held_out'] == 6
    assert 0 <= card.leak['membership_auc'] <= 1
    for kind in ('samples', 'reconstructions', 'photographs'):
        assert card.leak[f'{kind}_to_train_min'] > 0
        assert 0 < card.leak[f'{kind}_p'] <= 1
    assert 0 < card.metrics['codes_in_use'] <= 1
    assert card.metrics['l1_held_out'] > 0
    assert card.training['iterations'] == 4
    load_upstream_release(tmp_path / 'r')


@pytest.mark.slow
def test_a_training_can_be_published_later(cfg: Config, tmp_path: Path,
                                           monkeypatch) -> None:
    first = publish_upstream(cfg, tmp_path / 'r')
    monkeypatch.setattr(Runner, 'train', lambda self: pytest.fail('trained'))
    cfg.work_dir = str(tmp_path / 'work2')
    again = publish_upstream(
        cfg, tmp_path / 'again', str(tmp_path / 'work' / 'iter_4.pth'))
    assert again.sha256 == first.sha256
    assert again.leak == first.leak and again.metrics == first.metrics


@pytest.mark.slow
def test_wrapped_data_sets(cfg: Config, tmp_path: Path) -> None:
    """Training images of the report go through the held-out pipeline."""
    data = cfg.train_dataloader.dataset
    data.pipeline = [
        data.pipeline[0],
        dict(type='mmpretrain.Resize', scale=(8, 16)), data.pipeline[1]
    ]
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='ConcatDataset', datasets=[data]))
    assert publish_upstream(cfg, tmp_path / 'r').num_images == 16


def no_held_out(cfg: Config) -> None:
    cfg.held_out_dataloader = None


def one_held_out(cfg: Config) -> None:
    cfg.held_out_dataloader.dataset.indices = 1


def sizes_differ(cfg: Config) -> None:
    write_images(Path(cfg.held_out_dataloader.dataset.data_root), 1, (9, 9))


def one_file_in_both(cfg: Config) -> None:
    train, held_out = (Path(cfg[part].dataset.data_root) for part in (
        'train_dataloader', 'held_out_dataloader'))
    (held_out / 'copy.png').write_bytes((train / '3.png').read_bytes())


def normalised(part: str) -> Callable[[Config], None]:
    stage = dict(type='mmpretrain.Normalize', mean=[123.675, 116.28, 103.53],
                 std=[58.395, 57.12, 57.375])

    def mistake(cfg: Config) -> None:
        load, pack = cfg[part].dataset.pipeline
        cfg[part].dataset.pipeline = [load, stage, pack]

    return mistake


def wrong(key: str, value: object) -> Callable[[Config], None]:
    return lambda cfg: cfg.merge_from_dict({key: value})


MISTAKES = {
    'no held-out images': (no_held_out, 'no `held_out_dataloader`'),
    'images that are not there': (wrong(
        'held_out_dataloader.dataset.data_root', '/none'), 'does not exist'),
    'no card': (wrong('release_card', None), '`release_card`=None'),
    'no licence': (wrong('release_card', dict(
        _delete_=True, name='x', data='y')), '`licence`'),
    'a card that says nothing': (wrong('release_card.data', ''), 'empty'),
    'a name that is none': (wrong('release_card.name', '../x'),
                            'cannot name'),
    'another model': (wrong('model', dict(
        _delete_=True, type='mmpretrain.ImageClassifier', backbone={})),
        "not 'mmpretrain.ImageClassifier'"),
    'no step': (wrong('train_cfg.max_iters', 0), 'would be untrained'),
    'an image in both': (one_file_in_both,
                         '1 of the held-out images are training images, .*'
                         'held_out/copy.png'),
    **{f'normalised images of {part}': (
        normalised(part), f'`{part}`: .* normalised twice')
       for part in ('train_dataloader', 'held_out_dataloader')},
    'images smaller than a code': (wrong('model.downsample', 32),
                                   r'has \(24, 24\) px, and a code .* 32'),
    'one code': (wrong('model.codebook_size', 1), 'codebook_size` is 1, so'),
    'no code': (wrong('model.codebook_size', 0), 'codebook_size` is 0; give'),
    **{f'averages that do not follow, {decay}': (
        wrong('model.decay', decay), '`decay` is .* from 0 to below 1')
       for decay in (1., 2., float('nan'))},
    'a folder of classes that is none': (
        wrong('held_out_dataloader.dataset.with_label', True),
        'cannot be read: .*(Found|find)'),
}
LATER = {
    'one held-out image': (one_held_out, 'says nothing'),
    'images of several sizes': (sizes_differ, 'come in 2 sizes'),
}


@pytest.mark.parametrize('what', [*MISTAKES, *LATER])
def test_mistakes(what: str, cfg: Config, tmp_path: Path,
                  monkeypatch: pytest.MonkeyPatch) -> None:
    mistake, words = {**MISTAKES, **LATER}[what]
    mistake(cfg)
    if what in MISTAKES:  # these are said before any training
        monkeypatch.setattr(
            Runner, 'train', lambda self: pytest.fail('trained'))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        publish_upstream(cfg, tmp_path / 'r')
    assert not (tmp_path / 'r').exists()


@pytest.mark.parametrize(('out', 'num', 'words'), [
    ('r', 1, 'leak report of 1 images compares nothing'),
    ('work', 2000, 'the folder of the training, too')])
def test_what_is_asked_for(out: str, num: int, words: str, cfg: Config,
                           tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Runner, 'train', lambda self: pytest.fail('trained'))
    with pytest.raises(ValueError, match=words):
        publish_upstream(cfg, tmp_path / out, max_images=num)


def test_what_another_model_left(cfg: Config, tmp_path: Path) -> None:
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='a.pth. is of another model than'):
        publish_upstream(cfg, tmp_path / 'r', str(tmp_path / 'a.pth'))
    assert not (tmp_path / 'r').exists()


@pytest.mark.parametrize('scale', [0, -1., float('nan'), float('inf')])
def test_images_are_enlarged_by_a_number(scale: float,
                                         tmp_path: Path) -> None:
    made, images = release(tmp_path / 'r'), write_images(tmp_path / 'a', 1)
    with pytest.raises(ValueError, match='`--scale` is .* above 0'):
        re_represent_folder(made, images, tmp_path / 'b', scale=scale)
    assert not (tmp_path / 'b').exists()
    for kind in (ReRepresent, partial(WarmHeadHook, 1)):
        with pytest.raises(ValueError, match='scale` is .* above 0'):
            kind(release=made, scale=scale)


def test_re_representing_needs_an_image(tmp_path: Path) -> None:
    stage = ReRepresent(release(tmp_path / 'r'))
    with pytest.raises(ValueError, match='put it after LoadImageFromFile'):
        stage.transform(dict(img_path='a.png'))


def test_a_folder_in_use_is_refused_before_training(
        cfg: Config, tmp_path: Path, monkeypatch) -> None:
    release(tmp_path / 'r')
    monkeypatch.setattr(Runner, 'train', lambda self: pytest.fail('trained'))
    with pytest.raises(ZooError, match='is there already'):
        publish_upstream(cfg, tmp_path / 'r')


def test_a_memory_is_found_out() -> None:
    """A decoder that is better on its own images has an AUC above 0.5."""
    model = auto_encoder().eval()
    train, held_out = torch.rand(2, 12, 3, 8, 8)
    exact = {image.sum().item(): image for image in train}
    decode = model.reconstruct
    model.reconstruct = lambda batch: torch.stack([
        exact.get(image.sum().item(), decode(image[None])[0])
        for image in batch
    ])
    metrics, leak = judge(model, train, held_out)
    assert leak['membership_auc'] == 1
    assert metrics['l1_train'] == 0 < metrics['l1_held_out']


def test_copies_keep_names_and_sizes(tmp_path: Path) -> None:
    folder = release(tmp_path / 'r')
    source = tmp_path / 'images'
    write_images(source / 'a' / 'b', 2, (20, 13))
    write_images(source, 1, (9, 30))
    (source / 'notes.txt').write_text('no image')
    assert re_represent_folder(folder, source, tmp_path / 'copies') == 3
    names = {
        str(path.relative_to(tmp_path / 'copies'))
        for path in (tmp_path / 'copies').rglob('*') if path.is_file()
    }
    assert names == {'a/b/0.png', 'a/b/1.png', '0.png', 'manifest.json'}
    before, after = (
        mmcv.imread(str(tmp_path / name / 'a' / 'b' / '1.png'))
        for name in ('images', 'copies'))
    assert before.shape == after.shape == (20, 13, 3)
    assert not np.array_equal(before, after)


def unreadable(source: Path) -> None:
    (source / 'x.jpg').write_text('no image')


def empty(source: Path) -> None:
    for path in source.iterdir():
        path.unlink()


@pytest.mark.parametrize('damage, words', [
    (unreadable, 'x.jpg.* cannot be read'), (empty, 'no image in')])
def test_folders_that_cannot_be_copied(damage: Callable, words: str,
                                       tmp_path: Path) -> None:
    folder = release(tmp_path / 'r')
    source = write_images(tmp_path / 'images', 2, (9, 9))
    damage(source)
    with pytest.raises((ZooError, FileNotFoundError), match=words):
        re_represent_folder(folder, source, tmp_path / 'copies')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['images', 'r']


def test_a_full_disk_leaves_no_copies(tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch
                                      ) -> None:
    folder = release(tmp_path / 'r')
    source = write_images(tmp_path / 'images', 2, (9, 9))
    monkeypatch.setattr(mmcv, 'imwrite', lambda *_: False)
    with pytest.raises(ZooError, match='nothing is left'):
        re_represent_folder(folder, source, tmp_path / 'copies')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['images', 'r']
