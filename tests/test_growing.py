# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A ninth module joins a fused project, and no earlier task notices.

Every comparison is bit for bit. The project has a zoo of eight modules and
three tasks, which know different ones of them.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Callable, Dict, List, Optional

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from _tiny import (KINDS, LEVELS, SCOPES, SIZE, Pictures, add_modules,
                   build_backbone, build_runner, fill, fusion_neck, model_cfg,
                   occupy, same, save_trunk, snapshot)
from vim_mm.apis import ViMInferencer
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.fusion import build_fusion
from vim_mm.models.necks import ViMFusionNeck
from vim_mm.registry import MODELS
from vim_mm.zoo import Zoo, save_module

EIGHT = list('abcdefgh')
NINE = [*EIGHT, 'ninth']
#: What each earlier task knows; in its own order.
TASKS = dict(all=EIGHT, few=['g', 'b', 'e'], most=EIGHT[::-1][:6])
NEW = 'new'
FUSIONS = dict(
    full=dict(type='EnsMoE'),
    top_k=dict(type='EnsMoE', top_k=2),
    merge=dict(type='ParameterMerge'),
    linear=dict(type='LinearMoE'),
    routed=dict(type='RoutedMoE'),
    uniform=dict(type='FixedFusion'))
#: The ninth may be evaluated in one wide adapter with the others, or not, or
#: sit in slots where none of the others does.
NINTHS = dict(
    alike=dict(type='ConvPass', hidden_dims=4),
    wider=dict(type='ConvPass', hidden_dims=6),
    elsewhere=dict(type='LoRA', rank=2))


def pictures() -> Tensor:
    return torch.randn(
        2, 3, SIZE, 70, generator=torch.Generator().manual_seed(0))


