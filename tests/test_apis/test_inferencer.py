# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Three tasks on one trunk answer as their own models would alone."""

import gc
import json
import re
import weakref
from copy import deepcopy
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from typing import Dict, List, Tuple

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset, transforms
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from mmengine.visualization import Visualizer
from mmpretrain.structures import DataSample
from torch import Tensor

from _tiny import (DIMS, KINDS, SCOPES, SIZE, add_modules, build_backbone,
                   fill, fusion_neck, model_cfg, save_trunk)
from vim_mm.apis import ViMInferencer
from vim_mm.apis.inputs import file_names, list_requests
from vim_mm.apis.results import Painter, describe, words
from vim_mm.apis.served_data import colours
from vim_mm.apis.sharing import memory, tensors
from vim_mm.registry import INFERENCERS
from vim_mm.zoo import save_module

ROOT = Path(__file__).resolve().parents[2]
NAMES = ['a', 'b', 'c']
CLASSES = dict(cls=['red', 'white'], det=['square'], seg=['ground', 'square'])
#: Every task reads the trunk its own way, and knows modules of its own. Bare
#: types are those of its library, by the config's default scope.
TRUNK = dict(
    cls=dict(out_indices=[0, 2], out_type='raw'),
    det=dict(out_indices=[0, 1, 2]),
    seg=dict(out_indices=[1, 2]))
MODULES = dict(cls=['a', 'b', 'c'], det=['b', 'c'], seg=['c', 'a'])
PACK = dict(
    cls=[dict(type='PackInputs')],
    det=[
        dict(type='Resize', scale_factor=1., keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs')
    ],
    seg=[
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs')
    ])
DATASET = dict(
    cls='mmpretrain.CustomDataset',
    det='mmdet.CocoDataset',
    seg='mmseg.BaseSegDataset')


def task_config(kind: str, folder: Path, **backbone) -> Config:
    """A downstream config of a task, as a user would write it."""
    trunk = dict(save_trunk(folder / 'trunk.pth'), **TRUNK[kind])
    if kind == 'cls':
        width = 2 * 3 * DIMS
        neck = dict(type='vim_mm.StandardizedPooling', in_channels=width)
    else:
        neck = fusion_neck(kind)
        levels = range(len(TRUNK[kind]['out_indices']))
        neck.update(in_channels=[DIMS] * len(levels), sources=[list(levels)])
    backbone = dict(
        dict(
            trunk=trunk,
            zoo=str(folder / 'zoo'),
            modules=MODULES[kind],
            fusion=dict(type='EnsMoE', tasks=[kind])), **backbone)
    model = model_cfg(kind, backbone, neck)
    if kind == 'cls':
        model.head.in_channels = width
    # beside the model, as the demo's configs have it
    preprocessor = model.pop('data_preprocessor')
    if kind == 'seg':
        preprocessor.update(size=None, test_cfg=dict(size_divisor=14))
    return Config(
        dict(
            default_scope=SCOPES[kind],
            model=model,
            data_preprocessor=preprocessor,
            visualizer=dict(type='Visualizer'),
            test_dataloader=dict(
                dataset=dict(
                    type=DATASET[kind],
                    metainfo=dict(classes=CLASSES[kind]),
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        *PACK[kind]
                    ]))))


def own_model(cfg: Config, checkpoint: str = None) -> torch.nn.Module:
    """The task's model alone, by the field's own means."""
    init_default_scope(cfg.default_scope)
    model = ROOT_MODELS.build(
        dict(deepcopy(cfg.model), data_preprocessor=cfg.data_preprocessor))
    if checkpoint is not None:
        state = torch.load(checkpoint, weights_only=True)['state_dict']
        model.load_state_dict(state)
    return model.eval()


