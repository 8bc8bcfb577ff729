# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One task by config and checkpoint, one pass for many, compiled passes."""

import shutil
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from _tiny import (KINDS, SCOPES, SIZE, build_backbone, fill, fusion_neck,
                   model_cfg, save_trunk)
from vim_mm.apis import ViMInferencer
from vim_mm.apis.serving import choose_graph
from vim_mm.models.backbones import compiling
from vim_mm.zoo import save_module

NAMES = ['a', 'b']
EAGER = dict(backend='eager')
DATASET = dict(
    cls='mmpretrain.CustomDataset',
    det='mmdet.CocoDataset',
    seg='mmseg.BaseSegDataset')
PACK = dict(
    cls=[dict(type='mmpretrain.PackInputs')],
    det=[
        dict(type='mmdet.Resize', scale_factor=1., keep_ratio=True),
        dict(type='mmdet.PackDetInputs')
    ],
    seg=[dict(type='mmseg.PackSegInputs')])


def task_config(kind: str, folder: Path, **backbone: Any) -> Config:
    """A task of a kind over the zoo's modules."""
    backbone = dict(
        dict(
            trunk=save_trunk(folder / 'trunk.pth'),
            zoo=str(folder / 'zoo'),
            modules=NAMES,
            fusion=dict(type='EnsMoE')), **backbone)
    neck = fusion_neck(kind)
    if 'fusion' in backbone and backbone['fusion'] is None:
        neck.update(modules=NAMES, fusion=dict(type='EnsMoE'))
    model = model_cfg(kind, backbone, neck)
    preprocessor = model.pop('data_preprocessor')
    if kind == 'seg':
        preprocessor.update(size=None, test_cfg=dict(size_divisor=14))
    pipeline = [dict(type='LoadImageFromFile'), *PACK[kind]]
    return Config(
        dict(
            default_scope=SCOPES[kind],
            model=model,
            data_preprocessor=preprocessor,
            visualizer=dict(type='Visualizer'),
            test_dataloader=dict(
                dataset=dict(
                    type=DATASET[kind],
                    metainfo=dict(classes=['red', 'white']),
                    pipeline=pipeline))))


def build(cfg: Config) -> nn.Module:
    init_default_scope(cfg.default_scope)
    return MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).eval()


def save_task(folder: Path, name: str, kind: str, seed: int,
              **backbone: Any) -> tuple:
    """A config file and what a training might have left."""
    cfg = task_config(kind, folder, **backbone)
    model = build(cfg)
    for index, (part, module) in enumerate(model.named_children()):
        if part not in ('backbone', 'data_preprocessor'):
            fill(module, .1, seed + index)
    if model.backbone.fusion is not None:
        fill(model.backbone.fusion, 1., seed)
    paths = str(folder / f'{name}.py'), str(folder / f'{name}.pth')
    cfg.dump(paths[0])
    torch.save(dict(state_dict=model.state_dict(), meta={}), paths[1])
    return paths


def make_folder(folder: Path, adapter: str) -> Path:
    """A trunk and a zoo of two modules of a kind."""
    backbone = build_backbone(
        save_trunk(folder / 'trunk.pth'),
        new_module='a',
        adapter=dict(type=adapter, hidden_dims=4))
    backbone.bank.add('b', backbone.bank.adapter_cfg('a'),
                      backbone.bank.dims_of('a'))
    for seed, name in enumerate(NAMES):
        fill(backbone.bank.members[name], .2, seed)
        save_module(backbone, name, str(folder / 'zoo'))
    return folder


@pytest.fixture(scope='module')
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp('beside'), 'PluginNeck')


@pytest.fixture(scope='module')
def inside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp('inside'), 'ConvPass')


def images(*widths: int) -> List[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 255, (SIZE, width, 3)).astype(np.uint8)
        for width in widths
    ]


