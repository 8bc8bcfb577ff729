# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Generated images on disk: their layout, and runs that are interrupted."""

import json
import runpy
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Dict, Tuple

import cv2
import numpy as np
import pytest
import torch
from _guides import NAMES, NUM, PIPELINES, write_guides
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from _tiny import (KINDS, SCOPES, Pictures, build_model, first_of, fusion_neck,
                   model_cfg, save_trunk)
from vim_mm.apis.generate import generate
from vim_mm.apis.generated_folder import GeneratedFolder
from vim_mm.apis.guides import Guides, Plan
from vim_mm.models.generators import GuidedGenerator
from vim_mm.utils.cli import run_cli
from vim_mm.utils.data import check_data
from vim_mm.utils.files import sha256

ROOT = Path(__file__).resolve().parents[2]
NORMALIZE = dict(type='mmpretrain.Normalize', mean=[123.675, 116.28, 103.53],
                 std=[58.395, 57.12, 57.375])


def write_job(kind: str, root: Path) -> Tuple[Config, str]:
    """A config with ``generate``, and a teacher's checkpoint."""
    torch.manual_seed(0)
    backbone = dict(trunk=save_trunk(root / 'trunk.pth'))
    model = build_model(kind, backbone)
    path = root / f'{kind}.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    cfg = Config(
        dict(
            default_scope=SCOPES[kind],
            model=model_cfg(kind, backbone, fusion_neck(kind)),
            train_dataloader=dict(dataset=write_guides(kind, root / kind)),
            generate=dict(
                generator=dict(
                    type='vim_mm.GuidedGenerator', iterations=2, noise=.01),
                copies=2,
                batch_size=4)))
    return cfg, str(path)


@pytest.fixture(scope='module')
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, tuple]:
    root = tmp_path_factory.mktemp('jobs')
    return {kind: write_job(kind, root) for kind in KINDS}


def files(folder: Path) -> Dict[str, str]:
    """Hashes of all files."""
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in folder.rglob('*') if path.is_file()
    }


def read_back(kind: str, folder: Path) -> list:
    """Samples as the folder's own config reads them."""
    cfg = Config.fromfile(folder / 'dataset.py').dataset
    assert cfg.type == 'vim_mm.SoftOnly'
    cfg.dataset.pipeline = PIPELINES[kind]
    with DefaultScope.overwrite_default_scope(SCOPES[kind]):
        dataset = DATASETS.build(cfg)
        return [dataset[index] for index in range(len(dataset))]


# ------------------------------------------------------------------ layout


@pytest.mark.parametrize('kind', KINDS)
def test_images_and_annotations_are_laid_out_as_the_guides(
        kind, jobs, tmp_path):
    report = generate(*jobs[kind], str(tmp_path / 'out'))
    assert report.total == report.made == 2 * NUM
    assert report.loss <= report.start and report.seconds > 0
    # a folder may be moved
    shutil.move(tmp_path / 'out', tmp_path / 'moved')
    samples = read_back(kind, tmp_path / 'moved')
    assert len(samples) == 2 * NUM
    originals = Pictures(kind, NUM).samples
    for found in samples:
        sample = found['data_samples']
        assert sample.soft_only
        index = int(Path(sample.img_path).name.split('_')[0])
        guide = originals[index]
        if kind == 'cls':  # sorted by class in the guides' data set too
            label = int(sample.gt_label)
            guide = originals[2 * (index if index < 3 else index - 3) + label]
            assert Path(sample.img_path).parent.name == NAMES['cls'][label]
        apart = found['inputs'].float() - guide['inputs'].float()
        assert 0 < apart.abs().mean() < 12
        wanted = guide['data_samples']
        if kind == 'seg':
            assert torch.equal(sample.gt_sem_seg.data, wanted.gt_sem_seg.data)
        if kind == 'det':
            boxes = sample.gt_instances.bboxes
            boxes = getattr(boxes, 'tensor', boxes)
            assert torch.equal(boxes, wanted.gt_instances.bboxes)
            left, top, right, bottom = map(int, boxes[0])
            mask = np.zeros((1, 56, 56), np.uint8)
            mask[0, top:bottom, left:right] = 1
            assert (sample.gt_instances.masks.masks == BitmapMasks(
                mask, 56, 56).masks).all()
    sheet = cv2.imread(str(tmp_path / 'moved/sheet.png'))
    assert sheet.shape == (3 * 116, NUM * 116, 3)


