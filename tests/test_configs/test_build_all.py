# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Every config of ViM at full size, with random weights: parameters and steps.

New configs in ``configs/vim`` join by themselves. What a user brings is stood
in for: one random ViT-B/16 that all models share (built without storage, then
given the same tensors), a zoo of random modules, noise for pictures. Models,
hooks, pipelines and optimizers are built as the configs say; only the sizes
of pictures and the number of proposals are lowered.
"""

import ast
import itertools
import sys
from functools import lru_cache
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import mmcv
import numpy as np
import pytest
import torch
import yaml
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.config import config as config_module
from mmengine.config import utils as config_utils
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from mmpretrain.models import VisionTransformer
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from _tiny import build_backbone, fill
from vim_mm.models.backbones import ViMBackbone
from vim_mm.zoo import save_module, trunk_fingerprint

REPO = Path(__file__).resolve().parents[2]
ROOT = REPO / 'configs/vim'
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.rglob('*.py'))

WIDTH, HIDDEN, NUM_SLOTS = 768, 8, 24  # 12 blocks x 2 branches
ADAPTER = 2 * WIDTH * HIDDEN + HIDDEN + 9 * HIDDEN**2 + HIDDEN + WIDTH
MODULE = 327_552  # the table's value for h = 8
SIZE = 64  # pixels: at 32 the smallest level has one, too few for batch norm


@pytest.fixture(scope='module', autouse=True)
def quick_bases() -> Iterator[None]:
    """`mmdet::…` in a base reads all of mmdet's metafiles: each only once."""
    with pytest.MonkeyPatch.context() as patch:
        load = lru_cache(maxsize=None)(config_utils.load)
        patch.setattr(config_utils, 'load', load)
        yield


@lru_cache(maxsize=None)
def parsed(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def config(name: str) -> Config:
    return parsed(name).copy()


def module_names() -> List[str]:
    """All modules that any config fuses."""
    return sorted({
        module
        for name in CONFIGS
        for module in config(name).model.backbone.get('modules', [])
    })


# ----------------------------------------------------- what the user brings


class SharedTensors:
    """Builds every ViT without storage and gives all the same tensors."""

    def __init__(self) -> None:
        self.state: Dict[str, Tensor] = {}
        self.construct = VisionTransformer.__init__

    def init(self, trunk: VisionTransformer, *args, **kwargs) -> None:
        with torch.device('meta'):
            self.construct(trunk, *args, **kwargs)
        generator = torch.Generator().manual_seed(0)
        for key, value in trunk.state_dict().items():
            if key not in self.state:
                tensor = torch.empty(value.shape)
                tensor.normal_(0, .02, generator=generator)
                is_norm = key.endswith('weight') and value.dim() == 1
                self.state[key] = tensor + is_norm
        own = {key: self.state[key].detach() for key in trunk.state_dict()}
        trunk.load_state_dict(own, assign=True)


@pytest.fixture(scope='module')
def shared_trunk() -> Iterator[None]:
    fingerprints: Dict[tuple, str] = {}

    def fingerprint(trunk: nn.Module, slots: Sequence[str]) -> str:
        key = tuple(sorted(slots))
        if key not in fingerprints:
            fingerprints[key] = trunk_fingerprint(trunk, slots)
        return fingerprints[key]

    shared = SharedTensors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisionTransformer, '__init__',
                      lambda self, *a, **k: shared.init(self, *a, **k))
        patch.setattr(VisionTransformer, 'init_weights', lambda self: None)
        # 86 M parameters are hashed once, not for every model
        for name, module in list(sys.modules.items()):
            if name.startswith('vim_mm.') and hasattr(module,
                                                      'trunk_fingerprint'):
                patch.setattr(module, 'trunk_fingerprint', fingerprint)
        # seconds each, to report compilers and to lay out configs as text
        patch.setattr(Runner, '_log_env', lambda self, env: None)
        patch.setattr(Config, 'pretty_text', '')
        yield


