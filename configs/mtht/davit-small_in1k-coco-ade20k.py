# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The dense twin of MTHT Small: one DaViT-S on the three data sets.

Command, on 12 nodes of 8 GPUs with Slurm (docs/several_nodes.md):

    GPUS=96 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION mtht \\
        configs/mtht/davit-small_in1k-coco-ade20k.py WORK_DIR --amp

Expected result and hardware: not measured at this scale. 49.0 M
parameters in the backbone.

The baseline without experts of ``moe-davit-small_in1k-coco-ade20k.py``, equal
in all else; from MTHT's code.
"""
_base_ = '../_base_/models/mtht_in1k-coco-ade20k.py'

model = dict(backbone=dict(arch='small', moe=None))
