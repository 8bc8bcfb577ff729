# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Kinds of tasks against what the libraries register and name."""

import pytest
from mmengine.registry import HOOKS, VISUALIZERS
from mmengine.structures import BaseDataElement

from _tiny import Pictures
from vim_mm.utils.kinds import KINDS, find_kind


@pytest.mark.parametrize('name', KINDS)
def test_a_kind_names_what_its_library_has(name):
    kind = KINDS[name]
    for registry, type_ in ((HOOKS, kind.hook),
                            (VISUALIZERS, kind.visualizer['type'])):
        found = registry.get(type_)
        assert found.__module__.partition('.')[0] == kind.scope
    sample = Pictures(name, 1)[0]['data_samples']
    assert find_kind(sample, 'gt') == name
    assert find_kind(sample, 'pred') is None
    # DataSample has a setter where the others have a property
    assert {kind.pred, f'set_{kind.pred}'} & set(dir(type(sample)))


def test_a_sample_of_no_known_kind():
    sample = BaseDataElement(gt_caption='x')
    assert find_kind(sample, 'gt') is find_kind(sample, 'pred') is None
