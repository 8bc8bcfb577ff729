# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images of a report against the inferencer's painter."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from _tiny import KINDS, Pictures, build_model, fill, vit
from vim_mm.apis.results import Painter, enlarge
from vim_mm.report.figure_parts import evenly_spaced
from vim_mm.report.pictures import MAX_SIDE, add_answers
from vim_mm.report.steps import TRUTH, Gallery

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
def ask(tmp_path):

    def ask(kind, methods=('single: a', ), **meta):
        model = build_model(kind, dict(trunk=vit()))
        fill(model, .1)
        runner = SimpleNamespace(model=model, cfg=Config())
        loader = DataLoader(
            Files(kind, tmp_path, **meta), collate_fn=pseudo_collate)
        gallery = Gallery()
        for method in methods:
            add_answers(gallery, runner, loader, tmp_path, 'drawn', method, 3)
        return model, loader, gallery

    return ask


def close(path, page):
    """Whether a file holds a drawing, but for what JPEG loses."""
    found = cv2.imread(str(path)).astype(float)
    return found.shape == page.shape and np.abs(found - page).mean() < 4


@pytest.mark.parametrize('kind', KINDS)
def test_drawings_are_those_of_the_inferencer(ask, kind, tmp_path):
    model, loader, gallery = ask(kind, palette=PALETTE)
    painter = Painter(None, NAMES[kind], PALETTE)
    assert gallery.methods() == [TRUTH, 'single: a']
    found = {(a.method, a.image): a for a in gallery.answers}
    for index in (0, 3, 7):
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([loader.dataset[index]]))
        picture = cv2.imread(sample[0].img_path)
        true, said = (found[m, str(index)] for m in gallery.methods())
        if kind == 'cls':  # words say it all
            assert true.caption == NAMES[kind][index % 2] and not said.file
            assert said.right is (true.caption in said.caption)
            assert close(tmp_path / true.file, enlarge(picture)[0])
            continue
        page = painter(picture, sample[0].cpu(), labels=False)[..., ::-1]
        assert close(tmp_path / said.file, page)
        page = painter(
            picture, sample[0].cpu(), side='gt', labels=False)[..., ::-1]
        assert close(tmp_path / true.file, page)
    assert set(gallery.legend.values()) <= set(PALETTE)
    assert bool(gallery.legend) == (kind != 'cls')


@pytest.mark.parametrize('kind', KINDS)
def test_methods_share_the_truth(ask, kind, tmp_path):
    """Without colours of the data set, too."""
    gallery = ask(kind, ['one', 'two'])[2]
    assert [(a.method, a.image) for a in gallery.answers] == [
        *((m, i) for i in '037' for m in (TRUTH, 'one')),
        *(('two', i) for i in '037')
    ]
    drawn = [a for a in gallery.answers if kind != 'cls' or a.method == TRUTH]
    assert all((tmp_path / a.file).suffix == '.jpg' for a in drawn)
    assert all((tmp_path / a.file).is_file() for a in drawn)


def test_large_images_are_made_smaller(ask, tmp_path, monkeypatch):
    monkeypatch.setattr('vim_mm.report.pictures.MAX_SIDE', 100)
    assert MAX_SIDE > 320
    file = ask('seg')[2].answers[0].file
    assert max(cv2.imread(str(tmp_path / file)).shape) == 100


@pytest.mark.parametrize('length, num, indices', [(8, 3, [0, 3, 7]),
                                                  (2, 5, [0, 1]),
                                                  (1, 1, [0]), (9, 0, [])])
def test_evenly_spaced(length, num, indices):
    assert evenly_spaced(length, num) == indices
