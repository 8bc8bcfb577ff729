# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""MTHT Tiny: one MoE-DaViT-T on ImageNet-1k, COCO boxes and ADE20K.

Command, on 12 nodes of 8 GPUs with Slurm (docs/several_nodes.md):

    GPUS=96 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION mtht \\
        configs/mtht/moe-davit-tiny_in1k-coco-ade20k.py WORK_DIR --amp

Expected result: not measured at this scale, and no table of the paper is
available to us; small runs on real images: docs/evidence/mtht.json.
Hardware: not measured. Of 288.8 M parameters of the backbone with three
routers a layer, a token of one task visits 28.2 M.

From MTHT's code (arXiv 2306.17165): 64 experts of C hidden units in all 12
MLPs, 4 per token, raw gates, routers of two layers, the mutual information
loss at 5e-4 a layer, task weights 15:10:5, loss weights 1 / 0.6 / 0.2, images
a GPU 64 / 2 / 2, LAMB, one cycle over 240,000 steps, clipping at 0.1, drop
path, training from scratch. Ours: how experts are drawn at first, and no 1e-4
added to gates (docs/mtht.md).
"""
_base_ = '../_base_/models/mtht_in1k-coco-ade20k.py'

model = dict(
    backbone=dict(arch='tiny'),
    routing=dict(type='vim_mm.MutualInformation', weight=5e-4))