def save_task(kind: str, folder: Path, seed: int, heads: List[str] = (),
              **backbone) -> tuple:
    """A config file and what a training might have left."""
    cfg = task_config(kind, folder, **backbone)
    if heads:  # of a detector
        cfg.model.bbox_head = dict(
            type='vim_mm.TaskHeads',
            heads={task: cfg.model.bbox_head for task in heads})
    model = own_model(cfg)
    fill(model.backbone.fusion, 1., seed)
    for part in ('neck', 'head', 'bbox_head', 'decode_head'):
        if hasattr(model, part):
            fill(getattr(model, part), 0.1, seed)
    paths = str(folder / f'{kind}{seed}.py'), str(folder / f'{kind}{seed}.pth')
    cfg.dump(paths[0])
    torch.save(dict(state_dict=model.state_dict(), meta={}), paths[1])
    return paths


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trunk, a zoo, pictures of two sizes, and three trained tasks."""
    folder = tmp_path_factory.mktemp('served')
    backbone = build_backbone(save_trunk(folder / 'trunk.pth'))
    add_modules(backbone, *NAMES)
    for name in NAMES:
        save_module(backbone, name, str(folder / 'zoo'))
    (folder / 'pictures').mkdir()
    rng = np.random.default_rng(0)
    for index, width in enumerate((SIZE, 70, SIZE, SIZE)):
        pixels = rng.integers(0, 255, (SIZE, width, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / 'pictures' / f'{index}.png'), pixels)
    (folder / 'pictures' / 'notes.txt').write_text('no image')
    for seed, kind in enumerate(KINDS):
        save_task(kind, folder, seed)
    return folder


def sources(folder: Path) -> Dict[str, Tuple[str, str]]:
    return {
        kind: (str(folder / f'{kind}{seed}.py'),
               str(folder / f'{kind}{seed}.pth'))
        for seed, kind in enumerate(KINDS)
    }


@pytest.fixture(scope='module')
def served(folder: Path) -> ViMInferencer:
    return ViMInferencer(sources(folder), 'cpu', show_progress=False)


def paths(folder: Path) -> List[str]:
    return [str(folder / 'pictures' / f'{index}.png') for index in range(4)]


def alone(folder: Path, kind: str, pictures: List[str]) -> list:
    """What a task's own model says of pictures of one size, one batch."""
    cfg = Config.fromfile(sources(folder)[kind][0])
    model = own_model(cfg, sources(folder)[kind][1])
    stages = [
        stage for stage in cfg.test_dataloader.dataset.pipeline
        if 'Annotations' not in stage.type
    ]
    pipeline = Compose(stages)
    batch = [pipeline(dict(img_path=path, img_id=0)) for path in pictures]
    with torch.no_grad():
        return model.test_step(pseudo_collate(batch))


def outputs(sample: object) -> Dict[str, Tensor]:
    """All predicted tensors of a data sample."""
    if 'pred_score' in sample:
        return dict(score=sample.pred_score, label=sample.pred_label)
    if 'pred_sem_seg' in sample:
        return dict(
            labels=sample.pred_sem_seg.data, logits=sample.seg_logits.data)
    found = sample.pred_instances
    return dict(boxes=found.bboxes, scores=found.scores, labels=found.labels)


def equal(first: object, second: object) -> bool:
    first, second = outputs(first), outputs(second)
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first)


def test_a_mixed_call_answers_as_each_model_alone(
        folder: Path, served: ViMInferencer) -> None:
    zero, wide, two, three = paths(folder)
    asked = [('det', zero), ('seg', zero), ('cls', wide), ('det', wide),
             ('cls', two), ('seg', three), ('det', two), ('cls', zero)]
    results = served(
        [(path, task) for task, path in asked],
        batch_size=2,
        return_datasamples=True)
    answers = dict(zip(asked, results['predictions']))
    assert not results['errors']
    # a batch holds one task and one size, in the order of the inputs
    batches = [('det', [zero, two]), ('seg', [zero, three]),
               ('cls', [two, zero]), ('cls', [wide]), ('det', [wide])]
    for task, pictures in batches:
        for path, sample in zip(pictures, alone(folder, task, pictures)):
            assert equal(answers[task, path], sample), (task, path)
            assert answers[task, path].img_path == path
    # the test means something: predictions differ, and boxes are found
    assert not equal(answers['cls', two], answers['cls', zero])
    assert not equal(answers['seg', zero], answers['seg', three])
    assert len(answers['det', zero].pred_instances)


def test_trunk_and_zoo_are_held_once(folder: Path,
                                     served: ViMInferencer) -> None:
    models = [served.tasks[kind].model for kind in KINDS]
    first, *others = [{
        name: value
        for _, _, name, value in tensors(model)
    } for model in models]
    shared = 0
    for other in others:
        for name, value in other.items():
            if name.startswith('backbone.trunk.'):
                assert value is first[name], name
            if name.startswith('backbone.bank.'):  # cls has all modules
                assert value is first[name], name
                shared += 1
    assert shared == 2 * 2 * 6 * 6  # tasks, modules, slots, tensors
    # gates, neck and head are each task's own
    logits = [model.backbone.fusion.logits for model in models]
    assert [list(task) for task in logits] == [[kind] for kind in KINDS]
    held, apart = served.memory()
    once = memory([models[0].backbone.trunk])
    assert apart - held >= 2 * once
    heads = sum(
        memory([part]) for model in models
        for name, part in model.named_children() if name != 'backbone')
    assert held <= memory([models[0].backbone]) + heads + 10_000


