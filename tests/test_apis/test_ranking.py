# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Ranking modules before training, on tiny models of all kinds of task."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner, set_random_seed

from _tiny import (SCOPES, Pictures, add_modules, build_backbone, build_runner,
                   fill, first_of, fusion_neck, model_cfg, save_trunk)
from vim_mm.apis.fitting import fitting_model, unfused_model
from vim_mm.apis.ranking import rank_modules
from vim_mm.engine.module_trials import ModuleTrials
from vim_mm.features.module_rows import TRUNK, UNIFORM
from vim_mm.zoo import Zoo, ZooError, save_module

SCORES = ['ours', 'logme', 'nleep', 'hscore']


@pytest.fixture(autouse=True)
def registered() -> None:
    DATASETS.register_module('TinyPictures', force=True, module=Pictures)
    yield
    DATASETS._module_dict.pop('TinyPictures')


def make_zoo(folder: Path, trunk: dict, **kwargs) -> Path:
    """Two modules: one with small random values, one that drowns much."""
    backbone = build_backbone(trunk, **kwargs)
    add_modules(backbone, 'mild', 'drowns')
    fill(backbone.bank.members['mild'], 1e-3)
    for adapter in backbone.bank.members['drowns'].values():
        torch.nn.init.zeros_(adapter.up.weight)
        torch.nn.init.constant_(adapter.up.bias, 3e7)
    for name in backbone.bank.names:
        save_module(backbone, name, str(folder / 'zoo'))
    return folder / 'zoo'


