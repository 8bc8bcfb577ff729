# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DIGG: clothes, two images of each of 100 guides, for EfficientNet-Lite0.

    python tools/generate.py configs/ota/generate_clothing_efficientnet-lite0.py \\
        --teacher work_dirs/irf_clothing_efficientnet-lite0/epoch_20.pth \\
        --out work_dirs/ota/clothing_generated

The teacher is that of ./irf_clothing_efficientnet-lite0.py and has BatchNorm,
so its running statistics are what generated images should have. Guides are
the ten images a class of its training, cropped and mirrored anew for each
copy. OTA names the idea and gives no formula: the form is DeepInversion's,
started at a guide; learning rate, steps and weights are ours.

``generator.canvas`` takes ``dict(type='vim_mm.PyramidCanvas')``, and, with the
folder that tools/release.py writes, ``dict(type='vim_mm.LatentCanvas',
release='work_dirs/ota/release')``.
"""  # noqa: E501
_base_ = './irf_clothing_efficientnet-lite0.py'

generate = dict(
    copies=2,
    batch_size=20,
    generator=dict(
        type='vim_mm.GuidedGenerator',
        iterations=100,
        lr=0.005,
        noise=0.02,
        weights=dict(statistics=0.01, guidance=1.),
        # three of the seven stages
        layers=r'backbone\.timm_model\.blocks\.(1|3|5)'))