def test_modules_met_later_are_shared_too(folder: Path) -> None:
    three = sources(folder)
    order = {kind: three[kind] for kind in ('seg', 'det', 'cls')}
    served = ViMInferencer(order, 'cpu', show_progress=False)
    members = {
        kind: served.tasks[kind].model.backbone.bank.members
        for kind in order
    }
    for name, first, second in (('a', 'seg', 'cls'), ('b', 'det', 'cls'),
                                ('c', 'seg', 'det')):
        pairs = zip(members[first][name].parameters(),
                    members[second][name].parameters())
        assert all(one is other for one, other in pairs)


def test_modules_that_differ_stay_a_tasks_own(folder: Path,
                                              tmp_path: Path) -> None:
    config, checkpoint = sources(folder)['cls']
    stored = torch.load(checkpoint)
    key = 'backbone.bank.members.a.layers-0-attn.up.weight'
    stored['state_dict'][key] += 1  # tuned downstream
    tuned = str(tmp_path / 'tuned.pth')
    torch.save(stored, tuned)
    both = dict(plain=(config, checkpoint), tuned=(config, tuned))
    served = ViMInferencer(both, 'cpu', show_progress=False)
    states = [served.tasks[name].model.state_dict() for name in both]
    assert not torch.equal(states[0][key], states[1][key])
    assert torch.equal(states[1][key], stored['state_dict'][key])
    before, after = served(
        paths(folder)[0], task=list(both),
        return_datasamples=True)['predictions']
    assert not equal(before, after)
    assert equal(before, alone(folder, 'cls', [paths(folder)[0]])[0])


@pytest.mark.parametrize('heads', [[], ['x', 'y']])
def test_tasks_of_one_model_answer_by_name(folder: Path, heads: list) -> None:
    tasks = dict(x=['a', 'b'], y=['c', 'a'])
    saved = save_task(
        'det', folder, 9, heads, modules=NAMES,
        fusion=dict(type='EnsMoE', tasks=tasks))
    served = ViMInferencer({
        'x': saved,
        'y': saved,
        'third': (*saved, 'y')
    }, 'cpu', show_progress=False)
    picture = paths(folder)[0]
    answers = served(
        picture, task=['x', 'y', 'third'],
        return_datasamples=True)['predictions']
    cfg = Config.fromfile(saved[0])
    for name, sample in zip('xyy', answers):
        cfg.model.backbone.task = name
        if heads:
            cfg.model.bbox_head.task = name
        model = own_model(cfg, saved[1])
        data = served.tasks['x'].read(picture, 0)[0]
        with torch.no_grad():
            assert equal(sample, model.test_step(pseudo_collate([data]))[0])
    assert not equal(*answers[:2])
    # all of one model's tensors are held once, its gates included
    held, apart = served.memory()
    assert apart == 3 * held
    with pytest.raises(ValueError, match="no gates 'z'.*'x', 'y'"):
        served.add_task('fourth', *saved, 'z')


def test_arrays_folders_and_lists(folder: Path,
                                  served: ViMInferencer) -> None:
    from_folder = served(folder / 'pictures', task='cls')['predictions']
    assert [one['img_path'] for one in from_folder] == paths(folder)
    arrays = [cv2.imread(path) for path in paths(folder)]
    for kind in KINDS:
        first = served(paths(folder), task=kind, return_datasamples=True)
        second = served(arrays, task=kind, return_datasamples=True)
        for pair in zip(first['predictions'], second['predictions']):
            assert equal(*pair)
    # a folder among other entries takes its task for all its pictures
    mixed = served([(arrays[0], 'seg'), (str(folder / 'pictures'), ['cls'])])
    mixed = mixed['predictions']
    assert [one['task'] for one in mixed] == ['seg'] + ['cls'] * 4
    assert mixed[0]['img_path'] is None
    assert mixed[1:] == from_folder


@pytest.mark.parametrize('batch_size', [1, 3])
def test_several_tasks_answer_every_input(batch_size: int, folder: Path,
                                          served: ViMInferencer) -> None:
    entries = [paths(folder)[0], folder / 'pictures']
    tasks = ['seg', 'cls', 'seg']  # once is enough
    answers = served(entries, task=tasks, batch_size=batch_size)
    answers = answers['predictions']
    seen = [(one['img_path'], one['task']) for one in answers]
    pictures = paths(folder)[:1] + paths(folder)
    assert seen == [(path, task) for path in pictures
                    for task in ('seg', 'cls')]
    alone = served(entries, task='cls', batch_size=batch_size)
    assert answers[1::2] == alone['predictions']