@pytest.fixture(scope='module')
def zoo_dir(shared_trunk: None,
            tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random modules of full size, under the names that configs fuse."""
    folder = str(tmp_path_factory.mktemp('zoo'))
    trunk = config('midstream_coco.py').model.backbone.trunk
    trunk.pop('init_cfg')
    backbone = build_backbone(trunk, new_module='any')
    for seed, name in enumerate(module_names()):
        fill(backbone.bank.members['any'], std=.02, seed=seed)
        save_module(backbone, 'any', folder, save_as=name)
    return folder


def small(cfg: Config, zoo_dir: str) -> Config:
    """Weights and zoo of the test, small pictures, few proposals."""
    backbone = cfg.model.backbone
    backbone.get('trunk', backbone).pop('init_cfg')
    if 'trunk' in backbone:
        backbone.update(zoo=zoo_dir, probe_size=SIZE)
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (SIZE, SIZE)
    if cfg.model.get('test_cfg', {}).get('mode') == 'slide':  # 3 x 3 windows
        cfg.model.test_cfg.update(crop_size=(48, 48), stride=(8, 8))
    if 'roi_head' in cfg.model:
        cfg.model.train_cfg.rcnn.sampler.num = 8
        for part in (cfg.model.train_cfg.rpn_proposal, cfg.model.test_cfg.rpn):
            part.update(nms_pre=16, max_per_img=8)
    return cfg


def build(name: str, zoo_dir: str, work_dir: Path) -> Runner:
    """A runner as ``tools/train.py`` makes it."""
    cfg = small(config(name), zoo_dir)
    cfg.update(work_dir=str(work_dir), log_level='ERROR')
    cfg.experiment_name = f'{Path(name).stem}_{id(cfg)}'
    return Runner.from_cfg(cfg)


def batch(model: BaseModel) -> dict:
    """Two noise pictures, annotated for the model's kind of task."""
    generator = torch.Generator().manual_seed(0)
    pictures = [
        torch.randint(0, 256, (3, SIZE, SIZE), generator=generator).byte()
        for _ in range(2)
    ]
    kind = ('det' if hasattr(model, 'roi_head') else
            'seg' if hasattr(model, 'decode_head') else 'cls')
    samples = [dict(det=det, seg=seg, cls=cls)[kind](i) for i in range(2)]
    for sample in samples:
        sample.set_metainfo(
            dict(
                img_shape=(SIZE, SIZE),
                ori_shape=(SIZE, SIZE),
                pad_shape=(SIZE, SIZE),
                scale_factor=(1., 1.)))
    return dict(inputs=pictures, data_samples=samples)


def cls(index: int) -> DataSample:
    return DataSample().set_gt_label(index)


def seg(index: int) -> SegDataSample:
    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.long)
    labels[:, :, SIZE // 2:] = index + 1
    return SegDataSample(gt_sem_seg=PixelData(data=labels))


def det(index: int) -> DetDataSample:
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    mask[:, 8:40, 8:48] = 1
    return DetDataSample(
        gt_instances=InstanceData(
            bboxes=torch.tensor([[8., 8., 48., 40.]]),
            labels=torch.tensor([index]),
            masks=BitmapMasks(mask.numpy(), SIZE, SIZE)),
        ignored_instances=InstanceData(bboxes=torch.zeros(0, 4)))


# -------------------------------------------------------------- parameters


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def expected_in_backbone(cfg: ConfigDict) -> int:
    """Of the table: a module, or 24 N gates, or all of an unfrozen trunk."""
    if 'trunk' not in cfg:
        # 12 blocks, patches, position, class token, one or two outer norms
        block = 12 * WIDTH**2 + 13 * WIDTH
        embedding = (3 * 16**2 + 197 + 1) * WIDTH
        return 12 * block + embedding + 2 * WIDTH * (1 + cfg.final_norm)
    fusion = cfg.get('fusion') or {}
    weighs = fusion.get('type') in ('vim_mm.EnsMoE', 'vim_mm.LinearMoE')
    learned = weighs and fusion.get('learn', True)
    num_gates = NUM_SLOTS * len(cfg.get('modules', []))
    return learned * num_gates + MODULE * bool(cfg.get('new_module'))


def expected_in_head(cfg: ConfigDict) -> int:
    """Of the linear layer, the pyramid with FPNHead, or det's pyramid."""
    if 'head' in cfg:
        return (WIDTH + 1) * cfg.head.num_classes

    def transposed(width: int) -> int:  # 3 of them, and a norm between two
        return 3 * (4 * width**2 + width) + 2 * width

    def fpn(width: int) -> int:
        return 4 * (width * 256 + 256) + 4 * (9 * 256**2 + 256)

    if 'decode_head' in cfg:
        # 3x3 convolutions with norms: one a level, more the further it climbs
        first, next_one = 9 * 256 * 128 + 256, 9 * 128**2 + 256
        head = 4 * first + 3 * next_one + 129 * cfg.decode_head.num_classes
        return transposed(WIDTH) + fpn(WIDTH) + head
    projections = 4 * (2 * WIDTH + WIDTH * 256 + 256)
    return projections + transposed(256) + fpn(256)


def expected_in_roi_head(cfg: ConfigDict) -> int:
    """Of two layers on 7x7 regions, classes and boxes, perhaps masks."""
    classes = cfg.bbox_head.num_classes
    boxes = (49 * 256 + 1) * 1024 + 1025 * 1024 + 1025 * (5 * classes + 1)
    convs = 4 * (9 * 256**2 + 256) + 4 * 256**2 + 256
    return boxes + ('mask_head' in cfg) * (convs + 257 * classes)


def test_the_table_counts_24_adapters() -> None:
    assert NUM_SLOTS * ADAPTER == MODULE


# -------------------------------------------------------------------- steps


# a fifth of them, of all kinds
@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (index % 5 > 0))
    for index, name in enumerate(CONFIGS)])
