# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ViM's released segmentor of PASCAL VOC 2012, converted.

    python tools/model_converters/convert_vim.py pytorch_model.pt \\
        work_dirs/vim_release
    python tools/test.py work_dirs/vim_release/seg-voc.py \\
        work_dirs/vim_release/seg-voc.pth

The converter writes ``work_dirs/vim_release/seg-voc.py``: this config with the
number of modules and all sizes that it found in the file. The file is the
authors' (ModelScope ``damo/cv_vit-b16_vision-middleware``), brought by the
user. Testing takes a GPU of 4 GB (an estimate) or a CPU; no result is
published for it, and none was measured here.

From the release: trunk, modules, gates, pyramid, neck, head, the squashed
224 x 224 images with ImageNet's mean and deviation. Ours: the names of the
modules and their number here (the paper's figure names six data sets; the file
has no names), and how a class is chosen: mmseg upsamples the logits
(``align_corners=False``) to the original image, the release upsamples
probabilities (``align_corners=True``) to 224 x 224.
"""
_base_ = [
    '../_base_/models/vim_release_seg.py',
    '../_base_/datasets/vim_release_224_seg.py',
    '../_base_/default_runtime.py',
]

release = 'work_dirs/vim_release'
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        trunk=dict(init_cfg=dict(checkpoint=f'{release}/trunk.safetensors')),
        zoo=f'{release}/zoo',
        modules=[f'module-{i}' for i in range(6)],
        fusion=dict(type='vim_mm.EnsMoE', tasks=['seg-voc'])))
load_from = f'{release}/seg-voc.pth'

test_cfg = dict(type='TestLoop')