def serve(tasks: Dict[str, tuple], **kwargs: Any) -> ViMInferencer:
    return ViMInferencer(tasks, device='cpu', show_progress=False, **kwargs)


def values(sample: object) -> List[Tensor]:
    """All predicted tensors of a data sample."""
    if 'pred_score' in sample:
        return [sample.pred_score]
    if 'pred_sem_seg' in sample:
        return [sample.pred_sem_seg.data, sample.seg_logits.data]
    found = sample.pred_instances
    return [found.bboxes, found.scores, found.labels]


def same(first: object, second: object, exact: bool = True) -> bool:
    pairs = list(zip(values(first), values(second)))
    if exact:
        return all(torch.equal(a, b) for a, b in pairs)
    return all(torch.allclose(a.float(), b.float(), atol=1e-4)
               for a, b in pairs)


class Count:
    """How often trunks of an inferencer's tasks run."""

    def __init__(self, served: ViMInferencer) -> None:
        self.passes = 0
        for task in served.tasks.values():
            task.model.backbone.trunk.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.passes += 1


# ----------------------------------------------------- one task, as mmdet's


@pytest.mark.parametrize('as_config', [False, True])
def test_one_config_and_its_checkpoint(inside: Path, as_config: bool) -> None:
    config, checkpoint = save_task(inside, 'my task', 'cls', 1)
    given = Config.fromfile(config) if as_config else config
    one = ViMInferencer(given, checkpoint, 'cpu', False)
    assert list(one.tasks) == ['my_task'] and not one.show_progress
    many = ViMInferencer({'x': (config, checkpoint)}, 'cpu', False)
    assert many.device == 'cpu' and not many.show_progress
    image, = images(SIZE)
    answers = [
        each(image, return_datasamples=True)['predictions'][0]
        for each in (one, many)
    ]
    assert same(*answers)


def test_a_config_alone_is_no_task(inside: Path) -> None:
    with pytest.raises(ValueError, match='flowers.py .*checkpoint'):
        ViMInferencer('flowers.py', device='cpu')


# ------------------------------------------------- one pass for many tasks


def test_tasks_beside_a_trunk_share_its_pass(beside: Path) -> None:
    tasks = {
        f'{kind}{seed}': save_task(beside, f'{kind}{seed}', kind, seed)
        for kind in KINDS for seed in (1, 2)
    }
    # streams to a fusion in the neck read the same levels
    tasks['streams'] = save_task(beside, 'streams', 'cls', 3, fusion=None)
    together = serve(tasks)
    counted = Count(together)
    # two sizes, and more pictures than a batch takes
    pictures = images(SIZE, 70, SIZE, SIZE)
    names = list(tasks)
    for batch_size, passes in ((1, 4), (2, 3), (8, 2)):
        counted.passes = 0
        answers = together(pictures, True, batch_size, task=names)
        assert counted.passes == passes
        for place, name in enumerate(names):
            alone = serve({name: tasks[name]})(pictures, True, batch_size)
            for one, other in zip(answers['predictions'][place::len(names)],
                                  alone['predictions']):
                assert same(one, other), (name, batch_size)
    assert all(t.trunk_pass.kept is None for t in together.tasks.values())


def test_other_trunks_and_inputs_have_passes_of_their_own(
        beside: Path, tmp_path: Path) -> None:
    first = save_task(beside, 'first', 'cls', 1)
    cfg = Config.fromfile(first[0])
    cfg.data_preprocessor.mean = [0.] * 3
    cfg.dump(str(tmp_path / 'lighter.py'))
    cfg = Config.fromfile(first[0])
    cfg.model.backbone.trunk.drop_rate = .1  # set in another way
    cfg.dump(str(tmp_path / 'other.py'))
    tasks = dict(
        first=first,
        lighter=(str(tmp_path / 'lighter.py'), first[1]),
        other=(str(tmp_path / 'other.py'), first[1]))
    served = serve(tasks)
    passes = [task.trunk_pass for task in served.tasks.values()]
    assert passes[0] is passes[1] is not passes[2]
    counted, (image, ) = Count(served), images(SIZE)
    answers = served([(image, name) for name in tasks], True)['predictions']
    assert counted.passes == 3
    for name, answer in zip(tasks, answers):
        alone = serve({name: tasks[name]})(image, True)['predictions'][0]
        assert same(alone, answer)
    assert not same(answers[0], answers[1])


