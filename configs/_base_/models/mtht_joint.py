# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Classification, detection and segmentation over one trunk, whose MLPs become
# 8 experts each, 4 a token: give the `trunk` of the backbone, and `tasks`.
model = dict(
    type='vim_mm.MultiTaskModel',
    backbone=dict(type='vim_mm.to_moe', num_experts=8, k=4, perturb=0.05),
    loss_weights=dict(cls=1., det=0.6, seg=0.2),
    routing=dict(type='vim_mm.MutualInformation', weight=0.5, start=5))
