# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From one's own data to a config: what is found, refused and written."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from _own_data import (HERE, NUM, boxes, copy_some, real, run, write_data,
                       write_trunk)
from _speed import format_code
from mmengine.config import Config
from PIL import Image

import vim_mm
from _tiny import KINDS, first_of
from vim_mm.apis.new_task import known_trunks, new_task, read_data
from vim_mm.apis.new_task.own_data import held_out
from vim_mm.apis.new_task.own_trunk import OwnTrunk, find_trunk
from vim_mm.apis.new_task.plan import FEWEST, Pace, given_pace, make_plan
from vim_mm.apis.new_task.task import choose_size
from vim_mm.zoo import Zoo

if not (Path(vim_mm.__file__).parent / '.mim').exists():
    pytest.skip('vim_mm runs from a source tree; install it',
                allow_module_level=True)

DATA = dict(
    cls=dict(folder='photos'),
    det=dict(coco=['cells/train.json', 'cells/val.json']),
    seg=dict(
        images=['street/img'],
        labels='street/maps',
        classes=['street/classes.txt']))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, which commands run in."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    return tmp_path


# ------------------------------------------------------------ what is found


def test_boxes(project: Path) -> None:
    data = read_data(**DATA['det'])
    assert data.classes == ['red', 'white'] and data.size == (48, 64)
    assert data.train.num == data.val.num == NUM // 2
    assert any("without a box in train.json" in note for note in data.notes)
    assert data.train.dataset['data_prefix']['img'] == Path('cells/images')


