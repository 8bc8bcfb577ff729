# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Models from whole configs."""

from copy import deepcopy

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

from _tiny import KINDS, SCOPES, fusion_neck, model_cfg, vit
from vim_mm.models import build_model


def config(kind: str) -> Config:
    """Of a library's own types, without its name before them."""
    model = model_cfg(kind, dict(trunk=vit(), new_module='n'),
                      fusion_neck(kind))
    model.type = model.type.partition('.')[2]
    preprocessor = model.pop('data_preprocessor')
    preprocessor.type = preprocessor.type.partition('.')[2]
    return Config(
        dict(
            default_scope=SCOPES[kind],
            model=model,
            data_preprocessor=preprocessor))


@pytest.mark.parametrize('kind', KINDS)
def test_a_model_is_built_in_its_scope(kind):
    init_default_scope('mmengine')
    cfg = config(kind)
    before = deepcopy(cfg)
    model = build_model(cfg)
    assert type(model.data_preprocessor).__module__.startswith(SCOPES[kind])
    assert (model.data_preprocessor.mean == 60).all()
    assert model.backbone.bank.names == ['n']
    assert cfg.to_dict() == before.to_dict()
    assert DefaultScope.get_current_instance().scope_name == 'mmengine'


def test_the_model_s_own_preprocessor_counts():
    cfg = config('cls')
    cfg.model.data_preprocessor = dict(cfg.data_preprocessor, mean=[9.] * 3)
    assert (build_model(cfg).data_preprocessor.mean == 9).all()


def test_arguments_of_the_backbone_are_replaced():
    cfg = config('cls')
    assert build_model(cfg, new_module=None).backbone.bank.names == []
    assert cfg.model.backbone.new_module == 'n'


@pytest.mark.parametrize('content', [{}, dict(model=None)])
def test_a_config_without_model_is_a_sentence(content):
    with pytest.raises(ValueError, match='has no `model`; give one'):
        build_model(Config(content))