def test_plain_predictions(folder: Path, served: ViMInferencer) -> None:
    picture = paths(folder)[1]
    samples = served(picture, task=KINDS, return_datasamples=True)
    results = served(picture, task=KINDS)
    cls, det, seg = results['predictions']
    sample = samples['predictions'][0]
    assert cls['pred_scores'] == sample.pred_score.tolist()
    assert cls['pred_score'] == max(cls['pred_scores'])
    assert cls['pred_class'] == CLASSES['cls'][cls['pred_label']]
    sample = samples['predictions'][1].pred_instances
    assert det['bboxes'] == sample.bboxes.tolist()
    assert det['scores'] == sample.scores.tolist()
    assert set(det['classes']) == {'square'}
    labels = seg['sem_seg']
    assert labels.shape == (SIZE, 70) and labels.dtype == np.uint8
    shares = {
        name: pytest.approx((labels == label).mean(), abs=1e-4)
        for label, name in enumerate(CLASSES['seg']) if (labels == label).any()
    }
    assert seg['classes'] == shares
    assert results['visualization'] == [None] * 3
    json.dumps([cls, det])


def test_results_are_written_and_drawn(folder: Path, served: ViMInferencer,
                                       tmp_path: Path) -> None:
    pictures, out = paths(folder)[:2], tmp_path / 'out'
    results = served(
        pictures,
        task=KINDS,
        out_dir=str(out),
        return_vis=True)
    written = {str(p.relative_to(out)) for p in out.rglob('*') if p.is_file()}
    expected = {f'vis/{k}/{i}.png' for k in KINDS for i in range(2)}
    expected |= {f'preds/{k}/{i}.json' for k in KINDS for i in range(2)}
    expected |= {f'preds/seg/{i}.png' for i in range(2)}
    assert written == expected
    plain = served(pictures, task='seg')['predictions']
    for index in range(2):
        shown = [
            cv2.imread(str(out / f'vis/{kind}/{index}.png'))[..., ::-1]
            for kind in KINDS
        ]
        place = index * len(KINDS)
        for mine, read in zip(results['visualization'][place:], shown):
            assert np.array_equal(mine, read)
        # enlarged, so that text is legible, and drawn on
        original = cv2.imread(pictures[index])
        times = shown[0].shape[0] // SIZE
        assert times > 1 and shown[0].shape[1] == times * original.shape[1]
        bare = cv2.resize(original, shown[0].shape[1::-1],
                          interpolation=cv2.INTER_CUBIC)[..., ::-1]
        assert all((drawn != bare).any() for drawn in shown)
        stored = json.loads((out / f'preds/seg/{index}.json').read_text())
        assert stored == results['predictions'][place + 2]
        labels = cv2.imread(stored['sem_seg'], cv2.IMREAD_UNCHANGED)
        assert np.array_equal(labels, plain[index]['sem_seg'])


