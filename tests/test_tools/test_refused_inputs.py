# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Empty images, and checkpoints of other configs, as a user meets them."""

from pathlib import Path
from typing import List

import pytest
import torch
from _own_data import HERE, run, write_data, write_trunk
from mmengine.config import Config
from mmengine.registry import init_default_scope

import vim_mm
from _tiny import KINDS, first_of
from vim_mm.apis import ViMInferencer
from vim_mm.apis.new_task import new_task, read_data
from vim_mm.models import build_model
from vim_mm.registry import DATASETS

if not (Path(vim_mm.__file__).parent / '.mim').exists():
    pytest.skip('vim_mm runs from a source tree; install it',
                allow_module_level=True)

DATA = dict(
    cls=dict(folder='photos'),
    det=dict(coco=['cells/train.json', 'cells/val.json']),
    seg=dict(
        images=['street/img'],
        labels='street/maps',
        classes=['street/classes.txt']))
FROZEN = ("_base_ = 'mine.py'\nmodel = dict(backbone=dict(new_module=None))\n"
          'custom_hooks = []\n')
FUSED = ("_base_ = 'mine.py'\nmodel = dict(backbone=dict(fusion=dict("
         "type='vim_mm.EnsMoE', tasks=['t'])))\n")

#: Config of the checkpoint, config that it is judged by, what is said.
BEYOND = (
    ('mine.py', 'frozen.py', "holds the module 'mine', which"),
    ('fused.py', 'frozen.py', "holds gates and the module 'mine', which"),
    ('fused.py', 'mine.py', 'holds gates'),
)


def write_project(kind: str, folder: Path) -> None:
    """A config of a kind of task and two variants of it."""
    write_data(folder)
    write_trunk(folder)
    new_task(read_data(**DATA[kind]), 'my_trunk.py', 'mine.py',
             images_a_second=100., size=32)
    for name, text in (('frozen.py', FROZEN), ('fused.py', FUSED)):
        Path(name).write_text(text)


def checkpoint(config: str) -> str:
    cfg = Config.fromfile(config)
    file = f'{config}.pth'
    meta = dict(dataset_meta=dict(classes=cfg.classes))
    torch.save(dict(state_dict=build_model(cfg).state_dict(), meta=meta), file)
    return file


def images() -> List[Path]:
    """The images that the test of `mine.py` reads."""
    cfg = Config.fromfile('mine.py')
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    return [Path(dataset.get_data_info(i)['img_path'])
            for i in range(len(dataset))]


@pytest.mark.parametrize('kind', first_of(KINDS))
def test_what_cannot_be_judged_or_answered(
        kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(kind, tmp_path)
    # a checkpoint of more than the config has a place for
    for config, bare, held in BEYOND:
        file = checkpoint(config)
        with pytest.raises(ValueError, match=f'{file}.* {held}'):
            run(f'vim-mm test {bare} {file}', HERE)
    with pytest.raises(ValueError, match=f"'a' cannot be served.*{file}"):
        ViMInferencer({'a': ('frozen.py', file)})
    # images that are none
    file = checkpoint('mine.py')
    empty, good = images()[:2]
    text, cut = Path('text.png'), Path('cut.png')
    cut.write_bytes(good.read_bytes()[:40])
    text.write_bytes(b'no image')
    empty.write_bytes(b'')
    with pytest.raises(ValueError, match=f'The file .*{empty.name} is empty'):
        run(f'vim-mm test mine.py {file}', HERE)
    served = ViMInferencer({'a': ('mine.py', file)})
    answer = served([*map(str, (empty, text, cut, good))], out_dir='out')
    assert list(answer['errors']) == [0, 1, 2] and answer['predictions'][3]
    for index, path in enumerate((empty, text, cut)):
        why = answer['errors'][index]
        assert answer['predictions'][index] is None and path.name in why
        assert ('is damaged, or no image' if index else 'is empty') in why
    assert [path.stem for path in Path('out').rglob('*.json')] == [good.stem]