def test_full_size(name: str, zoo_dir: str, tmp_path: Path) -> None:
    runner = build(name, zoo_dir, tmp_path)
    model, cfg = runner.model, runner.cfg.model
    assert count(model.backbone) == expected_in_backbone(cfg.backbone)
    head = sum(
        count(part) for key, part in model.named_children()
        if key in ('neck', 'head', 'decode_head') and part is not None)
    assert head == expected_in_head(cfg)
    if 'roi_head' in cfg:
        assert count(model.rpn_head) == 9 * 256**2 + 256 + 257 * 3 * (1 + 4)
        assert count(model.roi_head) == expected_in_roi_head(cfg.roi_head)
    if 'optim_wrapper' in runner.cfg:  # the release's are tested only
        check_rates(runner)
    check_loss(model)
    check_prediction(model, cfg)


def check_rates(runner: Runner) -> None:
    """The optimizer steps all that learns; gates go furthest."""
    rates = {
        id(group['params'][0]): group['lr']
        for group in runner.build_optim_wrapper(
            runner.cfg.optim_wrapper).optimizer.param_groups
    } if runner.cfg.optim_wrapper.get('paramwise_cfg') else {}
    backbone = runner.model.backbone
    if isinstance(backbone, ViMBackbone) and rates:
        wrapper = runner.cfg.optim_wrapper
        keys = wrapper.paramwise_cfg.get('custom_keys', {})
        for key, param in backbone.named_parameters():
            if not param.requires_grad:
                continue
            named = [k for k in keys if k in f'backbone.{key}']
            factor = keys[max(named, key=len)].lr_mult if named else 1.
            assert factor > 1 or not key.startswith('fusion'), key
            assert rates[id(param)] == pytest.approx(
                wrapper.optimizer.lr * factor), key