def test_a_broken_picture_is_named_and_the_others_answered(
        folder: Path, served: ViMInferencer, tmp_path: Path) -> None:
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'\x89PNG\r\n\x1a\nno more')
    good = paths(folder)[0]
    out = tmp_path / 'out'
    results = served([(good, 'cls'), str(broken), (good, 'det')],
                     task='cls', batch_size=2, out_dir=str(out))
    assert sorted(results['errors']) == [1]
    assert str(broken) in results['errors'][1]
    assert "Task 'cls'" in results['errors'][1]
    cls, nothing, det = results['predictions']
    assert nothing is None
    assert cls == served(good, task='cls')['predictions'][0]
    assert det == served(good, task='det')['predictions'][0]
    # nothing is left of the broken ones, nor of any half-written file
    written = {path.name for path in out.rglob('*') if path.is_file()}
    assert written == {'0.png', '0.json'}
    with pytest.raises(ValueError, match='broken.png') as caught:
        served(str(broken), task='cls')
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize('stage', ['forward', 'visualize', 'postprocess'])
@pytest.mark.parametrize('kind', KINDS)
def test_one_image_costs_no_other_its_answer(
        stage: str, kind: str, folder: Path, served: ViMInferencer,
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with it, and wherever: a batch has three here."""
    zero, _, two, three = paths(folder)
    asked = dict(inputs=[zero, two, three], task=kind)
    right = served(**asked)['predictions']
    step = getattr(served, stage)

    def stumble(*args, **kwargs) -> object:
        requests = kwargs.get('batch') or args[0 if stage != 'postprocess'
                                               else 3]
        if any(one.path == two for one in requests):
            raise RuntimeError('odd pixels')
        return step(*args, **kwargs)

    monkeypatch.setattr(served, stage, stumble)
    results = served(**asked, batch_size=3, out_dir=str(tmp_path))
    assert list(results['errors']) == [1]
    assert f'{two}: odd pixels' in results['errors'][1]
    first, nothing, last = results['predictions']
    assert nothing is None
    for answer, expected in ((first, right[0]), (last, right[2])):
        assert answer['img_path'] == expected['img_path']
        assert answer.keys() == expected.keys()


def test_broken_pictures_do_not_fill_the_memory(
        folder: Path, served: ViMInferencer,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception's traceback holds the pictures it is about."""
    task, seen = served.tasks['cls'], []
    read = task.read

    def broken(picture: str, index: int) -> tuple:
        data, loaded = read(picture, index)
        seen.append(weakref.ref(data['inputs']))
        assert index == 0, 'odd'
        return data, loaded

    monkeypatch.setattr(task, 'read', broken)
    results = served(paths(folder), task='cls', return_datasamples=True)
    assert list(results['errors']) == [1, 2, 3]
    gc.collect()
    assert [ref() for ref in seen] == [None] * 4
    # a batch that the model refuses
    monkeypatch.setattr(task, 'read', read)
    refused = []

    def refuse(batch: list) -> None:
        refused.extend(batch)
        raise ValueError('odd')

    monkeypatch.setattr(served, 'forward', refuse)
    with pytest.raises(ValueError, match='0.png: odd .and 3 more'):
        served(paths(folder), task='cls')
    assert len(refused) == 4
    assert all(one.data is None is one.loaded for one in refused)


def test_mistakes_are_named_before_anything_runs(
        folder: Path, served: ViMInferencer, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, 'forward', None)
    good = paths(folder)[0]
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / '.hidden.png').write_bytes(b'')
    cases = [
        (good, 'birds', "no task 'birds'.*'cls', 'det', 'seg'"),
        (good, None, 'which `task`'),
        (good, [], '`task` is empty'),
        (good, ['cls', 'birds'], "no task 'birds'"),
        ([(good, 'birds')], 'cls', "no task 'birds'"),
        ([good, (good, 'seg')], None, 'which `task`'),
        ([(good, 'seg', 'cls')], None, 'is a tuple; .* a pair'),
        ([(good, good, good)], 'cls', 'is a tuple; .* a pair'),
        (str(tmp_path / 'empty'), 'cls', 'empty holds no image'),
        ([], 'cls', 'no image'),
        (np.zeros((4, 4), np.uint8), 'cls', r'ndarray \(4, 4\)'),
        (np.zeros((4, 4, 3)), 'cls', 'uint8'),
        ([good, 7], 'cls', 'int'),
    ]
    for inputs, task, said in cases:
        with pytest.raises(ValueError, match=said):
            served(inputs, task=task, out_dir=str(tmp_path / 'out'))
    lost = str(tmp_path / 'lost.png')
    with pytest.raises(FileNotFoundError, match='lost.png .and 1 more'):
        served([good, lost, lost], task='cls')
    with pytest.raises(ValueError, match='batch_size=0'):
        served(good, task='cls', batch_size=0)
    with pytest.raises(ValueError, match='no_such_argument'):
        served(good, task='cls', no_such_argument=1)
    assert not (tmp_path / 'out').exists()
    (tmp_path / 'file').write_text('')
    for out in ('file', 'file/out'):
        with pytest.raises(ValueError, match='cannot be written: .*file'):
            served(good, task='cls', out_dir=str(tmp_path / out))
    with pytest.raises(ValueError, match="device 'gpu' cannot be used"):
        ViMInferencer({'cls': ('nowhere.py', 'nowhere.pth')}, 'gpu')


def test_one_task_needs_no_name(folder: Path) -> None:
    one = INFERENCERS.build(
        dict(
            type='vim_mm.ViMInferencer',
            tasks=dict(seg=sources(folder)['seg']),
            show_progress=False,
            device='cpu'))
    assert one(paths(folder)[0])['predictions'][0]['task'] == 'seg'


def test_another_trunk_is_refused(folder: Path, tmp_path: Path,
                                  served: ViMInferencer) -> None:
    config, checkpoint = sources(folder)['cls']
    cfg = Config.fromfile(config)
    other = save_trunk(tmp_path / 'other.pth', seed=3)['init_cfg']
    # nothing of a zoo speaks for the trunk, and the checkpoint brings its own
    cfg.model.backbone.update(
        modules=[], new_module='n', save_trunk=True,
        fusion=dict(type='EnsMoE', tasks=['cls']))
    cfg.model.backbone.trunk.init_cfg = other
    saved = str(tmp_path / 'other_task.pth')
    torch.save(dict(state_dict=own_model(cfg).state_dict()), saved)
    before = list(served.tasks)
    with pytest.raises(ValueError, match="'new' .*another|other weights"):
        served.add_task('new', cfg, saved)
    # one tensor outside all slots is enough
    cfg.model.backbone.trunk.init_cfg = Config.fromfile(
        config).model.backbone.trunk.init_cfg
    model = own_model(cfg)
    with torch.no_grad():
        model.backbone.trunk.layers[1].ln1.weight[0] += 1
    torch.save(dict(state_dict=model.state_dict()), saved)
    with pytest.raises(ValueError, match=r"other weights.*layers\.1\.ln1"):
        served.add_task('new', cfg, saved)
    # a checkpoint learned beside another trunk than its config's
    cfg = Config.fromfile(config)
    cfg.model.backbone.update(modules=[], fusion=None)
    cfg.model.backbone.trunk.init_cfg = other
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    learned = ('backbone.bank', 'backbone.fusion')
    torch.save(
        {k: v for k, v in state.items() if not k.startswith(learned)}, saved)
    with pytest.raises(ValueError, match="'new' .*another trunk"):
        served.add_task('new', cfg, saved)
    assert list(served.tasks) == before


