# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A fourth task for the demo's three, which forget nothing: solar cells.

    make demo-mtht    # writes the checkpoint this starts from
    python tools/train.py configs/mtht/demo_continual-solar-cells.py

Expect, on two CPU cores, 2 minutes; results in README.md. The new task gets
routers, one new expert in each layer and a head, which alone learn; the
outputs of the other tasks stay the same, bit for bit, which their metrics at
the end show.

From MTHT: new routers and experts beside frozen ones. That old routers stay
as narrow as they were, and all shared parts are frozen, makes "without
forgetting" exact and is ours, as are data, head and schedule.
"""
import importlib

_base_ = './demo_cls-det-seg.py'

join_tasks = importlib.import_module('vim_mm.utils.join_tasks').join_tasks
parts = join_tasks(solar='{{fileDirname}}/demo_adapt-solar-cells.py')

model = dict(
    tasks=parts.tasks,
    new_tasks=dict(solar=dict(num_experts=1, like='cls')),
    learn_tasks=['solar'],
    loss_weights=dict(solar=1.))

custom_hooks = [
    dict(type='vim_mm.WarmHeadHook', task='solar', epochs=10),
    dict(type='vim_mm.RoutingLogHook', interval=20)
]

train_dataloader = dict(cls=None, det=None, seg=None, **parts.train_dataloader)
val_dataloader = parts.val_dataloader
val_evaluator = parts.val_evaluator
test_dataloader = parts.test_dataloader
test_evaluator = parts.test_evaluator

train_cfg = dict(
    max_iters=40, val_interval=40, weights=dict(cls=0, det=0, seg=0, solar=1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, end=10, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=10,
        end=40,
        eta_min_ratio=1e-3,
        by_epoch=False)
]
load_from = 'work_dirs/demo_mtht/joint/iter_150.pth'

del parts, join_tasks
