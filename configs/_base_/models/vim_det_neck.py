# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# From four maps of one stride to five of a feature pyramid: the steps of
# ViM's segmentation head, narrowed to 256 channels, then mmdet's FPN. Ours:
# the release knows no detection. Its raw maps are normalised here first, and
# LN takes the place of BN inside, for two images per GPU.
det_neck = dict(
    type='vim_mm.ViMFusionNeck',
    in_channels='auto',
    scales=(4, 2, 1, 0.5),
    out_channels=256,
    pre_norm_cfg=dict(type='mmpretrain.LN2d'),
    norm_cfg=dict(type='mmpretrain.LN2d'),
    inner_neck=dict(
        type='mmdet.FPN',
        in_channels='auto',
        out_channels=256,
        num_outs=5))