def test_a_checkpoint_of_another_model_is_refused(
        folder: Path, served: ViMInferencer, tmp_path: Path) -> None:
    config, checkpoint = sources(folder)['cls']
    stored = torch.load(checkpoint)
    state = stored['state_dict']
    for name, change, said in (
        ('head', lambda: state.pop('head.fc.weight'), 'lacks 1 tensors'),
        ('shape', lambda: state.update({'head.fc.weight': torch.ones(3, 3)}),
         'of another model')):
        change()
        torch.save(stored, tmp_path / f'{name}.pth')
        with pytest.raises(ValueError, match=said):
            served.add_task('new', config, str(tmp_path / f'{name}.pth'))
    with pytest.raises(ValueError, match="no gates|weighs the modules|lacks"):
        served.add_task('new', config, sources(folder)['det'][1])
    with pytest.raises(ValueError, match="'new' .* no `model`"):
        served.add_task('new', Config(dict(a=1)), checkpoint)
    with pytest.raises(FileNotFoundError, match='no config file nowhere.py'):
        served.add_task('new', 'nowhere.py', checkpoint)
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        served.add_task('new', config, 'nowhere.pth')
    with pytest.raises(ValueError, match='served already'):
        served.add_task('cls', config, checkpoint)
    with pytest.raises(ValueError, match='cannot name a task'):
        served.add_task('../up', config, checkpoint)


def test_modules_may_be_missing_from_the_checkpoint(
        folder: Path, tmp_path: Path, served: ViMInferencer) -> None:
    config, checkpoint = sources(folder)['seg']
    stored = torch.load(checkpoint)
    kept = {
        key: value
        for key, value in stored['state_dict'].items()
        if '.members.' not in key
    }
    assert len(kept) < len(stored['state_dict'])
    torch.save(dict(state_dict=kept), tmp_path / 'small.pth')
    small = dict(seg=(config, str(tmp_path / 'small.pth')))
    one = ViMInferencer(small, 'cpu', show_progress=False)
    picture = paths(folder)[0]
    first, second = (
        each(picture, task='seg', return_datasamples=True)['predictions'][0]
        for each in (one, served))
    assert equal(first, second)


@pytest.mark.parametrize('kind, dataset, visualizer, name', [
    ('cls', 'CIFAR10', 'UniversalVisualizer', 'airplane'),
    ('det', 'CocoDataset', 'DetLocalVisualizer', 'person'),
    ('seg', 'ADE20KDataset', 'SegLocalVisualizer', 'wall')])
def test_bare_types_are_those_of_the_tasks_library(
        folder: Path, kind: str, dataset: str, visualizer: str,
        name: str) -> None:
    """As the base configs of mmpretrain, mmdet and mmseg have them."""
    config, checkpoint = sources(folder)[kind]
    cfg = Config.fromfile(config)
    cfg.visualizer = dict(
        type=visualizer,
        vis_backends=[dict(type='LocalVisBackend')],
        name='visualizer')
    cfg.test_dataloader.dataset.type = dataset
    del cfg.test_dataloader.dataset.metainfo
    one = ViMInferencer({kind: (cfg, checkpoint)}, 'cpu', show_progress=False)
    assert one.tasks[kind].classes[0] == name
    drawn = one(paths(folder)[0], return_vis=True)['visualization'][0]
    assert type(one.painters[kind]._made[kind]).__name__ == visualizer
    assert drawn.shape == (336, 336, 3)


@pytest.mark.parametrize('kind, visualizer', [
    ('cls', 'UniversalVisualizer'), ('det', 'DetLocalVisualizer'),
    ('seg', 'SegLocalVisualizer')])