@pytest.mark.parametrize('kind', KINDS)
def test_no_iterations_write_the_guides(kind, jobs, tmp_path):
    cfg, teacher = jobs[kind]
    cfg = deepcopy(cfg)
    cfg.generate.update(
        copies=1, generator=dict(type='vim_mm.GuidedGenerator', iterations=0))
    generate(cfg, teacher, str(tmp_path))
    manifest = json.loads((tmp_path / 'manifest.json').read_text())
    for record in manifest['images'].values():
        image = cv2.imread(str(tmp_path / 'images' / record['file']))
        assert np.array_equal(image, cv2.imread(record['guide']))


@pytest.mark.parametrize('kind', first_of(KINDS))
def test_guides_without_annotations_give_a_plain_folder(kind, jobs, tmp_path):
    cfg, teacher = jobs[kind]
    cfg = deepcopy(cfg)
    pack = PIPELINES[kind][-1]
    cfg.generate.dataset = dict(
        type='mmpretrain.CustomDataset',
        data_prefix=f'{Path(teacher).parent}/{kind}/images',
        with_label=False,
        pipeline=[dict(type='LoadImageFromFile'), pack])
    generate(cfg, teacher, str(tmp_path / 'out'))
    manifest = json.loads((tmp_path / 'out/manifest.json').read_text())
    assert {r['annotation'] for r in manifest['images'].values()} == {None} \
        or kind == 'det'
    made = Config.fromfile(tmp_path / 'out/dataset.py').dataset
    made.dataset.pipeline = [dict(type='LoadImageFromFile'), pack]
    with DefaultScope.overwrite_default_scope(SCOPES[kind]):
        dataset = DATASETS.build(made)
    assert len(dataset) == 2 * NUM
    assert dataset[0]['data_samples'].soft_only


def test_jpeg_files_and_a_limit(jobs, tmp_path):
    cfg, teacher = jobs['seg']
    cfg = deepcopy(cfg)
    cfg.generate.update(suffix='.jpg', limit=2, copies=1)
    assert generate(cfg, teacher, str(tmp_path)).total == 2
    assert len(list((tmp_path / 'images').glob('*.jpg'))) == 2
    assert len(list((tmp_path / 'labels').glob('*.png'))) == 2
    assert len(read_back('seg', tmp_path)) == 2


def test_images_of_several_sizes_are_made_with_their_equals(jobs, tmp_path):
    cfg, teacher = jobs['cls']
    cfg = deepcopy(cfg)
    root = tmp_path / 'data'
    shutil.copytree(Path(teacher).parent / 'cls', root)
    wide = root / 'images/right/1.png'
    cv2.imwrite(str(wide), np.full((56, 84, 3), 90, np.uint8))
    cfg.generate.dataset = dict(
        cfg.train_dataloader.dataset, data_root=str(root))
    generate(cfg, teacher, str(tmp_path / 'out'))
    manifest = json.loads((tmp_path / 'out/manifest.json').read_text())
    widths = [record['width'] for record in manifest['images'].values()]
    assert sorted(set(widths)) == [56, 84] and widths.count(84) == 2


# ------------------------------------------------------------ interruptions


