# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# Before a fused task trains, its gates start where modules help on held-out
# images, if any does, and its head from cached features; in the end learned
# gates are kept if they help more. All are ours, not the paper's. 50 batches a
# process hold all of VTAB-1k, and at most about 5 GB of a dense task's maps.
head_hooks = [dict(type='vim_mm.WarmHeadHook', epochs=20, max_batches=50)]
custom_hooks = [
    dict(type='vim_mm.ScoreGatesHook'), *head_hooks,
    dict(type='vim_mm.BetterGatesHook'),
    dict(type='vim_mm.GateLogHook')
]
