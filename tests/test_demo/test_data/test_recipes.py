# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The demo's data: what is written, and that mm* reads it as it is."""

import hashlib
import itertools
import json
import runpy
import sys
from collections import Counter
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any, Dict, List

import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from vim_mm.demo.data import (Package, PreparationError, Recipe, default_out,
                              digits, digits_recipe, prepare, run_recipe,
                              solar_cells, solar_cells_recipe, tree_crowns,
                              tree_crowns_recipe)

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / 'configs/_base_/datasets/demo'
CONVERTERS = ROOT / 'tools/dataset_converters'
SMALL = tuple(replace(split, pictures=20) for split in digits.SPLITS)


def needs(*packages: Package) -> pytest.MarkDecorator:
    """Skip a test where a package that holds data is absent."""
    absent = [p.distribution for p in packages if not util.find_spec(p.module)]
    return pytest.mark.skipif(
        bool(absent), reason=f'needs the packages {absent}')


needs_digits = needs(digits.SKLEARN, digits.SKIMAGE)
needs_trees = needs(tree_crowns.DEEPFOREST)
needs_cells = needs(solar_cells.ELPV)


@pytest.fixture(scope='module')
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('demo')


@pytest.fixture(scope='module')
def digits_folder(demo_data: Path) -> Path:
    out = demo_data / 'digits_on_photographs'
    prepare(digits_recipe(splits=SMALL), out)
    return out


@pytest.fixture(scope='module')
def trees_folder(demo_data: Path) -> Path:
    out = demo_data / 'tree_crowns'
    prepare(tree_crowns_recipe(train_grid=3), out)
    return out


@pytest.fixture(scope='module')
def cells_folder(demo_data: Path) -> Path:
    out = demo_data / 'solar_cells'
    prepare(solar_cells_recipe(), out)
    return out


def fingerprint(folder: Path) -> Dict[str, str]:
    """Return the sha256 of every file below ``folder``."""
    return {
        str(path.relative_to(folder)):
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*') if path.is_file()
    }


def toy_recipe(text: str = 'a', fail: bool = False) -> Recipe:
    """Return a recipe that needs no data."""

    def write(folder: Path) -> Dict[str, Any]:
        (folder / 'file.txt').write_text(text)
        if fail:
            raise RuntimeError('disk full')
        return dict(train=dict(files=1))

    return Recipe('toy', (), dict(text=text), {}, (), write)