def equal(first: tuple, second: tuple) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def digest(folder: Path) -> Dict[str, str]:
    return {
        str(path.relative_to(folder)):
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*') if path.is_file()
    }


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trunk, a zoo of nine modules, and other ninths in zoos of theirs."""
    folder = tmp_path_factory.mktemp('project')
    trunk = save_trunk(folder / 'trunk.pth')
    for kind, adapter in NINTHS.items():
        backbone = build_backbone(trunk, new_module='ninth', adapter=adapter)
        fill(backbone.bank.members['ninth'], seed=9)
        save_module(backbone, 'ninth', str(folder / kind))
    backbone = build_backbone(trunk)
    add_modules(backbone, *EIGHT)
    add_modules(backbone, 'ninth')
    for name in NINE:
        save_module(backbone, name, str(folder / 'zoo'))
    return folder


def project(folder: Path,
            fusion: Optional[str],
            modules: List[str] = EIGHT,
            tasks: Dict[str, List[str]] = TASKS) -> ViMBackbone:
    cfg = None if fusion is None else dict(FUSIONS[fusion], tasks=tasks)
    backbone = build_backbone(
        save_trunk(folder / 'trunk.pth'),
        zoo=str(folder / 'zoo'),
        modules=modules,
        fusion=cfg)
    if cfg is not None:
        fill(backbone.fusion, 1.)
    return backbone


def answers(backbone: ViMBackbone) -> Dict[str, tuple]:
    """What every earlier task makes of two pictures."""
    outputs = {}
    with torch.no_grad():
        for task in TASKS:
            backbone.select_task(task)
            outputs[task] = backbone(pictures())
    return outputs


def unchanged(backbone: ViMBackbone, before: Dict[str, tuple]) -> bool:
    after = answers(backbone)
    return all(equal(after[task], before[task]) for task in TASKS)


def learn(parts: List[nn.Module], forward: Callable, steps: int = 3) -> None:
    """Train whatever may be trained, with weight decay."""
    params = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(params, lr=.1, weight_decay=.1)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(level.square().mean() for level in forward()).backward()
        optimizer.step()


@pytest.mark.parametrize('kind', NINTHS)
@pytest.mark.parametrize('fusion', FUSIONS)
def test_a_ninth_module_in_a_running_project(fusion: str, kind: str,
                                             folder: Path) -> None:
    backbone = project(folder, fusion)
    before = answers(backbone)
    gates = {task: backbone.fusion.gates(task).clone() for task in TASKS}
    assert not equal(before['few'], before['all'])

    backbone.load_modules(str(folder / kind), ['ninth'])
    assert unchanged(backbone, before)
    if fusion == 'merge' and kind != 'alike':
        with pytest.raises(ValueError, match='no common parameters'):
            backbone.add_task(NEW)
            backbone.select_task(NEW)
            backbone(pictures())
        assert unchanged(backbone, before)
        return
    backbone.add_task(NEW)
    assert backbone.fusion.task_modules[NEW] == NINE
    rows = len(backbone.fusion.gates(NEW))
    assert rows == len(backbone.slots) == (12 if kind == 'elsewhere' else 6)
    assert unchanged(backbone, before)

    # the new task sees the ninth, learns, and still no other changes
    backbone.select_task(NEW)
    backbone.learn_tasks([NEW])
    with torch.no_grad():
        fresh = backbone(pictures())
    assert not any(equal(fresh, outputs) for outputs in before.values())
    frozen = snapshot(backbone.trunk), snapshot(backbone.bank)
    if fusion != 'uniform':
        learn([backbone], lambda: backbone(pictures()))
        with torch.no_grad():
            assert not equal(backbone(pictures()), fresh)
    assert unchanged(backbone, before)
    assert all(
        torch.equal(backbone.fusion.gates(task), gates[task])
        for task in TASKS)
    assert same(snapshot(backbone.trunk), frozen[0])
    assert same(snapshot(backbone.bank), frozen[1])


@pytest.mark.parametrize('fusion', FUSIONS)
def test_saved_before_and_loaded_into_nine(fusion: str, folder: Path,
                                           tmp_path: Path) -> None:
    old = project(folder, fusion)
    before = answers(old)
    torch.save(old.state_dict(), tmp_path / 'old.pth')
    # as the config of the next task has it; the ninth may be listed first
    for modules in (NINE, NINE[::-1]):
        grown = project(folder, fusion, modules, {**TASKS, NEW: NINE})
        missing, unexpected = grown.load_state_dict(
            torch.load(tmp_path / 'old.pth'), strict=False)
        assert not unexpected
        assert all('ninth' in key or NEW in key for key in missing)
        assert unchanged(grown, before)

    # and back: what the grown project saves serves the earlier tasks
    grown.select_task(NEW)
    grown.learn_tasks()
    if fusion != 'uniform':
        learn([grown], lambda: grown(pictures()))
    torch.save(grown.state_dict(), tmp_path / 'grown.pth')
    again = project(folder, fusion)
    missing, _ = again.load_state_dict(
        torch.load(tmp_path / 'grown.pth'), strict=False)
    assert not missing
    assert unchanged(again, before)


def streams_neck(modules: List[str], tasks: dict) -> ViMFusionNeck:
    neck = MODELS.build(
        dict(
            fusion_neck('det', modules),
            fusion=dict(type='EnsMoE', tasks=tasks)))
    fill(neck, .3)
    return neck.eval()


def weigh(backbone: ViMBackbone, neck: ViMFusionNeck) -> Dict[str, tuple]:
    outputs = {}
    with torch.no_grad():
        for task in TASKS:
            neck.select_task(task)
            outputs[task] = neck(backbone(pictures()))
    return outputs


def test_streams_through_the_neck(folder: Path) -> None:
    backbone = project(folder, None)
    neck = streams_neck(EIGHT, TASKS)
    before = weigh(backbone, neck)
    assert not equal(before['few'], before['all'])
    state = {key: value.clone() for key, value in neck.state_dict().items()}

    backbone.load_modules(str(folder / 'wider'), ['ninth'])
    neck.add_task(NEW, NINE)
    assert neck.task != NEW
    for task, outputs in weigh(backbone, neck).items():
        assert equal(outputs, before[task])
    neck.select_task(NEW)
    neck.learn_tasks([NEW])
    assert list(neck.gates()['level0']) == NINE
    learn([backbone, neck.fusion], lambda: neck(backbone(pictures())))
    assert neck.fusion.logits[NEW].abs().sum() > 0
    for task, outputs in weigh(backbone, neck).items():
        assert equal(outputs, before[task])

    # a neck of nine that reads what the one of eight has saved
    rebuilt = streams_neck(NINE, {**TASKS, NEW: NINE})
    missing, _ = rebuilt.load_state_dict(state, strict=False)
    assert missing and all(NEW in key for key in missing)
    for task, outputs in weigh(backbone, rebuilt).items():
        assert equal(outputs, before[task])
    with pytest.raises(ValueError, match='streams'):
        ViMFusionNeck(LEVELS, scales=[1], sources=[[0]]).add_task('x', EIGHT)


def test_a_ninth_in_slots_of_its_own_joins_in_one_config(
        folder: Path, tmp_path: Path) -> None:
    """Gates are found by the name of their slot, wherever it now stands."""
    old = project(folder, 'full')
    before = answers(old)
    torch.save(dict(state_dict=old.state_dict()), tmp_path / 'old.pth')
    shutil.copytree(folder / 'zoo', tmp_path / 'zoo')
    Zoo(str(tmp_path / 'zoo')).remove('ninth')
    Zoo(str(tmp_path / 'zoo')).add(str(folder / 'elsewhere'), 'ninth')
    for modules in (NINE, NINE[::-1]):
        grown = project(tmp_path, 'full', modules, {**TASKS, NEW: NINE})
        load_checkpoint(grown, str(tmp_path / 'old.pth'), logger='silent')
        assert unchanged(grown, before)
        grown.select_task(NEW)
        grown.learn_tasks()
        learn([grown], lambda: grown(pictures()))
        assert (grown.fusion.logits[NEW] != 0).any(dim=1).all()
        assert unchanged(grown, before)
        # and the grown project's own gates, slots in another order too
        order = ['ninth', *EIGHT]
        again = project(tmp_path, 'full', order, {NEW: order})
        slots = [list(b.fusion.task_slots[NEW]) for b in (again, grown)]
        assert slots[0] != slots[1] and set(slots[0]) == set(slots[1])
        again.load_state_dict(grown.state_dict(), strict=False)
        grown.select_task(NEW)
        assert again.gates() == {
            slot: pytest.approx(row)
            for slot, row in grown.gates().items()
        }


def test_a_task_of_other_slots_is_refused_not_forgotten(
        tmp_path: Path) -> None:
    """mmengine leaves out what does not fit and only warns."""
    narrow = build_fusion(
        dict(type='EnsMoE', tasks=['old']), occupy(EIGHT, 4, 4))
    path = str(tmp_path / 'old.pth')
    torch.save(dict(state_dict=narrow.state_dict()), path)
    wide = build_fusion(
        dict(type='EnsMoE', tasks=dict(old=EIGHT, new=NINE)),
        occupy(NINE, 4, 4, 4))
    with pytest.raises(
            ValueError, match=r"'old' weighs other slots.*\['s2'\]"):
        load_checkpoint(wide, path, strict=False, logger='silent')
    other = build_fusion(
        dict(type='EnsMoE', tasks=['old'], zero_module=True),
        occupy(EIGHT, 4, 4))
    with pytest.raises(ValueError, match=r'\(2, 8\).*settings of the fusion'):
        load_checkpoint(other, path, strict=False, logger='silent')


# --------------------------------------------------------- whole projects


def task_cfg(kind: str, folder: Path, modules: List[str],
             tasks: dict) -> dict:
    backbone = dict(
        trunk=save_trunk(folder / 'trunk.pth'),
        zoo=str(folder / 'zoo'),
        modules=modules,
        fusion=dict(type='EnsMoE', tasks=tasks))
    return model_cfg(kind, backbone, fusion_neck(kind))


def predict(kind: str, model: nn.Module) -> List[Tensor]:
    """All a model says of eight pictures."""
    with torch.no_grad():
        samples = model.eval().test_step(Pictures(kind).batch())
    if kind == 'cls':
        return [sample.pred_score for sample in samples]
    if kind == 'seg':
        return [sample.seg_logits.data for sample in samples]
    found = [sample.pred_instances for sample in samples]
    assert sum(map(len, found)) > 0
    return [one.bboxes for one in found] + [one.scores for one in found]


def test_three_trained_tasks_in_a_grown_project(folder: Path,
                                                tmp_path: Path) -> None:
    """Checkpoints of training runs, into configs that list nine modules."""
    files = digest(folder / 'zoo')
    before, knows = {}, dict(zip(KINDS, TASKS.values()))
    for kind in KINDS:
        cfg = task_cfg(kind, folder, EIGHT, {kind: knows[kind]})
        run = build_runner(kind, cfg, tmp_path / kind, iters=2)
        run.train()
        before[kind] = predict(kind, run.model)
        assert run.model.backbone.fusion.logits[kind].abs().sum() > 0

    for kind in KINDS:
        init_default_scope(SCOPES[kind])
        tasks = {NEW: NINE, kind: knows[kind]}
        cfg = task_cfg(kind, folder, NINE, tasks)
        checkpoint = str(tmp_path / kind / 'iter_2.pth')
        cfg.backbone.task = kind
        grown = MODELS.build(cfg)
        load_checkpoint(grown, checkpoint, strict=False, logger='silent')
        assert equal(predict(kind, grown), before[kind])
        if kind != 'cls':
            continue
        # the new task is trained from there; the earlier gates stand still
        cfg.backbone.task = NEW
        run = build_runner(
            kind, cfg, tmp_path / NEW, iters=2, load_from=checkpoint)
        run.train()
        trained = run.model.backbone
        assert trained.fusion.logits[NEW].abs().sum() > 0
        with torch.no_grad():
            trained.select_task(kind)
            assert equal(
                trained.eval()(pictures()), grown.backbone(pictures()))
    assert digest(folder / 'zoo') == files


def serve_cfg(kind: str, folder: Path, modules: List[str],
              task: str) -> Config:
    cfg = task_cfg(kind, folder, modules, {task: modules})
    stages = dict(
        cls=[dict(type='PackInputs')],
        det=[
            dict(type='Resize', scale_factor=1., keep_ratio=True),
            dict(type='PackDetInputs')
        ],
        seg=[dict(type='PackSegInputs')])
    names = dict(
        cls='CustomDataset', det='CocoDataset', seg='BaseSegDataset')
    return Config(
        dict(
            default_scope=SCOPES[kind],
            model=cfg,
            test_dataloader=dict(
                dataset=dict(
                    type=names[kind],
                    metainfo=dict(classes=['one', 'two']),
                    pipeline=[dict(type='LoadImageFromFile'),
                              *stages[kind]]))))


def leave(cfg: Config, path: Path, seed: int) -> tuple:
    """A task as its training may have left it."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    for part in (model.backbone.fusion, *model.children()):
        if not isinstance(part, ViMBackbone):
            fill(part, .2, seed)
    torch.save(dict(state_dict=model.state_dict()), path)
    return cfg, str(path)