@pytest.mark.parametrize('wrapped', [False, True])
def test_bases_of_other_libraries_bring_their_scope(
        folder: Path, served: ViMInferencer, kind: str, visualizer: str,
        wrapped: bool) -> None:
    """As in ``_base_ = 'mmseg::_base_/datasets/ade20k.py'``."""
    config, checkpoint = sources(folder)[kind]
    cfg = Config.fromfile(config)
    cfg.default_scope, cfg.model._scope_ = 'vim_mm', SCOPES[kind]
    cfg.visualizer = dict(type=visualizer, _scope_=SCOPES[kind])
    loader = cfg.test_dataloader
    loader.dataset.type = DATASET[kind].split('.')[1]
    if wrapped:
        loader.dataset = dict(type='ConcatDataset', datasets=[loader.dataset])
    loader.dataset._scope_ = SCOPES[kind]
    one = ViMInferencer({kind: (cfg, checkpoint)}, 'cpu', show_progress=False)
    first, second = (
        each(
            paths(folder)[0],
            task=kind,
            return_datasamples=True,
            return_vis=True) for each in (one, served))
    assert equal(first['predictions'][0], second['predictions'][0])
    assert np.array_equal(*(each['visualization'][0].shape
                            for each in (first, second)))


def test_a_lazy_config_holds_classes_in_place_of_names(
        folder: Path, served: ViMInferencer) -> None:
    config, checkpoint = sources(folder)['det']
    cfg = Config.fromfile(config)
    dataset = cfg.test_dataloader.dataset
    cfg.visualizer.type = Visualizer
    dataset.type = CocoDataset
    del dataset.metainfo
    for stage in dataset.pipeline:
        stage.type = getattr(transforms, stage.type, LoadImageFromFile)
    one = ViMInferencer({'det': (cfg, checkpoint)}, 'cpu',
                        show_progress=False)
    assert one.tasks['det'].classes[0] == 'person'
    results = [
        each(
            paths(folder)[0],
            task='det',
            return_datasamples=True,
            return_vis=True) for each in (one, served)
    ]
    assert equal(*(each['predictions'][0] for each in results))
    shapes = [each['visualization'][0].shape for each in results]
    assert shapes[0] == shapes[1]


def test_instance_masks_and_several_labels() -> None:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    from pycocotools import mask as coco
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, 5:9, 10:20] = True
    sample = DetDataSample(
        pred_instances=InstanceData(
            bboxes=torch.tensor([[10., 5., 20., 9.]]),
            scores=torch.tensor([.9]),
            labels=torch.tensor([0]),
            masks=masks))
    plain = describe(sample, ['square'])
    assert np.array_equal(coco.decode(plain['masks'][0]), masks[0].numpy())
    assert words(plain) == 'square x1'
    picture = np.zeros((20, 30, 3), np.uint8)
    drawn = Painter(None, ['square'], [(255, 0, 0)])(picture, sample)
    # 11 times as large; mask and box lie where they were
    assert drawn.shape == (220, 330, 3)
    assert drawn[70:90, 150:180, 0].min() > 60
    assert drawn[:40].max() == 0 and drawn[120:].max() == 0
    several = DataSample().set_pred_label([0, 1]).set_pred_score(
        torch.tensor([.8, .7, .1]))
    plain = describe(several, ['a', 'b', 'c'])
    assert plain['pred_class'] == ['a', 'b']
    assert plain['pred_score'] == pytest.approx([.8, .7])
    with pytest.raises(ValueError, match='return_datasamples'):
        describe(DataSample(), [])


@pytest.mark.parametrize(('palette', 'first', 'last'), [
    ((1, 2, 3), (1, 2, 3), (1, 2, 3)),
    ([1, 2, 3], (1, 2, 3), (1, 2, 3)),
    ([(1, 2, 3)], (1, 2, 3), (1, 2, 3)),
    (np.array([1, 2, 3]), (1, 2, 3), (1, 2, 3)),
    (np.array([[1, 2, 3]]), (1, 2, 3), (1, 2, 3)),
    ('green', (0, 255, 0), (0, 255, 0)),
    ('voc', (106, 0, 228), (0, 0, 192)),
    ([(1, 2, 3), (4, 5, 6)], (1, 2, 3), None),  # the others are drawn
    ('no colour', None, None),
    (None, None, None),
    ((), None, None),
])
def test_one_colour_for_all_classes(palette: object, first: tuple,
                                    last: tuple) -> None:
    found = colours(palette, 4)
    assert len(found) >= 4
    assert all(len(c) == 3 and all(type(v) is int for v in c) for c in found)
    assert first in (None, found[0]) and last in (None, found[3])
    if first is None:
        assert len(set(found)) == 4


