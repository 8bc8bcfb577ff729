# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A cache takes what there is room for, and says what it leaves out."""

from pathlib import Path
from typing import Optional

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader

from _tiny import KINDS, Pictures, build_model, fusion_neck, vit
from vim_mm.features import places
from vim_mm.features.cache import cache_features
from vim_mm.features.places import Disk, Memory, Room, each_tensor, size_of


class Place(Memory):
    """Of so many bytes, half of which may be taken."""

    def __init__(self, free: Optional[int]) -> None:
        self._free = free

    def free(self) -> Optional[int]:
        return self._free


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list:
    lines: list = []
    monkeypatch.setattr(places, 'print_log',
                        lambda text, **_: lines.append(text))
    return lines


@pytest.mark.parametrize(('free', 'views', 'batches', 'kept'), [
    (None, 4, 10, (4, 10)),  # unknown
    (8000, 4, 10, (4, 10)),
    (7999, 4, 10, (3, 10)),  # other images before other views
    (2000, 4, 10, (1, 10)),
    (1999, 4, 10, (1, 9)),
    (200, 4, 10, (1, 1)),
    (1000, 1, 10, (1, 5)),
])
def test_room(free: Optional[int], views: int, batches: int, kept: tuple,
              said: list) -> None:
    room = Room(Place(free), views, batches)
    assert room.take(100)
    assert (room.views, room.batches) == kept
    thinned = kept != (views, batches)
    assert len(said) == thinned
    if thinned:
        assert f'max_batches={kept[1]}' in said[0] and 'folder' in said[0]
    # batches may grow
    for _ in range(kept[0] * kept[1] - 1):
        assert room.take(100)
    if free is not None:
        assert not room.take(100000)
        assert 'Caching ends here' in said[-1]


@pytest.mark.parametrize('free', [0, 199])
def test_not_even_one_batch(free: int) -> None:
    with pytest.raises(ValueError, match='10 batches need about 1.0 kB, and '
                       f'of memory {free} bytes are free; .*`folder`'):
        Room(Place(free), 1, 10).take(100)


def test_where_all_are_needed() -> None:
    place = Place(2000)
    place.thins = False
    room = Room(place, 1, 10)
    assert all(room.take(100) for _ in range(10))
    with pytest.raises(ValueError, match='memory would be full'):
        room.take(1)
    with pytest.raises(ValueError, match='2.0 kB are free; '):
        Room(place, 1, 11).take(100)


@pytest.mark.parametrize('kind', KINDS)
def test_memory_and_disk_hold_the_same(kind: str, tmp_path: Path) -> None:
    model = build_model(kind, dict(trunk=vit()), fusion_neck(kind))
    loader = DataLoader(
        Pictures(kind), batch_size=3, collate_fn=pseudo_collate)
    folder = tmp_path / 'new' / 'folder'
    memory = cache_features(model, loader)
    disk = cache_features(model, loader, place=Disk(folder))
    assert len(memory) == len(disk) == 3
    for one, other in zip(memory, disk):
        kept: list = [[], []]
        for batch, tensors in zip((one, other), kept):
            each_tensor((batch.features, batch.data_samples),
                        lambda x: tensors.append(x) or x)
        assert len(kept[0]) == len(kept[1]) > 3
        assert all(map(torch.equal, *kept))
        assert one.input_shape == other.input_shape
        assert [s.img_id for s in one.data_samples] == [
            s.img_id for s in other.data_samples]
    # nothing is left, however the process ends
    assert folder.is_dir() and not any(folder.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match="'.*file/x'.*name another `folder`"):
        Disk(tmp_path / 'file' / 'x')
    place = Disk(tmp_path / 'gone')
    (tmp_path / 'gone').rmdir()
    with pytest.raises(ValueError, match='cannot be kept in .*make room'):
        place.keep((torch.zeros(2), ), [])


def test_views_of_one_memory_are_kept(tmp_path: Path) -> None:
    whole = torch.arange(24.).reshape(2, 3, 4)
    features = (whole[:, 1:], whole.transpose(1, 2), whole[:0])
    kept, _ = Disk(tmp_path).keep(features, [])
    assert all(map(torch.equal, kept, features))


def test_sizes() -> None:
    sample = DetDataSample(
        gt_instances=InstanceData(
            bboxes=torch.zeros(2, 4),
            masks=BitmapMasks([torch.zeros(5, 5).byte().numpy()] * 2, 5, 5)))
    sample.set_metainfo(dict(img_id=1))
    assert size_of([sample, dict(x=torch.zeros(3))]) == 32 + 50 + 12


def test_processes_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, 'free_memory', lambda: 1000)
    for size, expected in ((None, 1000), ('4', 250), ('', 1000)):
        monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
        if size is not None:
            monkeypatch.setenv('LOCAL_WORLD_SIZE', size)
        assert Memory().free() == expected
    monkeypatch.setattr(places, 'free_memory', lambda: None)
    assert Memory().free() is None