def test_inside_the_inferencer(folder: Path, tmp_path: Path) -> None:
    knows = dict(zip(KINDS, TASKS.values()))
    served = ViMInferencer({
        kind: leave(serve_cfg(kind, folder, knows[kind], kind),
                    tmp_path / f'{kind}.pth', seed)
        for seed, kind in enumerate(KINDS)
    }, 'cpu', show_progress=False)
    rng = np.random.default_rng(0)
    images = []
    for index in range(2):
        images.append(str(tmp_path / f'{index}.png'))
        pixels = rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
        cv2.imwrite(images[-1], pixels)

    def ask() -> List[Tensor]:
        found = []
        for kind in KINDS:
            for sample in served(
                    images, task=kind, batch_size=2,
                    return_datasamples=True)['predictions']:
                if kind == 'cls':
                    found.append(sample.pred_score)
                elif kind == 'seg':
                    found.append(sample.seg_logits.data)
                else:
                    found += [
                        sample.pred_instances.bboxes,
                        sample.pred_instances.scores
                    ]
        return found

    before, held = ask(), served.memory()[0]
    assert all(value.numel() for value in before)
    served.add_task(NEW, *leave(
        serve_cfg('cls', folder, NINE, NEW), tmp_path / 'new.pth', 9))
    assert equal(ask(), before)
    # the ninth module, gates, neck and head are all that is held besides
    model = served.tasks[NEW].model
    assert model.backbone.bank.names == NINE
    own = [
        model.backbone.bank.members['ninth'], model.backbone.fusion,
        model.neck, model.head
    ]
    added = sum(
        value.nbytes for part in own for value in snapshot(part).values())
    assert 0 < served.memory()[0] - held <= added + 1000
    new = served(images, task=NEW)['predictions']
    assert new != served(images, task='cls')['predictions']
    # mixed with the new task in one call, they answer as before
    mixed = served(images[0], task=[NEW, 'cls'])['predictions']
    assert mixed[1] == served(images[0], task='cls')['predictions'][0]
