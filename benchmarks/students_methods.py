# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What ``students_evidence.py`` compares, and with which settings."""

from typing import Dict

STEPS, RATE, TEACHER_RATE = 100, 3e-4, 1e-4
#: whose images and answers students learn from
TEACHER = 'lp-ft'
#: images of each class: of the ladders, and of the curve
SHOTS, CURVE = 10, (5, 20, 40)
#: methods of the curve, and of students from scratch
POINTS = ('alone', 'alone, slowly', 'kd', 'kd + re-represented', 'tdmr')
#: times the rate, with which a student alone forgets less
SLOWLY = 0.1
WARM = dict(epochs=40, views=4)
#: images are enlarged by it to be re-represented
SCALE = 2.
#: logits and own loss of plain distillation
ALPHA = 0.9
#: methods with other teachers
OTHERS = {'kd, fine-tuned teacher': 'full', 'ota, IRF teacher': 'irf'}
#: what TDMR's student has in place of its defaults
TDMR: Dict[str, dict] = {
    'tdmr': {},
    'linear probe, logits':
    dict(proxy=dict(reprogram=False), schedule=dict(feature=0.)),
    'hint':
    dict(proxy=dict(reprogram=False), schedule=dict(logits=0.)),
    'aft':
    dict(
        proxy=dict(reprogram=False),
        feature_loss=dict(type='vim_mm.AFTLoss'),
        schedule=dict(kind='constant', feature=10., logits=0.)),
    'constant':
    dict(schedule=dict(kind='constant')),
    'reversed':
    dict(schedule=dict(kind='reversed')),
    'features alone':
    dict(schedule=dict(logits=0.)),
    'logits alone':
    dict(schedule=dict(feature=0.)),
    'without phase I':
    dict(schedule=dict(first=0.)),
    'cka':
    dict(feature_loss=dict(type='vim_mm.LinearCKA')),
    'co-trained':
    dict(cotrain=True),
}
GENERATE: Dict[str, dict] = {
    'digg': dict(iterations=60),
    'digg, latent':
    dict(iterations=40, canvas=dict(type='vim_mm.LatentCanvas')),
    'noise': dict(iterations=60, lr=0.05, noise=10.),
}