def check_loss(model: BaseModel) -> None:
    model.train()
    data = model.data_preprocessor(batch(model), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    for key, param in model.named_parameters():
        if param.requires_grad:
            # one without would stall data-parallel training
            assert param.grad is not None, key
            assert torch.isfinite(param.grad).all(), key
        else:
            assert param.grad is None, key
    fusion = getattr(model.backbone, 'fusion', None)
    if fusion is not None and count(fusion):
        (gates, ) = [p for p in fusion.parameters() if p.requires_grad]
        assert gates.grad.abs().sum(1).min() > 0  # in every slot
    model.zero_grad(set_to_none=True)


def check_prediction(model: BaseModel, cfg: ConfigDict) -> None:
    model.eval()
    data = model.data_preprocessor(batch(model), training=False)
    with torch.no_grad():
        results = model(**data, mode='predict')
    for result in results:
        if 'head' in cfg:
            assert result.pred_score.shape == (cfg.head.num_classes, )
        elif 'decode_head' in cfg:
            assert result.seg_logits.data.shape == (
                cfg.decode_head.num_classes, SIZE, SIZE)
        else:
            assert result.pred_instances.bboxes.shape[1] == 4


# ------------------------------------------------------------- other parts


def datasets(dataset: dict, scope: str) -> Iterator[Tuple[str, dict]]:
    """A data set, or those inside a wrapper, with their scopes."""
    scope = dataset.get('_scope_', scope)
    if 'pipeline' in dataset:
        yield scope, dataset
    inner = dataset.get('datasets', [])
    if 'dataset' in dataset:
        inner = [dataset['dataset']]
    for item in inner:
        yield from datasets(item, scope)


def num_classes(model: ConfigDict) -> int:
    if 'roi_head' in model:
        return model.roi_head.bbox_head.num_classes
    return model.get('head', model.get('decode_head')).num_classes


@pytest.mark.parametrize(
    'name', [name for name in CONFIGS if not name.startswith('baselines/')])
def test_pipelines_and_schedules(name: str) -> None:
    cfg = config(name)
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg[part].dataset if cfg.get(part) else {}
        for scope, item in datasets(dataset, cfg.default_scope):
            with TRANSFORMS.switch_scope_and_registry(scope) as registry:
                assert [registry.build(step) for step in item['pipeline']]
            with DATASETS.switch_scope_and_registry(scope) as registry:
                classes = registry.get(item['type']).METAINFO.get('classes')
            assert classes is None or len(classes) == num_classes(cfg.model)
    if 'param_scheduler' not in cfg:
        return
    last = cfg.param_scheduler[-1]
    length = cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters
    assert last.get('end', last.get('T_max')) == length
    assert max(last.get('milestones', [0])) < length


def test_no_fused_task_uses_a_module_of_its_own_pictures() -> None:
    own = {
        'downstream_ade20k.py': {'ade20k'},
        'downstream_coco10-det.py': {'coco', 'coco-stuff'},
    }
    made = {
        config(name).model.backbone.new_module
        for name in CONFIGS if name.startswith('midstream_')
    }
    for name in CONFIGS:
        if name.startswith('downstream_'):
            modules = set(config(name).model.backbone.modules)
            assert modules == made - own.get(name, set()), name


def test_every_fused_task_has_its_baselines() -> None:
    kinds = ('linear-probe', 'full', 'convpass', 'best-single', 'uniform',
             'linear-moe')
    tasks = [
        Path(name).stem.replace('downstream_', '') for name in CONFIGS
        if name.startswith('downstream_')
    ]
    twins = [
        f'baselines/{task}_{kind}.py'
        for task, kind in itertools.product(tasks, kinds)
    ]
    assert sorted(twins) == [c for c in CONFIGS if c.startswith('baselines/')]
    for task, twin in itertools.product(tasks, twins):
        if twin.startswith(f'baselines/{task}_'):
            cfg, fused = config(twin), config(f'downstream_{task}.py')
            for key in ('train_dataloader', 'test_dataloader', 'train_cfg',
                        'test_evaluator', 'param_scheduler'):
                assert cfg[key] == fused[key], (twin, key)


# ------------------------------------------------------------------- VTAB


def test_vtab_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = config('downstream_vtab.py').class_counts
    assert len(counts) == 19 and sum(counts.values()) == 940
    folders = set()
    for task, num_classes in counts.items():
        monkeypatch.setenv('VTAB_TASK', task)
        cfg = Config.fromfile(ROOT / 'downstream_vtab.py')
        assert cfg.model.head.num_classes == num_classes
        # gates are no other task's
        assert cfg.model.backbone.fusion.tasks == [task]
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            assert loader.dataset.data_root == f'data/vtab-1k/{task}'
        folders.add(cfg.work_dir)
        head = MODELS.build(cfg.model.head)
        assert count(head) == (WIDTH + 1) * num_classes
        last = DataSample().set_gt_label(num_classes - 1)
        losses = head.loss((torch.ones(1, WIDTH), ), [last])
        assert torch.isfinite(losses['loss'])
    for name in CONFIGS:
        if name.startswith('baselines/vtab_'):
            folders.add(Config.fromfile(ROOT / name).work_dir)
    assert len(folders) == 19 + 6  # no run overwrites another's checkpoints
    monkeypatch.setenv('VTAB_TASK', 'cifar10')
    with pytest.raises(AssertionError, match='no task of VTAB-1k'):
        Config.fromfile(ROOT / 'downstream_vtab.py')
    # forgotten, no task stands in for the one that was meant
    monkeypatch.delenv('VTAB_TASK')
    with pytest.raises(AssertionError, match='VTAB_TASK=unset is no task'):
        Config.fromfile(ROOT / 'downstream_vtab.py')


@pytest.mark.slow
def test_vtab_learns_from_lists_and_tests_once(zoo_dir: str,
                                               tmp_path: Path) -> None:
    cfg = small(config('downstream_vtab.py'), zoo_dir)
    random = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for split, num in (('train800val200', 6), ('test', 3)):
        lines = []
        for index in range(num):
            path = f'images/{split} {index}.png'
            picture = random.integers(256, size=(40, 30, 3), dtype=np.uint8)
            mmcv.imwrite(picture, str(tmp_path / path))
            lines.append(f'{path} {index % 3}')
        (tmp_path / f'{split}.txt').write_text('\n'.join(lines))
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.update(batch_size=3, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(tmp_path)
        loader.dataset.pipeline[1].scale = (32, 32)
    cfg.train_cfg.max_epochs = 1
    cfg.merge_from_dict({'param_scheduler.0.end': 1})
    cfg.param_scheduler.pop()
    cfg.update(work_dir=str(tmp_path / 'run'), log_level='ERROR')
    runner = Runner.from_cfg(cfg)
    runner.train()
    scores = runner.message_hub.get_info('module_scores')
    assert set(cfg.model.backbone.modules) < set(scores)
    assert 'accuracy/top1' in runner.test()
    assert len(runner.test_dataloader.dataset) == 3
    assert (tmp_path / 'run/epoch_1.pth').is_file()


def test_vtab_never_looks_at_the_test_pictures_while_training() -> None:
    for name in CONFIGS:
        cfg = config(name)
        if 'vtab' in name:
            assert cfg.val_cfg is None and cfg.val_dataloader is None
            assert 'save_best' not in cfg.default_hooks.checkpoint
            assert cfg.train_dataloader.dataset.ann_file.startswith('train')


# ------------------------------------------------------------------ listing


@pytest.mark.parametrize('name', CONFIGS)
def test_headers(name: str) -> None:
    doc = ast.get_docstring(ast.parse((ROOT / name).read_text()))
    assert doc
    if name.startswith(('midstream_', 'downstream_')):
        for said in ('Command', name, 'stimate', 'not measured', 'the paper',
                     'Ours'):
            assert said in doc, said


def test_metafile_and_readme_list_every_config() -> None:
    meta = yaml.safe_load((ROOT / 'metafile.yml').read_text())
    listed = [model['Config'] for model in meta['Models']]
    assert sorted(listed) == [f'configs/vim/{name}' for name in CONFIGS]
    assert len({model['Name'] for model in meta['Models']}) == len(CONFIGS)
    readme = (ROOT / 'README.md').read_text()
    for name in CONFIGS:
        if not name.startswith('baselines/'):
            assert f']({name})' in readme, name


def test_another_project_inherits(tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    # the package as an editable install leaves it
    package = tmp_path / 'vim_mm'
    package.mkdir()
    (package / '.mim').symlink_to(REPO, target_is_directory=True)
    installed = config_module.get_installed_path
    monkeypatch.setattr(
        config_module, 'get_installed_path', lambda name: str(package)
        if name.startswith('vim_mm') else installed(name))
    child = tmp_path / 'child.py'
    child.write_text("_base_ = 'vim_mm::vim/downstream_voc2012-seg.py'\n"
                     'model = dict(decode_head=dict(num_classes=3))\n')
    cfg = Config.fromfile(child)
    assert cfg.model.decode_head.num_classes == 3
    fused = config('downstream_voc2012-seg.py').model.backbone
    assert cfg.model.backbone.modules == fused.modules
    assert cfg.model.backbone.trunk.arch == fused.trunk.arch