def config(kind: str, trunk: dict, num: int = 8, **backbone) -> Config:
    loader = dict(
        dataset=dict(type='mmengine.TinyPictures', kind=kind, num=num),
        batch_size=3,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'))
    model = model_cfg(kind, dict(dict(trunk=trunk), **backbone),
                      fusion_neck(kind))
    return Config(
        dict(
            default_scope=SCOPES[kind],
            model=model,
            train_dataloader=loader,
            custom_hooks=[
                dict(type='vim_mm.ScoreGatesHook', num_extra_tokens=0)
            ]))


@pytest.mark.parametrize('kind', first_of(['cls', 'seg', 'det'], 2))
def test_all_kinds_of_task(tmp_path: Path, kind: str) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    zoo = make_zoo(tmp_path, trunk)
    # what the config fuses plays no part, even if it is not there
    cfg = config(kind, trunk, 20, modules=['gone'], task='t',
                 fusion=dict(type='vim_mm.EnsMoE', tasks=['t']))
    before = cfg.to_dict()
    ranking = rank_modules(cfg, str(zoo))
    assert cfg.to_dict() == before
    assert ranking.skipped == {} and ranking.num_classes == 2
    rows = 20 if kind == 'cls' else 20 * 16
    assert (ranking.num_pictures, ranking.num_rows) == (20, rows)
    assert set(ranking.scores) == {TRUNK, 'mild', 'drowns', UNIFORM}
    assert ranking.passes == 4 and ranking.noise[TRUNK] == 0
    assert ranking.verdict == 'none of these helps: use the frozen trunk'
    assert all(list(scores) == SCORES for scores in ranking.scores.values())
    ours = [scores['ours'] for scores in ranking.scores.values()]
    assert ours == sorted(ours, reverse=True)
    assert ranking.scores['drowns']['ours'] < ranking.scores[TRUNK]['ours']
    for score in SCORES:
        assert ranking.scores['mild'][score] > ranking.scores['drowns'][score]
    # the same again, to the last bit: nothing is drawn anew
    assert rank_modules(cfg, str(zoo)).scores == ranking.scores


@pytest.mark.parametrize('kind', ['cls', 'seg'])
def test_our_scores_are_those_that_start_gates(tmp_path: Path,
                                               kind: str) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    zoo = make_zoo(tmp_path, trunk)
    cfg = config(kind, trunk, 20)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
    init_default_scope(cfg.default_scope)
    set_random_seed(0)
    model = unfused_model(cfg, str(zoo), Zoo(str(zoo)).names())
    model.init_weights()
    model.backbone.set_fusion(dict(type='EnsMoE'))
    trials = ModuleTrials.of_task(
        model, Runner.build_dataloader(cfg.train_dataloader),
        num_extra_tokens=0)
    ranked = rank_modules(cfg, str(zoo), fuse=True)
    ours = {name: each['ours'] for name, each in ranked.scores.items()}
    assert trials.plain_scores() == pytest.approx(ours)
    choice = trials.choose()
    assert ranked.weights == choice.weights
    assert ranked.verdict.startswith(str(choice)[:30])
    assert choice.passes <= 4 * 2 + 8


def test_modules_in_and_beside_the_trunk_rank_together(
        tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    zoo = make_zoo(tmp_path, trunk)
    beside = build_backbone(trunk)
    add_modules(beside, 'ladder', type='SideLadder')
    save_module(beside, 'ladder', str(zoo))
    ranking = rank_modules(config('seg', trunk), str(zoo))
    assert set(ranking.scores) == {TRUNK, 'mild', 'drowns', 'ladder', UNIFORM}


def test_several_labels_an_image(tmp_path: Path) -> None:
    class Several(Pictures):

        def __init__(self, **kwargs) -> None:
            super().__init__(**kwargs)
            for index, sample in enumerate(self.samples):
                labels = [[0], [1, 2], [0, 2], []][index % 4]
                sample['data_samples'].set_gt_label(
                    torch.tensor(labels).long())

    trunk = save_trunk(tmp_path / 'trunk.pth')
    zoo = make_zoo(tmp_path, trunk)
    DATASETS.register_module('TinyPictures', force=True, module=Several)
    cfg = config('cls', trunk, 24)
    cfg.model.head.num_classes = 3
    ranking = rank_modules(cfg, str(zoo), fuse=True)
    assert (ranking.num_rows, ranking.num_classes) == (24, 3)
    assert ranking.scores[TRUNK]['ours'] > .6
    assert all(list(each) == SCORES for each in ranking.scores.values())


def test_pictures_are_limited_to_whole_batches(tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    ranking = rank_modules(
        config('seg', trunk), str(make_zoo(tmp_path, trunk)), 4)
    assert ranking.num_pictures == 6


@pytest.mark.slow
@pytest.mark.parametrize('streams', [['gone', 'lost', 'left'], []])
def test_necks_and_heads_that_ask_for_their_channels(
        streams: list, tmp_path: Path) -> None:
    """They read one stream, and are not asked what several modules give."""
    trunk = save_trunk(tmp_path / 'trunk.pth')
    zoo = make_zoo(tmp_path, trunk)
    cfg = config('det', trunk, modules=streams)
    plain = rank_modules(cfg, str(zoo)).scores
    cfg.model.neck.update(in_channels='auto', modules=streams)
    cfg.model.bbox_head.in_channels = 'auto'
    assert rank_modules(cfg, str(zoo)).scores == plain


def test_what_does_not_fit_is_listed_with_the_reason(tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    zoo = make_zoo(tmp_path, trunk)
    other = build_backbone(save_trunk(tmp_path / 'other.pth', seed=5))
    add_modules(other, 'foreign')
    save_module(other, 'foreign', str(zoo))
    damaged = zoo / 'mild' / 'module.safetensors'
    damaged.write_bytes(damaged.read_bytes()[:-1])
    ranking = rank_modules(config('cls', trunk), str(zoo))
    assert set(ranking.scores) == {TRUNK, 'drowns'}
    assert 'the weights in its slots differ' in ranking.skipped['foreign']
    assert 'damaged' in ranking.skipped['mild']


def test_what_a_backbone_refuses_leaves_the_others(tmp_path: Path) -> None:
    """A kind of module that this version does not know."""
    trunk = save_trunk(tmp_path / 'trunk.pth')
    zoo = make_zoo(tmp_path, trunk)
    card = zoo / 'drowns' / 'card.json'
    card.write_text(card.read_text().replace('ConvPass', 'Novelty'))
    model, skipped = fitting_model(config('cls', trunk), str(zoo))
    assert model.backbone.bank.names == ['mild']
    assert list(skipped) == ['drowns'] and 'Novelty' in skipped['drowns']


def test_constant_features_are_not_scored(tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    backbone = build_backbone(trunk)
    add_modules(backbone, 'dead', 'mild')
    for adapter in backbone.bank.members['dead'].values():
        torch.nn.init.constant_(adapter.up.bias, 1e30)
    for name in backbone.bank.names:
        save_module(backbone, name, str(tmp_path / 'zoo'))
    ranking = rank_modules(config('cls', trunk), str(tmp_path / 'zoo'))
    assert 'same for every image' in ranking.skipped['dead']
    assert 'mild' in ranking.scores


def test_refusals_are_sentences(tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    zoo = str(make_zoo(tmp_path, trunk))
    cfg = config('cls', trunk)
    with pytest.raises(ZooError, match='no zoo at'):
        rank_modules(cfg, str(tmp_path / 'nowhere'))
    other = save_trunk(tmp_path / 'other.pth', seed=5)
    with pytest.raises(ZooError, match='No module .* fits .* holds 2') as why:
        rank_modules(config('cls', other), zoo)
    assert 'mild: Module' in str(why.value)
    with pytest.raises(ValueError, match='have one class'):
        one = config('cls', trunk, num=3)
        # every other picture has the same class
        one.train_dataloader.dataset = dict(
            type='mmengine.TinyPictures', kind='cls', num=2)
        one.train_dataloader.batch_size = 1
        rank_modules(one, zoo, max_pictures=1)
    few = config('cls', trunk, num=2)
    few.train_dataloader.update(
        drop_last=True, sampler=dict(type='DefaultSampler'))
    with pytest.raises(ValueError, match='do not fill one batch of 3'):
        rank_modules(few, zoo)
    cfg.train_dataloader = None
    with pytest.raises(ValueError, match='no train_dataloader'):
        rank_modules(cfg, zoo)
    cfg.model.backbone.type = 'mmpretrain.ResNet'
    with pytest.raises(ValueError, match="is 'mmpretrain.ResNet'"):
        rank_modules(cfg, zoo)


def test_mixed_pictures_are_scored_unmixed(tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    zoo = str(make_zoo(tmp_path, trunk))
    cfg = config('cls', trunk, num=8)
    plain = rank_modules(cfg, zoo).scores
    # where mmpretrain's base configs have it: beside the model
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    cfg.data_preprocessor.batch_augments = dict(
        augments=[dict(type='Mixup', alpha=1.)])
    cfg.data_preprocessor.num_classes = 2
    cfg.data_preprocessor.to_onehot = True
    assert rank_modules(cfg, zoo).scores == plain


class Sides(Pictures):
    """Whether a faint square is left or right, which a random trunk hides."""

    def __init__(self, num: int, seed: int) -> None:
        super().__init__('cls', num)
        generator = torch.Generator().manual_seed(seed)
        for index, sample in enumerate(self.samples):
            image = torch.randint(0, 120, (3, 56, 56), generator=generator)
            top = int(torch.randint(0, 28, (), generator=generator))
            left = 28 * (index % 2)
            image[:, top:top + 28, left:left + 28] += 40
            sample['inputs'] = image.byte()


def test_a_module_that_learned_the_task_ranks_above_a_random_one(
        tmp_path: Path) -> None:
    trunk = save_trunk(tmp_path / 'trunk.pth')
    cfg = config('cls', trunk)
    loader = dict(cfg.train_dataloader, dataset=Sides(64, 0), batch_size=16)
    model = model_cfg('cls', dict(trunk=trunk, new_module='learned'),
                      fusion_neck('cls'))
    run = build_runner('cls', model, tmp_path / 'run', iters=100,
                       train_dataloader=loader)
    run.train()
    zoo = str(tmp_path / 'zoo')
    save_module(run.model.backbone, 'learned', zoo)
    backbone = build_backbone(trunk)
    add_modules(backbone, 'random')
    save_module(backbone, 'random', zoo)
    # other pictures than it learned from
    DATASETS.register_module('TinyPictures', force=True, module=Sides)
    cfg.train_dataloader.dataset = dict(
        type='mmengine.TinyPictures', num=60, seed=1)
    scores = rank_modules(cfg, zoo).scores
    assert list(scores)[0] == 'learned'
    assert scores['learned']['ours'] > 0.8
    assert scores['random']['ours'] < 0.7 and scores[TRUNK]['ours'] < 0.7
    for score in SCORES:
        assert scores['learned'][score] > scores['random'][score] + 0.1
