# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Tree crowns from the air, alone: two tiles a step.

    python tools/train.py configs/mtht/real_single/tree-crowns_det.py

Expected result: not measured with this schedule; a shorter one is
in docs/evidence/README.md. The joint config reads model, data and metric from
here.
"""
_base_ = '../demo_single/tree-crowns_det.py'

train_dataloader = dict(batch_size=2)