@pytest.mark.parametrize('kind', first_of(KINDS))
def test_an_interrupted_run_goes_on_to_the_same_images(kind, jobs, tmp_path,
                                                       monkeypatch):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    generate(*jobs[kind], str(whole))
    calls = []
    original = GuidedGenerator.generate

    def interrupted(self, *args):
        calls.append(len(args[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(GuidedGenerator, 'generate', interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(*jobs[kind], str(parts))
    manifest = json.loads((parts / 'manifest.json').read_text())
    assert len(manifest['images']) == 4
    # a file that goes astray is made again, with those of its batch
    first = next(iter(manifest['images'].values()))
    (parts / 'images' / first['file']).unlink()
    report = generate(*jobs[kind], str(parts))
    assert report.made == report.total == 2 * NUM
    assert calls == [4, 4, 4, 4, 2]
    assert files(whole) == files(parts)
    # nothing is left to do
    calls.clear()
    assert generate(*jobs[kind], str(parts)).made == 0 and not calls
    assert files(whole) == files(parts)


def test_an_image_without_its_manifest_does_not_count(jobs, tmp_path,
                                                      monkeypatch):
    out = tmp_path / 'out'

    def full(path, content):
        if path.name == 'manifest.json':
            raise OSError(28, 'No space left on device')
        path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr('vim_mm.utils.manifest.write_atomic', full)
        with pytest.raises(ValueError, match='No space left on device'):
            generate(*jobs['cls'], str(out))
    assert not (out / 'manifest.json').exists()
    shutil.rmtree(out)
    assert generate(*jobs['cls'], str(out)).made == 2 * NUM


# ------------------------------------------------------------------- damage


def flip(path: Path, place: int) -> None:
    """Change a bit of a file."""
    changed = bytearray(path.read_bytes())
    changed[place % len(changed)] ^= 1 << place % 8
    path.write_bytes(changed)


@pytest.mark.parametrize('kind', first_of(KINDS))
def test_a_damaged_file_is_named(kind, jobs, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('vim_mm.apis.generated_folder.print_log',
                        lambda text, **kwargs: said.append(text))
    cfg, teacher = jobs[kind]
    cfg = deepcopy(cfg)
    cfg.generate.update(limit=2, copies=1)
    generate(cfg, teacher, str(tmp_path))
    before = files(tmp_path)
    named = [name for name in before if name.count('/') or '.json' in name]
    assert len(named) == dict(cls=3, det=4, seg=5)[kind]
    for name in named:
        path, content = tmp_path / name, (tmp_path / name).read_bytes()
        for place in (40, len(content) // 2, len(content) - 1):
            flip(path, place)
            with pytest.raises(ValueError, match=f'{path}. is damaged'):
                read_back(kind, tmp_path)
            path.write_bytes(content)
        path.unlink()
        with pytest.raises((ValueError, OSError), match=str(path)):
            read_back(kind, tmp_path)
        path.write_bytes(content)
    # made again, and images and label maps are said
    for name in [name for name in named if name != 'manifest.json']:
        flip(tmp_path / name, 99)
        generate(cfg, teacher, str(tmp_path))
        assert files(tmp_path) == before
        assert name == 'annotations.json' or name in said[-1]
    assert len(read_back(kind, tmp_path)) == 2


@pytest.mark.parametrize('kind', KINDS)
def test_any_run_on_them_compares_them(kind, jobs, tmp_path):
    """Those that read them as ordinary images, too."""
    cfg, teacher = jobs[kind]
    cfg = deepcopy(cfg)
    cfg.generate.update(limit=2, copies=1)
    generate(cfg, teacher, str(tmp_path))
    plain = Config.fromfile(tmp_path / 'dataset.py').dataset.dataset
    run = Config(dict(val_dataloader=dict(dataset=plain)))
    check_data(run, ('val_dataloader', ))
    first = min((tmp_path / 'images').rglob('*.png'))
    other = shutil.copyfile(first, first.with_name('other.png'))
    for use in (lambda: check_data(run, ('val_dataloader', )),
                lambda: read_back(kind, tmp_path)):
        with pytest.raises(ValueError, match=f'{other}. is none of the'):
            use()
    other.unlink()
    flip(first, 300)
    with pytest.raises(ValueError, match=f'{first}. is damaged.*generate.py'):
        check_data(run, ('val_dataloader', ))


@pytest.mark.slow
def test_a_folder_of_before_has_no_checksums(jobs, tmp_path):
    cfg, teacher = jobs['seg']
    cfg = deepcopy(cfg)
    cfg.generate.update(limit=2, copies=1)
    generate(cfg, teacher, str(tmp_path))
    path = tmp_path / 'manifest.json'
    manifest = json.loads(path.read_text())
    del manifest['sha256']
    for record in manifest['images'].values():
        del record['sha256'], record['label_sha256']
    path.write_text(json.dumps(manifest))
    assert len(read_back('seg', tmp_path)) == 2
    assert generate(cfg, teacher, str(tmp_path)).made == 0


# ----------------------------------------------------------------- mistakes


@pytest.mark.parametrize(('options', 'words'), first_of([
    ({
        'generate.seed': 1
    }, r'other settings \(of seed\)'),
    ({
        'generate.copies': 1
    }, r'other settings \(of copies\)'),
    ({
        'generate.generator.lr': .1
    }, r'other settings \(of generator\)'),
]))
def test_other_settings_are_refused(jobs, tmp_path, options, words):
    cfg, teacher = jobs['cls']
    small = deepcopy(cfg)
    small.generate.limit = 1
    generate(small, teacher, str(tmp_path))
    before = files(tmp_path)
    other = deepcopy(small)
    other.merge_from_dict(options)
    with pytest.raises(ValueError, match=words):
        generate(other, teacher, str(tmp_path))
    torch.save(torch.load(teacher), tmp_path.parent / f'{tmp_path.name}.pth')
    assert files(tmp_path) == before


def test_another_teacher_is_refused(jobs, tmp_path):
    cfg, teacher = jobs['cls']
    cfg = deepcopy(cfg)
    cfg.generate.limit = 1
    generate(cfg, teacher, str(tmp_path / 'out'))
    state = torch.load(teacher)
    state['state_dict']['head.fc.bias'] += 1
    torch.save(state, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'\(of teacher\)'):
        generate(cfg, str(tmp_path / 'other.pth'), str(tmp_path / 'out'))


@pytest.mark.parametrize(('options', 'words'), [
    ({
        'generate.copy': 2
    }, 'takes no copy'),
    ({
        'generate.copies': 0
    }, '`generate.copies` is 0'),
    ({
        'generate.limit': 0
    }, '`generate.limit` is 0'),
    ({
        'generate.suffix': '.gif'
    }, "`generate.suffix` is '.gif'"),
    ({
        'generate.generator.noise': 0
    }, 'would be the same one'),
    ({
        'generate.generator.lrr': 0
    }, 'lrr'),
    ({
        'train_dataloader.dataset.data_root': '/nowhere'
    }, '/nowhere'),
    ({
        'generate.generator.canvas': 'PyramidCanvas'
    }, "generator.canvas` is 'PyramidCanvas'; give a config"),
    *[({
        'generate.seed': seed
    }, '`generate.seed` is .*; give a whole') for seed in (-1, 'a', 2**32)],
    *[({
        'generate.generator.weights': {term: weight}
    }, f'`weights.{term}` is .*; give a number, 0 or more')
      for term, weight in (('task', float('nan')), ('task', float('inf')),
                           ('task', -1.), ('tv', '1'))],
    *[({
        'generate.generator.weights': dict(
            dict.fromkeys(('task', 'statistics', 'tv', 'l2'), 0.),
            guidance=guidance)
    }, 'All `weights` of terms are 0') for guidance in (0., 1.)],
    ({
        'generate.generator.imitate': 'no'
    }, "`imitate` is 'no'; give True, False"),
    ({
        'generate.generator.betas': (1.5, .9)
    }, r'`betas\[0\]` is 1.5'),
    ({
        'generate.generator.weights': dict(l2=3e38)
    }, 'The loss of a generated image is .*lower `generate.generator.lr`'),
    ({
        'train_dataloader.dataset.pipeline': PIPELINES['cls'][:1]
    }, 'pipeline of the guides does not pack them'),
    ({
        'train_dataloader.dataset.pipeline': [
            PIPELINES['cls'][0], NORMALIZE, PIPELINES['cls'][-1]]
    }, 'images are normalised twice'),
])
def test_mistakes_leave_no_image(jobs, tmp_path, options, words):
    cfg, teacher = jobs['cls']
    cfg = deepcopy(cfg)
    cfg.merge_from_dict(options)
    with pytest.raises((ValueError, FileNotFoundError, TypeError),
                       match=words):
        generate(cfg, teacher, str(tmp_path / 'out'))
    assert not list(tmp_path.rglob('*.png'))


@pytest.mark.parametrize('loss', [
    dict(type='LabelSmoothLoss', label_smooth_val=.1),
    dict(type='CrossEntropyLoss')])
def test_a_teacher_that_learned_from_mixed_images(loss, jobs, tmp_path):
    cfg, teacher = jobs['cls']
    cfg = deepcopy(cfg)
    cfg.model.head.loss = loss
    cfg.model.data_preprocessor.num_classes = 2
    cfg.model.train_cfg = dict(augments=[dict(type='Mixup', alpha=.2)])
    report = generate(cfg, teacher, str(tmp_path / 'out'))
    assert report.made == 2 * NUM and np.isfinite(report.loss)


def test_a_config_without_generate_is_refused(jobs, tmp_path):
    cfg, teacher = jobs['cls']
    cfg = deepcopy(cfg)
    cfg.pop('generate')
    with pytest.raises(ValueError, match='no `generate`'):
        generate(cfg, teacher, str(tmp_path))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(ValueError, match='no folder of generated images'):
        GeneratedFolder(tmp_path, {}, [])
    (tmp_path / 'manifest.json').write_text('{"settings": {}')
    with pytest.raises(ValueError, match='is damaged'):
        GeneratedFolder(tmp_path, {}, [])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_label_map_of_another_size_is_refused(jobs, tmp_path):
    cfg, teacher = jobs['seg']
    cfg = deepcopy(cfg)
    load, annotations, pack = PIPELINES['seg']
    cfg.train_dataloader.dataset.pipeline = [
        load,
        dict(type='mmseg.Resize', scale=(28, 28), keep_ratio=False),
        annotations, pack
    ]
    cfg.generate.generator.iterations = 0
    cfg.generate.copies = 1
    with pytest.raises(ValueError, match='before the pipeline resizes'):
        generate(cfg, teacher, str(tmp_path / 'out'))


def test_copies_of_a_random_pipeline_are_drawn_by_the_seed(jobs):
    cfg, _ = jobs['cls']
    dataset = deepcopy(cfg.train_dataloader.dataset)
    dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmpretrain.RandomResizedCrop', scale=42),
        dict(type='mmpretrain.PackInputs')
    ]
    built = DATASETS.build(dataset)
    guides = Guides(built, Plan({}, copies=2))
    guides.check_copies(is_random=False)
    first = guides[0, 0][0]
    assert torch.equal(first, guides[0, 0][0])
    assert not torch.equal(first, guides[0, 1][0])
    other = Guides(built, Plan({}, copies=2, seed=1))
    assert not torch.equal(first, other[0, 0][0])


# --------------------------------------------------------------------- tool


def test_the_tool_makes_images_and_says_mistakes_in_a_sentence(
        jobs, tmp_path, capsys, monkeypatch):
    cfg, teacher = jobs['cls']
    cfg.dump(tmp_path / 'cfg.py')
    tool = runpy.run_path(str(ROOT / 'tools/generate.py'))
    args = [
        str(tmp_path / 'cfg.py'), '--teacher', teacher, '--out',
        str(tmp_path / 'out'), '--device', 'cpu', '--cfg-options',
        'generate.limit=1'
    ]
    tool['main'](args)
    assert len(list((tmp_path / 'out/images').rglob('*.png'))) == 2
    assert capsys.readouterr().out.startswith('2 images in')
    monkeypatch.setattr(sys, 'argv', ['generate.py'])
    with pytest.raises(SystemExit) as end:
        tool['run_cli'](lambda: tool['main']([*args, 'generate.seed=3']))
    assert end.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(
        f"Error: '{tmp_path}/out' holds images of other settings (of seed)")


def test_ctrl_c_ends_without_a_traceback(jobs, tmp_path, capsys, monkeypatch):

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(GuidedGenerator, 'generate', stop)
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: generate(*jobs['cls'], str(tmp_path / 'out')))
    assert end.value.code == 130
    assert 'Interrupted.' in capsys.readouterr().err
    assert not list(tmp_path.rglob('*.png'))