@pytest.mark.parametrize('kind', KINDS)
def test_a_head_with_more_outputs_than_names(kind: str, folder: Path,
                                             tmp_path: Path) -> None:
    config, checkpoint = sources(folder)[kind]
    cfg = Config.fromfile(config)
    part = dict(cls='head', det='bbox_head', seg='decode_head')[kind]
    num = cfg.model[part].num_classes
    names = [f'class{index}' for index in range(num - 1)]
    cfg.test_dataloader.dataset.metainfo = dict(
        classes=names, palette=[(1, 2, 3)])
    inferencer = ViMInferencer(cfg, checkpoint, 'cpu', False)
    task, = inferencer.tasks.values()
    assert task.classes == [*names, str(num - 1)]
    assert len(task.palette) == num
    results = inferencer(paths(folder), out_dir=str(tmp_path))
    assert not results['errors'] and None not in results['predictions']


def test_names_of_files_do_not_clash() -> None:
    array = np.zeros((1, 1, 3), np.uint8)
    asked = [(array, 'u'), (array, ['t', 'u']), (array, 'u')]
    names = [(one.task, one.name)
             for one in list_requests(asked, None, ['t', 'u'], count(3))]
    assert names == [('u', 'array_00000003'), ('t', 'array_00000004'),
                     ('u', 'array_00000004'), ('u', 'array_00000005')]
    wanted = [('t', 'a'), ('t', 'a'), ('u', 'a'), ('t', 'a')]
    assert file_names(wanted) == ['a', 'a_2', 'a', 'a_3']
    clash = ['a_2', 'a', 'a', 'a', 'a_2']
    assert file_names([('t', stem) for stem in clash]) == [
        'a_2', 'a', 'a_3', 'a_4', 'a_2_2'
    ]
    # folders of frames have many pictures of one name
    many = file_names([('t', '0')] * 20_000)
    assert many[-1] == '0_20000' and len(set(many)) == 20_000


def test_the_tool(folder: Path, tmp_path: Path,
                  monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture) -> None:
    spec = spec_from_file_location('infer', ROOT / 'tools' / 'infer.py')
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'nothing')
    three, out = sources(folder), tmp_path / 'out'
    arguments = [paths(folder)[0], str(broken), '--device', 'cpu']
    for kind in ('cls', 'seg'):
        arguments += ['--model', f'{kind}={",".join(three[kind])}']

    def run(*more: str) -> Tuple[int, List[str], str]:
        monkeypatch.setattr('sys.argv', ['infer.py', *arguments, *more])
        code = tool.main()
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    code, lines, errors = run('--json', '--out-dir', str(out))
    assert code == 1 and 'Error: 2 of 4 answers are missing' in errors
    answers = [json.loads(line) for line in lines]
    assert [one['task'] for one in answers] == ['cls', 'seg']
    for answer in answers:
        stored = out / 'preds' / answer['task'] / '0.json'
        assert json.loads(stored.read_text()) == answer
    assert re.search(r'2 tasks in \d+ MB of weights, \d+ MB as', errors)

    for share in ('50', 'nan', '-0.1'):
        with pytest.raises(SystemExit):
            run('--score-thr', share)
        assert f'{share} is no score from 0' in capsys.readouterr().err

    code, lines, _ = run('--task', 'cls')
    cls = answers[0]
    assert lines == [
        f'{paths(folder)[0]}\tcls\t'
        f'{cls["pred_class"]} ({cls["pred_score"]:.2f})'
    ]
    for text, name in (('f/a.py,b.pth', ''), ('x=f/a.py,b.pth', 'x'),
                       ('f/a b.v1.py,b.pth,c', '')):
        parts = text.rpartition('=')[2].split(',')
        assert tool.parse_model(text) == (name, parts)
    for text in ('cls', 'cls=a.py', '=a.py,b.pth', 'cls=a.py,b.pth,c,d',
                 'a.py,', ',b.pth', 'a.py,b.pth,c,d'):
        with pytest.raises(ValueError, match='NAME=CONFIG,CHECKPOINT'):
            run('--model', text)
    with pytest.raises(ValueError, match='nowhere'):
        run('--cfg-options', 'model.backbone.zoo=nowhere')


@pytest.mark.parametrize('kind', KINDS)
def test_images_are_normalised_as_in_training(kind: str, folder: Path,
                                              tmp_path: Path) -> None:
    config, checkpoint = sources(folder)[kind]
    cfg = Config.fromfile(config)
    cfg.train_dataloader = deepcopy(cfg.test_dataloader)
    cfg.train_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile')]
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(
        type='Normalize', mean=[127.] * 3, std=[58.] * 3))
    cfg.dump(tmp_path / 'c.py')
    with pytest.raises(ValueError, match=f"Task '{kind}' cannot be served.*"
                       'normalised'):
        ViMInferencer({kind: (str(tmp_path / 'c.py'), checkpoint)}, 'cpu')