def test_one_json_is_split(project: Path) -> None:
    data = read_data(coco=['cells/train.json'])
    parts = [json.loads(data.files[name])
             for name in ('train.json', 'val.json')]
    ids = [{image['id'] for image in part['images']} for part in parts]
    assert not ids[0] & ids[1] and ids[0] | ids[1] == set(range(NUM // 2))
    assert (data.train.num, data.val.num) == tuple(map(len, ids))
    for part, own in zip(parts, ids):
        assert {box['image_id'] for box in part['annotations']} == own


def test_what_mmdet_reads_is_filled_in(project: Path) -> None:
    bare = boxes(range(NUM // 2))
    for box in bare['annotations']:
        del box['area'], box['iscrowd'], box['id']
    for image in bare['images']:
        del image['width'], image['height']
    Path('cells/train.json').write_text(json.dumps(bare))
    data = read_data(**DATA['det'])
    whole = json.loads(data.files['train.json'])
    assert whole['annotations'][0] == dict(
        boxes(range(1))['annotations'][0], id=1)
    assert whole['images'] == boxes(range(NUM // 2))['images']
    assert any('`area`' in note for note in data.notes)


def test_folders_with_and_without_splits(project: Path) -> None:
    data = read_data(folder='photos')
    assert data.classes == ['blue', 'red'] and not data.files
    assert (data.train.num, data.val.num) == (NUM // 2, NUM // 2)
    data = read_data(folder='photos/train')
    lines = [data.files[name].splitlines() for name in
             ('train.txt', 'val.txt')]
    assert lines[1] and {line.split()[1] for line in lines[0]} == {'0', '1'}
    assert all(Path('photos/train', line.rsplit(' ', 1)[0]).is_file()
               for part in lines for line in part)


def test_label_maps(project: Path) -> None:
    data = read_data(**DATA['seg'])
    assert data.classes == ['road', 'car']
    assert data.train.dataset['seg_map_suffix'] == '_mask.png'
    names = [data.files[name].split() for name in ('train.txt', 'val.txt')]
    assert sorted(sum(names, [])) == list(map(str, range(NUM)))
    assert not set(names[0]) & set(names[1])


@pytest.mark.parametrize('text,names', [
    ('["road", "car"]', ['road', 'car']),
    ('{"classes": ["road", "car"]}', ['road', 'car']),
    ('[{"name": "road", "color": [1, 2, 3]}, '
     '{"name": "car", "color": [4, 5, 6]}]', ['road', 'car']),
])
def test_classes_from_json(text: str, names: list, project: Path) -> None:
    Path('classes.json').write_text(text)
    data = read_data(**{**DATA['seg'], 'classes': ['classes.json']})
    assert data.classes == names
    assert (data.palette == [[1, 2, 3], [4, 5, 6]]) == ('color' in text)


def test_a_draw_has_two_parts() -> None:
    for number in (2, 3, 10, 101):
        first, second = held_out(range(number))
        assert second and sorted(first + second) == list(range(number))
        assert held_out(range(number)) == (first, second)


# ---------------------------------------------------------- what is refused


def change_boxes(change: Callable[[dict], object]) -> Callable[[], None]:
    """Something that changes the json to learn from."""

    def edit() -> None:
        path = Path('cells/train.json')
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return edit


def each_box(**values: object) -> Callable[[], None]:
    return change_boxes(
        lambda data: [box.update(values) for box in data['annotations']])


def paint(path: str, *values: int) -> Callable[[], None]:
    def edit() -> None:
        array = np.zeros((48, 64), np.uint8)
        for row, value in enumerate(values):
            array[row] = value
        for file in Path(path).parent.glob(Path(path).name):
            Image.fromarray(array).save(file)

    return edit


def touch(path: str, content: bytes = b'') -> Callable[[], None]:
    def edit() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)

    return edit


WRONG = [
    ('det', touch('cells/train.json', b'{'), 'train.json is no valid JSON'),
    ('det', touch('cells/train.json', b'[]'), "not in COCO's format"),
    ('det', lambda: Path('cells/val.json').unlink(), 'no file cells/val.json'),
    ('det', lambda: Path('cells/images/1.png').unlink(),
     'Of the 4 images of cells/train.json, 1 are not there, such as '
     'cells/images/1.png; name their folder by --images'),
    ('det', touch('cells/images/2.png'), 'images/2.png is empty'),
    ('det', touch('cells/images/0.png', b'no image'), '0.png is damaged'),
    ('det', change_boxes(lambda d: d['images'].clear()), 'lists no images'),
    ('det', change_boxes(lambda d: d['annotations'].clear()),
     'Of the 0 boxes of cells/train.json none'),
    ('det', each_box(bbox=[.1, .1, .2, .2]), 'a pixel or larger'),
    ('det', each_box(bbox=[900, 900, 20, 20]), 'inside its image'),
    ('det', each_box(bbox=[1, 2]), r'has the bbox \[1, 2\]'),
    ('det', each_box(image_id=77), '4 annotations .* image_id such as 77'),
    ('det', each_box(category_id=9), 'category_id such as 9'),
    ('det', each_box(id=5), 'two annotations one id, such as 5'),
    ('det', change_boxes(lambda d: [c.update(name='x')
                                    for c in d['categories']]),
     'names x twice'),
    ('det', change_boxes(lambda d: d['categories'].reverse()),
     'in another order'),
    ('det', change_boxes(lambda d: d['categories'][1].update(name='new')),
     'does not list the categories new'),
    ('cls', lambda: shutil.rmtree('photos/val/red'),
     'do not hold the same classes: one lacks red'),
    ('cls', lambda: shutil.rmtree('photos/val'), 'no other split beside it'),
    ('cls', touch('photos/train/red/x.png'), 'x.png is empty'),
    ('cls', touch('photos/train/.ipynb_checkpoints/x.png'),
     'would be taken for a class'),
    ('cls', touch('photos/train/green/x.txt'), 'train/green has no image'),
    ('cls', lambda: [shutil.rmtree(f'photos/{split}/red')
                     for split in ('train', 'val')], 'one class, blue'),
    ('seg', paint('street/maps/1_mask.png', 0, 1, 2),
     'street/maps/1_mask.png holds the value 2, and the 2 classes go from 0 '
     'to 1, 255 for none; if 0 is background, name it first'),
    ('seg', paint('street/maps/1_mask.png', 0, 7), 'holds the value 7'),
    ('seg', paint('street/maps/*.png', 0, 255), 'write 1 in its place'),
    ('seg', paint('street/maps/*.png', 0), 'nothing to tell apart'),
    ('seg', lambda: Path('street/maps/0_mask.png').unlink(),
     'street/img/0.png has no label map'),
    ('seg', lambda: Path('street/maps/3_mask.png').unlink(),
     'such as street/maps/3_mask.png; each image NAME.png has a label map'),
    ('seg', lambda: Image.new('RGB', (64, 48)).save('street/maps/2_mask.png'),
     'is an image of mode RGB'),
    ('seg', lambda: Image.new('L', (8, 8)).save('street/maps/2_mask.png'),
     'has 8x8 px, and its image 64x48'),
    ('seg', touch('street/maps/2_mask.png'), '2_mask.png is empty'),
    ('seg', lambda: Path('street/img/0.png').rename('street/img/0.jpg'),
     'end in .jpg, .png'),
    ('seg', touch('street/classes.txt', b'road\nroad\n'), 'road twice'),
    ('seg', touch('street/classes.txt', b'\n'), 'names no class'),
]


@pytest.mark.parametrize('kind,spoil,said', WRONG,
                         ids=[said for *_, said in WRONG])
def test_one_sentence_says_what_is_wrong(
        kind: str, spoil: Callable[[], object], said: str,
        project: Path) -> None:
    read_data(**DATA[kind])
    spoil()
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        read_data(**DATA[kind])
    assert re.match(r'[^\n]*\.( \w.*)?$', str(caught.value))
    assert type(caught.value).__module__.startswith('vim_mm') or isinstance(
        caught.value, FileNotFoundError)


@pytest.mark.parametrize('given,said', [
    (dict(), 'in one way'),
    (dict(folder='photos', coco=['cells/train.json']), 'in one way'),
    (dict(folder='photos', classes=['a']), '--classes is for label maps'),
    (dict(folder='photos', images=['x']), '--images belongs to'),
    (dict(folder='nowhere'), 'no folder nowhere'),
    (dict(labels='street/maps'), '--labels needs one folder of images'),
    (dict(labels='street/maps', images=['street/img']),
     r'hold the numbers 0, 1; name their classes'),
    (dict(labels='street', images=['street/img']), 'no label map'),
    (dict(coco=['cells/train.json'] * 3), '--coco takes one json'),
    (dict(coco=['cells/train.json'], images=['nowhere']), 'no folder nowhere'),
])
def test_data_are_named_in_one_way(given: dict, said: str,
                                   project: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read_data(**given)


@pytest.mark.parametrize('given,said', [
    (dict(trunk='dinov3_vit-s14'), 'did you mean dinov3_vit-s16'),
    (dict(trunk='empty.py'), 'has no `trunk`'),
    (dict(trunk='tokens.py'), 'gives no maps'),
    (dict(trunk='typo.py'), 'cannot be built'),
    (dict(out='task.txt'), 'end in .py'),
    (dict(out='my_trunk.py'), 'is there already'),
    (dict(minutes=0), '--minutes 0'),
    (dict(images_a_second=-1), '--images-per-second -1'),
    (dict(shots=0), '`--shots` is 0'),
    (dict(shots=1, indices=1), 'give one of both'),
    (dict(name='../x'), 'cannot name a module'),
    (dict(size=20), 'less than two patches'),
])
def test_settings_that_do_not_fit(given: dict, said: str,
                                  project: Path) -> None:
    write_trunk(project)
    Path('empty.py').write_text('x = 1\n')
    text = Path('my_trunk.py').read_text()
    Path('tokens.py').write_text(text.replace('featmap', 'raw'))
    Path('typo.py').write_text(text.replace('VisionTransformer', 'ViTT'))
    before = sorted(project.rglob('*'))
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        new_task(
            read_data(folder='photos/train'),
            **{
                **dict(trunk='my_trunk.py', out='x.py', images_a_second=1.),
                **given
            })
    assert sorted(project.rglob('*')) == before


def test_nothing_stays_of_what_cannot_be_measured(
        project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trunk(project)
    before = sorted(project.rglob('*'))

    def fail(_: Config) -> Pace:
        raise RuntimeError('out of memory')

    monkeypatch.setattr('vim_mm.apis.new_task.task.measure', fail)
    with pytest.raises(RuntimeError):
        new_task(read_data(folder='photos/train'), 'my_trunk.py', 'x.py')
    assert sorted(project.rglob('*')) == before


# ------------------------------------------------- files that were cut off

#: Two files of each kind, of both splits or of images and label maps.
SPOILT = dict(
    cls=['photos/train/red/0.png', 'photos/val/blue/5.png'],
    det=['cells/images/0.png', 'cells/images/5.png'],
    seg=['street/img/6.png', 'street/maps/3_mask.png'])


def spoil(path: str, way: str) -> None:
    """Leave the first part of a file, or write something else behind it."""
    file = Path(path)
    if way.startswith('JPEG') and 'maps' not in path:
        with Image.open(file) as image:
            image.save(file, 'JPEG')
    whole = file.read_bytes()
    first = whole[:len(whole) * 2 // 3]
    filled = bytes(len(whole) - len(first)) if way.endswith('filled') else b''
    file.write_bytes(first + filled)


@pytest.mark.parametrize('way', ['PNG', 'JPEG', 'PNG, filled',
                                 'JPEG, filled'])
@pytest.mark.parametrize('kind', KINDS)
def test_files_that_were_cut_off(kind: str, way: str, project: Path) -> None:
    for path in SPOILT[kind]:
        spoil(path, way)
    fix = 'is damaged, or no image; write it again, or take it out of the data'
    with pytest.raises(ValueError, match='cannot be read') as caught:
        read_data(**DATA[kind])
    first, *lines = str(caught.value).splitlines()
    assert first.startswith('2 of ') and len(lines) == 2
    for path, line in zip(SPOILT[kind], lines):
        assert line == f'The file {path} {fix} set.'


def test_many_files_that_were_cut_off(project: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('vim_mm.apis.new_task.own_data.SHOWN', 2)
    for path in Path('photos').rglob('*.png'):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError) as caught:
        read_data(**DATA['cls'])
    lines = str(caught.value).splitlines()
    assert lines[0] == f'{NUM} of {NUM} images cannot be read.'
    assert len(lines) == 4 and lines[-1] == f'… and {NUM - 2} more.'


def test_whole_files_are_not_decoded(project: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr('vim_mm.apis.new_task.own_data.flaw_of',
                        lambda path: decoded.append(path))
    with open('cells/images/2.png', 'ab') as file:
        file.write(b'more')  # some cameras do so
    read_data(**DATA['det'])
    assert decoded == ['cells/images/2.png']
    monkeypatch.undo()
    monkeypatch.chdir(project)
    read_data(**DATA['det'])


# ---------------------------------------------------------- what is written


def trunk_with(strides: list, size: tuple = None) -> OwnTrunk:
    return OwnTrunk(Path('t.py'), None, {}, True, strides, size, None)


def test_sizes_are_whole_patches(project: Path) -> None:
    cls, det = (read_data(**DATA[kind]) for kind in ('cls', 'det'))
    assert choose_size(cls, trunk_with([14] * 4), None) == 112
    assert choose_size(det, trunk_with([4, 8, 16, 32]), None) == 128
    assert choose_size(det, trunk_with([14]), 300) == 294
    assert choose_size(det, trunk_with([16], (256, 256)), None) == 256
    det.size = (3000, 4000)
    assert choose_size(det, trunk_with([16]), None) == 448
    for size in ((256, 128), (256, 256)):
        with pytest.raises(ValueError, match=f'{size[0]}x{size[1]} px alone'):
            choose_size(det, trunk_with([16], size), 64)


def test_a_budget_is_shared() -> None:
    pace = Pace(train=4., judge=10., source='')
    plan = make_plan(10, pace, 1000, 100)
    assert plan.minutes == pytest.approx(10, rel=.05)
    assert 20 < plan.max_iters < 300 and plan.val_interval * 3 >= \
        plan.max_iters
    longer = make_plan(20, pace, 1000, 100)
    assert longer.max_iters > 1.8 * plan.max_iters
    # judging alone takes longer than there is time
    slow = make_plan(1, pace, 1000, 5000)
    assert slow.minutes > 10 and slow.val_interval == slow.max_iters
    few = make_plan(600, pace, 5, 5)
    assert few.batch_size == 5 and few.max_iters == 1000
    assert make_plan(.01, given_pace(.1), 9, 1).max_iters == FEWEST


@pytest.mark.parametrize('kind', KINDS)
def test_a_measured_config_trains_as_it_is(kind: str, project: Path,
                                           monkeypatch: Any) -> None:
    monkeypatch.setattr('vim_mm.apis.new_task.text.FormatCode', format_code)
    write_trunk(project)
    task = new_task(
        read_data(**DATA[kind]), 'my_trunk.py', 'my task.py', minutes=.02)
    assert task.name == 'my-task' and task.pace.startswith('measured here')
    assert not list(project.glob('.*'))
    text = task.config.read_text()
    assert str(project) not in text  # it may be moved with its data
    cfg = Config.fromfile(task.config)
    assert cfg.default_scope == dict(
        cls='mmpretrain', det='mmdet', seg='mmseg')[kind]
    assert cfg.train_cfg.max_iters == cfg.param_scheduler.total_steps
    assert max(map(len, text.splitlines())) < 120


def test_few_shots_and_indices(project: Path) -> None:
    write_trunk(project)
    settings = dict(trunk='my_trunk.py', images_a_second=1.)
    data = read_data(**DATA['det'])
    task = new_task(data, out='a.py', shots=1, **settings)
    cfg = Config.fromfile(task.config)
    assert cfg.train_dataloader.dataset.type == 'vim_mm.FewShot'
    assert task.plan.num_train == 2
    task = new_task(data, out='b.py', indices=3, **settings)
    assert Config.fromfile(task.config).train_dataloader.dataset.indices == 3
    assert task.plan.num_train == cfg.train_dataloader.get('batch_size') + 1


#: Trunks of other shapes: a pyramid, and a ViT of timm.
TRUNKS = dict(
    resnet="dict(type='mmdet.ResNet', depth=18, base_channels=8, "
    'stem_channels=8, out_indices=(0, 1, 2, 3))',
    timm="dict(type='mmpretrain.TIMMBackbone', model_name='test_vit', "
    'features_only=True, out_indices=(0, 1), dynamic_img_size=True)')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('trunk', TRUNKS)
def test_trunks_of_all_shapes(trunk: str, kind: str, project: Path) -> None:
    Path('t.py').write_text(f'trunk = {TRUNKS[trunk]}\n')
    task = new_task(
        read_data(**DATA[kind]), 't.py', 'x.py', minutes=.01, size=64)
    assert task.plan.max_iters >= FEWEST
    assert any('`trunk_normalization`' in note for note in task.notes)


def test_slots_of_a_class_without_known_ones(project: Path) -> None:
    trunk = ("trunk = dict(type='mmpretrain.MobileNetV3', arch='small', "
             'out_indices=(3, 8))\n')
    data = read_data(**DATA['det'])
    Path('t.py').write_text(trunk)
    with pytest.raises(ValueError, match='slots are known for MobileNetV3'):
        new_task(data, 't.py', 'x.py', minutes=.01, size=64)
    assert not list(project.glob('*x*.py'))
    Path('t.py').write_text(trunk + r"slots = r'layer[4-6]'" + '\n')
    task = new_task(data, 't.py', 'x.py', minutes=.01, size=64)
    assert Config.fromfile(task.config).model.backbone.slots == 'layer[4-6]'
    whole = ("model = dict(type='mmdet.FCOS', backbone=dict(type='vim_mm."
             "ViMBackbone', slots='layer5', " + trunk.strip() + '))\n')
    Path('t.py').write_text(whole)
    assert find_trunk('t.py', 'mmdet').slots == 'layer5'


def test_a_trunk_inside_a_whole_config(project: Path) -> None:
    Path('t.py').write_text(
        "default_scope = 'mmdet'\nmodel = dict(type='FCOS', backbone=dict("
        "type='ResNet', depth=18, out_indices=(1, 2, 3)))\n")
    found = find_trunk('t.py', 'mmseg')
    assert found.cfg.type == 'mmdet.ResNet' and found.base is None
    assert found.strides == [8, 16, 32] and not found.is_plain


def test_missing_weights_are_a_note(project: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('VIM_MM_WEIGHTS', str(project / 'nowhere'))
    assert 'mobilenet_v2' in known_trunks()
    task = new_task(
        read_data(folder='photos'), 'mobilenet_v2', 'x.py', images_a_second=1.)
    assert any('nowhere/mobilenet_v2.safetensors yet' in note
               for note in task.notes)
    assert 'vim_mm::_base_/trunks/mobilenet_v2.py' in task.config.read_text()


# ----------------------------------------------------------- with real data


def real_cls(folder: Path) -> str:
    for split, number in (('train', 3), ('val', 2)):
        for source in sorted((real('clothing') / split).iterdir())[:3]:
            names = sorted(path.name for path in source.iterdir())[:number]
            copy_some(source, folder / 'photos' / split / source.name, names)
    return '--folder photos'


def real_det(folder: Path) -> str:
    files = []
    for split, number in (('train', 24), ('val', 4)):
        root = real('coco')
        data = json.loads(
            (root / f'annotations/boxes_{split}2017.json').read_bytes())
        data['images'] = data['images'][:number]
        ids = {image['id'] for image in data['images']}
        data['annotations'] = [box for box in data['annotations']
                               if box['image_id'] in ids]
        copy_some(root / f'{split}2017', folder / f'{split}2017',
                  [image['file_name'] for image in data['images']])
        (folder / f'{split}.json').write_text(json.dumps(data))
        files.append(f'{split}.json')
    return f'--coco {" ".join(files)}'


def real_seg(folder: Path) -> str:
    for split, number in (('train', 6), ('val', 3)):
        images = real('camvid') / 'img' / split
        names = sorted(path.name for path in images.iterdir())[:number]
        copy_some(images, folder / 'img' / split, names)
        maps = [f'{Path(name).stem}.png' for name in names]
        copy_some(
            real('camvid') / 'ann' / split, folder / 'ann' / split, maps)
    return ('--images img --labels ann --classes sky building pole road '
            'pavement tree sign fence car pedestrian bicyclist')


@pytest.mark.parametrize('kind', first_of(KINDS))
def test_from_real_data_to_a_zoo(kind: str, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    given = globals()[f'real_{kind}'](tmp_path)
    write_trunk(tmp_path)
    run(f'vim-mm new-task {given} --trunk my_trunk.py --out mine.py '
        "--size 112 --minutes .01 --licence 'CC BY 4.0'")
    said = capsys.readouterr().out
    checkpoint = re.search(r'vim-mm test mine.py (\S+)', said)[1]
    run('vim-mm train mine.py', HERE)
    run(f'vim-mm test mine.py {checkpoint}', HERE)
    run('vim-mm zoo add other work_dirs/zoo/mine')
    card = Zoo('other').card('mine')
    assert card.task == kind and card.licence == 'CC BY 4.0'
    assert card.classes == list(Config.fromfile('mine.py').classes)
    assert card.image_size == [112, 112]
    assert kind == 'det' or card.metrics  # no box may be found yet
    assert all(math.isfinite(m['value']) for m in card.metrics)
    capsys.readouterr()
    run('vim-mm rank mine.py --zoo other --json', HERE)
    scores = json.loads(capsys.readouterr().out)['scores']
    assert set(scores) == {'mine', 'frozen trunk'}
