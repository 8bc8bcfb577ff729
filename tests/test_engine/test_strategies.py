# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checkpoints that no run could go on with are refused before a training."""

from typing import Any

import pytest
from mmengine._strategy import FSDPStrategy as MMEngineFSDP
from mmengine.config import Config
from torch.distributed.fsdp import StateDictType

from vim_mm.engine.strategies import FSDPStrategy
from vim_mm.engine.strategies.fsdp_strategy import check_strategy

WHOLE = dict(state_dict_type='FULL_STATE_DICT')


@pytest.mark.parametrize('cfg', [
    'local', 'sharded', 'FULL', '', None, 3, {}, [], dict(state_dict_type=3),
    dict(state_dict_type='LOCAL_STATE_DICT'),
    dict(state_dict_type='SHARDED_STATE_DICT'),
    dict(state_dict_type=StateDictType.SHARDED_STATE_DICT),
    dict(WHOLE, state_dict_config=dict(type='LocalStateDictConfig')),
    dict(WHOLE, optim_state_dict_config=dict(type='LocalOptimStateDictConfig'))
], ids=str)
def test_checkpoints_in_parts_are_refused(cfg: Any) -> None:
    for given in (cfg, Config(dict(a=cfg)).a):
        with pytest.raises(ValueError, match="state_dict_cfg.*set it to 'ful"):
            FSDPStrategy(state_dict_cfg=given)


@pytest.mark.parametrize('cfg', [
    {}, dict(state_dict_cfg='full'), dict(state_dict_cfg=WHOLE),
    dict(state_dict_cfg=dict(
        state_dict_type=StateDictType.FULL_STATE_DICT,
        state_dict_config=dict(type='FullStateDictConfig')))], ids=str)
def test_whole_checkpoints_are_written(cfg: dict) -> None:
    strategy = FSDPStrategy(**cfg)
    assert strategy._is_full_state_dict()
    check_strategy(strategy)
    check_strategy(None)


def test_the_strategy_of_mmengine_is_refused() -> None:
    with pytest.raises(ValueError, match="set it to 'vim_mm.FSDPStrategy'"):
        check_strategy(MMEngineFSDP(state_dict_cfg='full'))
