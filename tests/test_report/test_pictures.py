# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Pictures of a report against the inferencer's painter."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from _tiny import KINDS, Pictures, build_model, fill, vit
from vim_mm.apis.results import Painter
from vim_mm.report.pictures import draw_predictions, evenly_spaced

NAMES = dict(
    cls=('left', 'right'), det=('square', ), seg=('ground', 'square'))
PALETTE = [(0, 0, 0), (255, 0, 0)]


class Files(Pictures):
    """Pictures that are files, too."""

    def __init__(self, kind, folder, **meta):
        super().__init__(kind)
        self.metainfo = dict(classes=NAMES[kind], **meta)
        for index, sample in enumerate(self.samples):
            path = str(folder / f'{index}.png')
            cv2.imwrite(path, sample['inputs'].permute(1, 2, 0).numpy())
            sample['data_samples'].set_metainfo(dict(img_path=path))


@pytest.fixture
def draw(tmp_path):

    def draw(kind, **meta):
        model = build_model(kind, dict(trunk=vit()))
        fill(model, .1)
        runner = SimpleNamespace(model=model, cfg=Config())
        loader = DataLoader(
            Files(kind, tmp_path, **meta), collate_fn=pseudo_collate)
        drawn = draw_predictions(runner, loader, tmp_path / 'drawn',
                                 'single: a', 3)
        return model, loader, drawn

    return draw


@pytest.mark.parametrize('kind', KINDS)
def test_they_are_those_of_the_inferencer(draw, kind):
    model, loader, drawn = draw(kind, palette=PALETTE)
    painter = Painter(None, NAMES[kind], PALETTE)
    assert [path.name for path, _ in drawn] == [
        f'single--a-{index}.png' for index in (0, 3, 7)
    ]
    for (path, caption), index in zip(drawn, (0, 3, 7)):
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([loader.dataset[index]]))
        picture = cv2.imread(sample[0].img_path)
        page = painter(picture, sample[0].cpu())
        assert np.array_equal(cv2.imread(str(path))[..., ::-1], page)
        assert caption.startswith('single: a: ')
        if kind == 'cls':
            assert caption.endswith(f'), is {NAMES[kind][index % 2]}')


@pytest.mark.parametrize('kind', KINDS)
def test_a_data_set_without_colours(draw, kind):
    assert all(path.is_file() for path, _ in draw(kind)[2])


@pytest.mark.parametrize('length, num, indices', [(8, 3, [0, 3, 7]),
                                                  (2, 5, [0, 1]),
                                                  (1, 1, [0]), (9, 0, [])])
def test_evenly_spaced(length, num, indices):
    assert evenly_spaced(length, num) == indices
