# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A classification task of a checkpoint in the layout of ViM's release.

    python tools/model_converters/convert_vim.py pytorch_model.pt \\
        work_dirs/vim_release
    python tools/test.py work_dirs/vim_release/cls-NAME.py \\
        work_dirs/vim_release/cls-NAME.pth \\
        --cfg-options test_dataloader.dataset.data_root=data/NAME

Folders are numbered as their names sort, classes as the file numbers them:
where both have the same names in another order, testing is refused.

The layout knows ``cls*`` tasks; the published file holds ``seg-voc`` alone.
The converter writes one config a task: this one with the names, the number of
modules and all sizes that it found in the file. Testing takes a GPU of 4 GB
(an estimate) or a CPU. Not measured.

From the release: trunk, modules, gates, the linear head on CLIP's projected
class token, the squashed 224 x 224 images with ImageNet's mean and
deviation. Ours: the projection folded into the head, which is exact, and the
names of the modules.
"""
_base_ = [
    '../_base_/models/vim_release_cls.py',
    '../_base_/datasets/vim_release_224_cls.py',
    '../_base_/default_runtime.py',
]

release = 'work_dirs/vim_release'
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        trunk=dict(init_cfg=dict(checkpoint=f'{release}/trunk.safetensors')),
        zoo=f'{release}/zoo',
        modules=[f'module-{i}' for i in range(6)],
        fusion=dict(type='vim_mm.EnsMoE', tasks=['cls'])))
load_from = f'{release}/cls.pth'

test_cfg = dict(type='TestLoop')