def test_whoever_writes_into_a_level_spoils_it_for_nobody(
        beside: Path) -> None:
    tasks = {
        name: save_task(beside, name, 'cls', seed)
        for seed, name in enumerate(['writes', 'reads'])
    }
    served = serve(tasks)
    backbone = served.tasks['writes'].model.backbone
    backbone.register_forward_hook(
        lambda module, *_: [
            level.zero_() for level in module.forward.trunk_pass.kept.levels
        ] and None)
    counted, (image, ) = Count(served), images(SIZE)
    answers = served([(image, name) for name in tasks], True)['predictions']
    assert counted.passes == 2
    alone = serve(dict(reads=tasks['reads']))(image, True)['predictions'][0]
    assert same(alone, answers[1])


def test_modules_in_the_trunk_run_it_each(inside: Path) -> None:
    tasks = {
        name: save_task(inside, name, 'cls', seed)
        for seed, name in enumerate(['x', 'y'])
    }
    served = serve(tasks)
    counted, (image, ) = Count(served), images(SIZE)
    served([(image, name) for name in tasks])
    assert counted.passes == 2
    assert [t.trunk_pass for t in served.tasks.values()] == [None, None]


# ---------------------------------------------------------------- compiling


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('place', ['beside', 'inside'])
def test_compiled_tasks_answer_alike(place: str, kind: str,
                                     request: pytest.FixtureRequest) -> None:
    torch._dynamo.reset()
    folder = request.getfixturevalue(place)
    paths = save_task(folder, f'{kind}-compiled', kind, 5)
    pictures = images(SIZE, 70, SIZE, 84)
    plain, compiled = (
        serve(dict(x=paths), compile=how)(pictures, True)['predictions']
        for how in (None, EAGER))
    for pair in zip(plain, compiled):
        assert same(*pair, exact=False)


@pytest.mark.slow
def test_many_tasks_are_compiled(beside: Path, inside: Path) -> None:
    """More than torch compiles of one function without being told."""
    torch._dynamo.reset()
    for folder in (beside, inside):
        paths = save_task(folder, 'many', 'cls', 5)
        tasks = {f't{index}': paths for index in range(10)}
        served, (image, ) = serve(tasks, compile=EAGER), images(SIZE)
        pairs = [(image, name) for name in tasks]
        answers = served(pairs, True)['predictions']
        assert all(same(answers[0], answer) for answer in answers)


def test_the_config_says_what_is_compiled(inside: Path) -> None:
    paths = save_task(inside, 'key', 'cls', 5, compile=EAGER)
    for given, backend in ((None, 'eager'), (dict(backend='aot_eager'),
                                             'aot_eager'), (False, None)):
        task = serve(dict(x=paths), compile=given).tasks['x']
        assert (task.options or {}).get('backend') == backend


@pytest.mark.parametrize('kind, test_cfg, device, chosen', [
    ('cls', None, 'cpu', {}),
    ('cls', None, 'cuda:1', dict(mode='reduce-overhead')),
    ('seg', dict(mode='slide'), 'cuda', dict(mode='reduce-overhead')),
    ('seg', dict(mode='whole'), 'cuda', dict(dynamic=True)),
    ('det', None, 'cuda', dict(dynamic=True)),
    ('det', dict(score_thr=.1), 'cpu', dict(dynamic=True)),
])
def test_graphs_fit_the_sizes(kind: str, test_cfg: dict, device: str,
                              chosen: dict) -> None:
    cfg = Config(
        dict(default_scope=SCOPES[kind], model=dict(test_cfg=test_cfg)))
    assert choose_graph(cfg, device) == chosen


