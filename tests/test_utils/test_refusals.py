# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Errors of libraries are told from those of files of one's own."""

import sys
from importlib import import_module
from pathlib import Path
from typing import List

import pytest
from mmcv.transforms import BaseTransform
from mmdet.datasets import BaseDetDataset, MultiImageMixDataset
from mmdet.registry import TRANSFORMS

from vim_mm.utils.refusals import refusal, refused_by_library


@pytest.mark.parametrize(('name', 'refused'), [
    ('mmdet.not_installed_here', True), ('mmseg_of_mine', False),
    ('my_project', False), ('vim_mm.own', False)])
def test_a_library_is_one_wherever_it_lies(
        name: str, refused: bool, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone of a library is not in site-packages."""
    leaf = name.rpartition('.')[2]
    (tmp_path / f'{leaf}.py').write_text("def look():\n    {}['key']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = import_module(leaf)
    monkeypatch.delitem(sys.modules, leaf)
    module.__dict__['__name__'] = name
    with pytest.raises(KeyError) as caught:
        module.look()
    assert refused_by_library(caught.value) is refused


class Forgets(BaseTransform):
    """Gives nothing."""

    def transform(self, results: dict) -> None:
        return None


class Images(BaseDetDataset):
    """One without a pipeline."""

    def load_data_list(self) -> List[dict]:
        return [dict(img_path='0.png')]


def test_the_stage_of_a_wrapper_is_named() -> None:
    TRANSFORMS.register_module(module=Forgets, force=True)
    data = MultiImageMixDataset(
        dataset=Images(pipeline=[]), pipeline=[dict(type='Forgets')],
        max_refetch=2)
    with pytest.raises(RuntimeError) as caught:
        data[0]
    said = str(refusal('The run fails', caught.value, 'correct it'))
    assert said.startswith('The run fails in the stage Forgets: RuntimeError')