class TestPrepare:

    def test_second_run_reuses(self, tmp_path: Path) -> None:
        out = tmp_path / 'a' / 'toy'
        first, reused = prepare(toy_recipe(), out)
        assert not reused
        # a recipe that would fail if it were to write
        assert prepare(toy_recipe(fail=True), out) == (first, True)

    def test_other_settings_rebuild(self, tmp_path: Path) -> None:
        prepare(toy_recipe('a'), tmp_path / 'toy')
        manifest, reused = prepare(toy_recipe('b'), tmp_path / 'toy')
        assert not reused
        assert manifest['settings'] == dict(text='b')
        assert (tmp_path / 'toy/file.txt').read_text() == 'b'
        assert [p.name for p in tmp_path.iterdir()] == ['toy']

    @pytest.mark.parametrize('there', [False, True])
    def test_a_link_to_a_folder_stays_one(self, tmp_path: Path,
                                          there: bool) -> None:
        (tmp_path / 'disk').mkdir()
        (tmp_path / 'toy').symlink_to(tmp_path / 'disk')
        if there:
            prepare(toy_recipe('a'), tmp_path / 'toy')
        prepare(toy_recipe('b'), tmp_path / 'toy')
        assert (tmp_path / 'toy').is_symlink()
        assert (tmp_path / 'disk/file.txt').read_text() == 'b'
        assert sorted(p.name for p in tmp_path.iterdir()) == ['disk', 'toy']

    def test_lost_file_rebuilds(self, tmp_path: Path) -> None:
        prepare(toy_recipe(), tmp_path / 'toy')
        (tmp_path / 'toy/file.txt').unlink()
        assert not prepare(toy_recipe(), tmp_path / 'toy')[1]
        assert (tmp_path / 'toy/file.txt').exists()

    def test_failure_leaves_the_old_data(self, tmp_path: Path) -> None:
        prepare(toy_recipe('a'), tmp_path / 'toy')
        before = fingerprint(tmp_path)
        with pytest.raises(RuntimeError, match='disk full'):
            prepare(toy_recipe('b', fail=True), tmp_path / 'toy')
        assert fingerprint(tmp_path) == before
        assert [p.name for p in tmp_path.iterdir()] == ['toy']

    def test_foreign_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / 'mine.txt').write_text('mine')
        with pytest.raises(PreparationError, match='left alone'):
            prepare(toy_recipe(), tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ['mine.txt']

    def test_broken_manifest(self, tmp_path: Path) -> None:
        (tmp_path / 'manifest.json').write_text('{')
        with pytest.raises(PreparationError, match='delete'):
            prepare(toy_recipe(), tmp_path)

    def test_default_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv('VIM_MM_DEMO_DATA', raising=False)
        assert default_out('x') == Path('data/demo/x')
        monkeypatch.setenv('VIM_MM_DEMO_DATA', '/elsewhere')
        assert default_out('x') == Path('/elsewhere/x')

    def test_absent_package_is_one_sentence(
            self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        package = Package('no_such_module_1', 'pip install no-such==1',
                          'no-such')
        recipe = replace(toy_recipe(), packages=(package, ))
        assert run_recipe(recipe, tmp_path / 'toy') == 1
        printed = capsys.readouterr()
        assert printed.out == ''
        assert printed.err.count('\n') == 1
        assert 'run `pip install no-such==1`' in printed.err
        assert list(tmp_path.iterdir()) == []

    @needs_digits
    def test_absent_file_names_the_mend(self) -> None:
        with pytest.raises(PreparationError, match='no file .*pip install'):
            digits.SKLEARN.file('no/such/file')


class TestConverters:

    @pytest.mark.parametrize(
        'name', ['tree_crowns', 'solar_cells', 'digits_on_photographs'])
    def test_absent_package(self, name: str, tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture) -> None:
        monkeypatch.setattr(util, 'find_spec', lambda *args: None)
        monkeypatch.setattr(sys, 'argv', ['x', '--out', str(tmp_path / 'x')])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(CONVERTERS / f'{name}.py'), None, '__main__')
        assert stop.value.code == 1
        assert 'pip install' in capsys.readouterr().err

    @needs_cells
    def test_prints_one_line(self, cells_folder: Path,
                             monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture) -> None:
        monkeypatch.setattr(sys, 'argv', ['x', '--out', str(cells_folder)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(
                str(CONVERTERS / 'solar_cells.py'), None, '__main__')
        assert stop.value.code == 0
        printed = capsys.readouterr().out
        assert printed.count('\n') == 1
        assert 'solar_cells reused' in printed


def slow_clip(boxes: np.ndarray, x: int, y: int, tile: int,
              min_visible: float) -> List[List[int]]:
    """Clip integer boxes by counting pixels."""
    kept = []
    for x1, y1, x2, y2 in boxes.astype(int).tolist():
        inside = [(c - x, r - y) for c in range(x1, x2)
                  for r in range(y1, y2)
                  if x <= c < x + tile and y <= r < y + tile]
        if len(inside) >= min_visible * (x2 - x1) * (y2 - y1):
            cs, rs = zip(*inside)
            kept.append([min(cs), min(rs), max(cs) + 1, max(rs) + 1])
    return kept


class TestTreeCrowns:

    def test_clip_boxes(self) -> None:
        rng = np.random.default_rng(0)
        start = rng.integers(0, 90, (60, 2))
        boxes = np.hstack([start, start + rng.integers(1, 30, (60, 2))])
        boxes = boxes.astype(float)
        for x, y in [(0, 0), (40, 13), (60, 60)]:
            got = tree_crowns.clip_boxes(boxes, x, y, 40, 0.4)
            want = slow_clip(boxes, x, y, 40, 0.4)
            assert 0 < len(want) < 60
            assert got.tolist() == want

    @pytest.mark.parametrize('length', [300, 301, 400, 899, 1249, 2472])
    def test_starts(self, length: int) -> None:
        starts = tree_crowns.disjoint_starts(length, 300)
        assert len(starts) == length // 300
        assert starts[0] >= 0 and starts[-1] + 300 <= length
        assert all(b - a == 300 for a, b in itertools.pairwise(starts))
        covered = set()
        for start in tree_crowns.overlapping_starts(length, 300, 15):
            covered.update(range(start, start + 300))
        assert covered == set(range(length))

    @needs_trees
    def test_splits_share_no_picture(self, trees_folder: Path) -> None:
        pictures = {}
        for split in ('train', 'val', 'test'):
            coco = json.loads(
                (trees_folder / f'annotations/{split}.json').read_text())
            pictures[split] = {i['picture'] for i in coco['images']}
            names = {i['file_name'] for i in coco['images']}
            assert names == {
                p.name
                for p in (trees_folder / split).iterdir()
            }
        assert len(set.union(*pictures.values())) == 3
        assert all(len(names) == 1 for names in pictures.values())

    @needs_trees
    def test_tiles_and_boxes_are_those_of_the_picture(
            self, trees_folder: Path) -> None:
        name = tree_crowns.PICTURES['val']
        source = mmcv.imread(
            str(tree_crowns.DEEPFOREST.file(f'data/{name}.png')))
        boxes = tree_crowns.read_voc(
            tree_crowns.DEEPFOREST.file(f'data/{name}.xml'))
        assert len(boxes) == 279
        coco = json.loads((trees_folder / 'annotations/val.json').read_text())
        assert len(coco['images']) == 12
        for image in coco['images'][::5]:
            x, y = (int(part[1:])
                    for part in image['file_name'][:-4].split('_')[-2:])
            tile = mmcv.imread(str(trees_folder / 'val' / image['file_name']))
            crop = source[y:y + 300, x:x + 300]
            assert np.abs(tile.astype(int) - crop).mean() < 6
            got = [
                a['bbox'] for a in coco['annotations']
                if a['image_id'] == image['id']
            ]
            want = [[x1, y1, x2 - x1, y2 - y1]
                    for x1, y1, x2, y2 in slow_clip(boxes, x, y, 300, 0.4)]
            assert got == want


class TestSolarCells:

    @needs_cells
    def test_labels_and_blocks(self, cells_folder: Path) -> None:
        table = np.loadtxt(
            solar_cells.ELPV.file('data/labels.csv'), dtype=str)
        mono = table[table[:, 2] == 'mono']
        assert len(mono) == 1074
        seen = {}
        for path in cells_folder.rglob('*.jpg'):
            split, label = path.relative_to(cells_folder).parts[:2]
            assert path.stem not in seen
            seen[path.stem] = (split, label)
        assert len(seen) == len(mono)
        splits = [seen[Path(row[0]).stem][0] for row in mono]
        runs = [(k, len(list(g))) for k, g in itertools.groupby(splits)]
        # val is four whole stretches, so train and val meet at 8 borders
        assert [n for split, n in runs if split == 'val'] == [60] * 4
        for path, probability, _ in mono:
            label = 'defective' if float(probability) > 0.5 else 'functional'
            assert seen[Path(path).stem][1] == label

    @needs_cells
    def test_both_parts_hold_both_classes(self, cells_folder: Path) -> None:
        counts = json.loads(
            (cells_folder / 'manifest.json').read_text())['counts']
        for part in counts.values():
            share = part['defective'] / sum(part.values())
            assert 0.25 < share < 0.5

    @needs_cells
    def test_picture(self, cells_folder: Path) -> None:
        path = next(cells_folder.rglob('cell0001.jpg'))
        picture = mmcv.imread(str(path), 'unchanged')
        source = mmcv.imread(
            str(solar_cells.ELPV.file('data/images/cell0001.png')),
            'grayscale')
        mean = source.reshape(150, 2, 150, 2).mean((1, 3))
        assert picture.shape == (150, 150)
        assert np.abs(picture - mean).mean() < 2


def slow_box(mask: np.ndarray) -> List[int]:
    """Return x, y, width, height by looking at every row and column."""
    columns = [c for c in range(mask.shape[1]) if mask[:, c].any()]
    rows = [r for r in range(mask.shape[0]) if mask[r].any()]
    return [
        columns[0], rows[0], columns[-1] - columns[0] + 1,
        rows[-1] - rows[0] + 1
    ]


class TestDigits:

    def test_training_and_test_splits_share_nothing(self) -> None:
        splits = {split.name: split for split in digits.SPLITS}
        order = ('midstream', 'midstream_val', 'fewshot', 'test')
        ranges = [splits[name].digits for name in order]
        assert ranges[0][0] == 0 and ranges[-1][1] == 1797
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
        grounds = [
            set(splits[name].photographs)
            for name in ('midstream', 'fewshot', 'test')
        ]
        assert len(set.union(*grounds)) == sum(map(len, grounds))
        for kind in ('fewshot', 'test'):
            other = splits[f'det_{kind}']
            assert other.digits == splits[kind].digits
            assert other.photographs == splits[kind].photographs
        assert len({split.stream for split in digits.SPLITS}) == 6

    @needs_digits
    def test_ranges_end_where_a_form_ends(self) -> None:
        from sklearn.datasets import load_digits
        target = load_digits().target
        # a form starts with three rows of the ten digits in order, of which
        # a few digits may be missing
        rows = np.tile(np.arange(10), 3)
        forms = {
            i
            for i in range(len(target) - 29)
            if (target[i:i + 30] == rows).sum() >= 26
        }
        assert len(forms) < 15
        starts = {split.digits[0] for split in digits.SPLITS}
        assert starts == {0, 905, 1029, 1415}
        assert starts <= forms

    @needs_digits
    def test_same_seed_same_bytes(self, tmp_path: Path,
                                  digits_folder: Path) -> None:
        prepare(digits_recipe(splits=SMALL), tmp_path / 'again')
        prepare(digits_recipe(seed=1, splits=SMALL), tmp_path / 'other')
        first = fingerprint(digits_folder)
        assert fingerprint(tmp_path / 'again') == first
        other = fingerprint(tmp_path / 'other')
        assert other.keys() == first.keys()
        assert all(other[name] != first[name] for name in first
                   if name.endswith('.jpg'))

    @needs_digits
    @pytest.mark.parametrize('split', SMALL, ids=lambda split: split.name)
    def test_three_label_kinds_agree(self, digits_folder: Path,
                                     split: digits.Split) -> None:
        from sklearn.datasets import load_digits
        target = load_digits().target
        folder = digits_folder / split.name
        coco = json.loads((folder / 'coco.json').read_text())
        assert len(coco['images']) == 20
        boxes: Dict[int, list] = {i['id']: [] for i in coco['images']}
        for box in coco['annotations']:
            boxes[box['image_id']].append(box)
            assert split.digits[0] <= box['digit'] < split.digits[1]
            assert target[box['digit']] == box['category_id'] - 1
        for image in coco['images']:
            assert image['photograph'] in split.photographs
            path = folder / 'img' / image['file_name']
            assert mmcv.imread(str(path)).shape == (split.side, split.side, 3)
            labels = mmcv.imread(
                str(folder / 'ann' / f'{path.stem}.png'), 'unchanged')
            ours = boxes[image['id']]
            assert split.per_picture[0] <= len(ours) <= split.per_picture[1]
            values = np.zeros_like(labels)
            for box in ours:
                x, y, w, h = box['bbox']
                part = np.s_[y:y + h, x:x + w]
                mask = np.zeros(labels.shape, bool)
                mask[part] = labels[part] == box['category_id']
                assert slow_box(mask) == box['bbox']
                assert mask.sum() == box['area']
                values[mask] = box['category_id']
            # what lies outside all boxes is background
            assert np.array_equal(values, labels)

    @needs_digits
    def test_class_lists(self, tmp_path: Path) -> None:
        few = next(s for s in digits.SPLITS if s.name == 'fewshot')
        prepare(digits_recipe(splits=(few, )), tmp_path / 'd')
        folder = tmp_path / 'd/fewshot'
        coco = json.loads((folder / 'coco.json').read_text())
        lines = (folder / 'cls.txt').read_text().splitlines()
        assert lines == [
            f'{i["file_name"]} {a["category_id"] - 1}'
            for i, a in zip(coco['images'], coco['annotations'])
        ]
        for count in (5, 20):
            part = (folder / f'cls_{count}.txt').read_text().splitlines()
            assert part == lines[:10 * count]
            classes = Counter(line.split()[1] for line in part)
            assert classes == {str(c): count for c in range(10)}
            # the few pictures show different digits
            used = [a['digit'] for a in coco['annotations'][:10 * count]]
            assert len(set(used)) == len(used)
        stems = (folder / 'seg_200.txt').read_text().splitlines()
        assert stems == [line.split('.')[0] for line in lines[:200]]

    def test_compose(self) -> None:
        rng = np.random.default_rng(0)
        ground = rng.uniform(0, 255, (120, 120, 3)).astype(np.float32)
        images = np.zeros((3, 8, 8))
        images[:, 1:7, 2:6] = 16
        picture, masks = digits.compose(rng, ground, images, np.arange(3),
                                        (30, 50))
        assert masks.sum(0).max() == 1
        plain = ground.round().astype(np.uint8)
        for mask in masks:
            x, y, w, h = slow_box(mask)
            # 6 of 8 rows and 4 of 8 columns of the cell are inked
            assert abs(h / w - 6 / 4) < 0.15
            colours = picture[y + 3:y + h - 3, x + 3:x + w - 3]
            assert (colours == colours[0, 0]).all()
            distance = np.linalg.norm(colours[0, 0] - ground[mask].mean(0))
            assert distance > digits.COLOUR_DISTANCE - 1
            # the soft edge reaches a little beyond the mask
            plain[y - 4:y + h + 4, x - 4:x + w + 4] = (
                picture[y - 4:y + h + 4, x - 4:x + w + 4])
        assert np.array_equal(plain, picture)


@pytest.mark.parametrize(
    'name, folder, side',
    [
        pytest.param('tree_crowns', 'trees_folder', 196, marks=needs_trees),
        pytest.param('solar_cells', 'cells_folder', 98, marks=needs_cells),
        *(pytest.param(
            f'digits_{kind}{suffix}', 'digits_folder', side,
            marks=needs_digits) for kind, suffix, side in (
                ('cls', '', 98), ('cls', '_fewshot', 98),
                ('seg', '', 98), ('seg', '_fewshot', 98),
                ('det', '', 98), ('det', '_fewshot', 168))),
    ])
def test_config_reads_the_data(name: str, folder: str, side: int,
                               request: pytest.FixtureRequest,
                               demo_data: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    request.getfixturevalue(folder)
    monkeypatch.setenv('VIM_MM_DEMO_DATA', str(demo_data))
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    with DefaultScope.overwrite_default_scope('vim_mm'):
        preprocessor = MODELS.build(cfg.data_preprocessor)
        for part in ('train', 'val', 'test'):
            loader = Runner.build_dataloader(
                cfg[f'{part}_dataloader'], seed=0)
            batch = preprocessor(next(iter(loader)), part == 'train')
            inputs = batch['inputs']
            assert inputs.shape[1:] == (3, side, side)
            assert inputs.isfinite().all() and inputs.abs().max() < 5
            assert labels_of(batch['data_samples'])
            if part != 'train':
                Evaluator(cfg[f'{part}_evaluator'])


def labels_of(samples: list) -> List[int]:
    """Return all labels in a batch of any of the three tasks."""
    found = set()
    for sample in samples:
        for key, name in (('gt_label', None), ('gt_instances', 'labels'),
                          ('gt_sem_seg', 'data')):
            if key in sample:
                label = sample.get(key)
                label = getattr(label, name) if name else label
                found.update(label.unique().tolist())
    return sorted(found)