@pytest.mark.parametrize('given, said', [
    ('fast', "compile='fast'"),
    (dict(backened='eager'), 'backened'),
    (1, 'compile=1'),
])
def test_mistakes_in_compile_are_named(inside: Path, given: Any,
                                       said: str) -> None:
    paths = save_task(inside, 'mistake', 'cls', 5)
    with pytest.raises(ValueError, match=f"'x' .*{said}"):
        serve(dict(x=paths), compile=given)
    with pytest.raises(ValueError, match=said):
        build_backbone(compile=given)


@pytest.mark.parametrize('given', [True, dict(mode='default')])
def test_a_missing_compiler_is_named(given: Any,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(ValueError, match="'no-such-compiler' is not install"):
        compiling.compile_options(given, 'cpu')
    for fine in (dict(backend='eager'), dict(backend='aot_eager')):
        compiling.compile_options(fine, 'cpu')
    compiling.compile_options(given, 'cuda')


@pytest.mark.parametrize('version', ['2.6.0', '2.7.1+cu126', '2.8.0a0'])
def test_a_torch_that_is_too_old_is_named(version: str,
                                          monkeypatch: pytest.MonkeyPatch
                                          ) -> None:
    monkeypatch.setattr(compiling.torch, '__version__', version)
    for given in (True, dict(backend='eager')):
        with pytest.raises(ValueError, match=r'take torch >= 2\.8'):
            compiling.compile_options(given, 'cpu')
    for fine in ('2.8.0+cpu', '2.14.1', '3.0'):
        monkeypatch.setattr(compiling.torch, '__version__', fine)
        compiling.compile_options(dict(backend='eager'), 'cpu')


def test_modes_are_inductors() -> None:
    options = compiling.compile_options(
        dict(backend='eager'), 'cuda', mode='reduce-overhead')
    assert 'mode' not in options
    options = compiling.compile_options(
        dict(options={}), 'cuda', mode='reduce-overhead')
    assert 'mode' not in options and options['fullgraph']


@pytest.mark.slow
@pytest.mark.parametrize('adapter', ['PluginNeck', 'ConvPass'])
def test_a_compiled_backbone_trains_and_tests(adapter: str) -> None:
    """Epochs with a validation after each compile two graphs, no more."""
    torch._dynamo.reset()
    backbone = build_backbone(
        compile=dict(backend='aot_eager'),
        new_module='a',
        adapter=dict(type=adapter, hidden_dims=4),
        fusion=dict(type='EnsMoE'))
    fill(backbone.bank)
    x = torch.randn(2, 3, SIZE, SIZE)
    torch._dynamo.utils.counters.clear()
    for _ in range(5):
        backbone.train()
        outputs = backbone(x)
        sum(out.square().sum() for out in outputs).backward()
        for out, plain in zip(outputs, backbone.forward(x)):
            torch.testing.assert_close(out, plain)
        with torch.no_grad():
            for param in backbone.bank.parameters():
                param -= .01 * param.grad.sign()
                param.grad = None
            for out, plain in zip(backbone.eval()(x), backbone.forward(x)):
                torch.testing.assert_close(out, plain)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 2


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which('g++'), reason='Inductor needs a compiler')
@pytest.mark.parametrize('kind', ['cls', 'det'])
def test_inductor(beside: Path, kind: str) -> None:
    torch._dynamo.reset()
    paths = save_task(beside, f'{kind}-inductor', kind, 5)
    pictures = images(SIZE, 70)
    plain, compiled = (
        serve(dict(x=paths), compile=how)(pictures, True)['predictions']
        for how in (None, True))
    for pair in zip(plain, compiled):
        assert same(*pair, exact=False)
