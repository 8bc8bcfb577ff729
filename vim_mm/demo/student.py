# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The steps of ``tools/demo.py student``: what each runs, reuses and shows."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional, Tuple

from vim_mm.interchange.trunks import convert_trunk
from vim_mm.report import Contrast
from vim_mm.utils.files import sha256
from .common import inputs, stored, trunk_path, write_result
from .student_runs import RUNS
from .student_training import config

TITLE = 'vim_mm demo: from few images to a small model'
INTRO = (
    'Solar cells, 40 images a class: an EfficientNet-Lite0 of ImageNet '
    'becomes the teacher (OTA), or it and a ViT-S/14 stay frozen (TDMR); a '
    'MobileNetV2 becomes the student. Tree crowns: a MobileNetV2 learns boxes '
    'from a detector with a plug-in module. Students end as ONNX files. One '
    'seed ({seed}), small test sets: directions, not benchmarks. Bold: the '
    'best row of a table.')
TERMS = {
    'teacher, student': 'a large network, and a small one that learns from '
    'it',
    'KD': "distillation: the student follows the teacher's outputs",
    're-represented': 'an image as the published auto-encoder gives it back',
    'IRF': 'head on re-represented images first, then all on originals',
    'LP-FT': 'head first, then all, both on originals',
    'DIGG': 'images generated from the few and the teacher',
    'TDMR': 'distillation from a small space between the foundation models '
    'and the task',
    'ONNX': 'a file that runs without PyTorch',
}
DOCS = ['students.md']


@dataclass(frozen=True)
class StudentStep:
    """One step.

    Attributes:
        title (str): Heading.
        configs (tuple[str]): What it reads.
        text (str): A few words on data and method.
        after (tuple[str]): Steps whose results it reads.
        ranked (bool): Whether its rows compete.
        contrast (Contrast, optional): What it is about.
    """
    title: str
    configs: Tuple[str, ...]
    text: str
    after: Tuple[str, ...] = ()
    ranked: bool = False
    contrast: Optional[Contrast] = None


TEACHER, OTA = 'ota/demo_teacher_solar-cells', 'ota/demo_student_solar-cells'
TDMR = 'tdmr/demo_solar-cells'
TREES = ('demo/midstream_tree-crowns_det', 'kd/tree-crowns_mobilenet-v2')

STEPS: Dict[str, StudentStep] = {
    'release':
    StudentStep(
        'The provider: codes instead of images',
        ('ota/demo_release', TEACHER),
        'A VQ auto-encoder learns from unlabelled photographs and is '
        'published with a report of what it leaks about them.'),
    'teacher':
    StudentStep(
        'IRF: the teacher learns from few images', (TEACHER, ),
        'Its head learns on re-represented images, then all of it on the '
        'originals. LP-FT, with originals in both, is the control.',
        ('release', ),
        ranked=True,
        contrast=Contrast('What IRF adds', 'IRF', 'LP-FT')),
    'generation':
    StudentStep(
        'DIGG: images guided by the few', (TEACHER, ),
        'Each image starts at one of the few and is changed until the '
        "teacher's layers see in it what they saw in training.",
        ('teacher', )),
    'ota':
    StudentStep(
        'OTA: a small model from real, re-represented and generated images',
        (OTA, TEACHER),
        'All students start alike and learn for 100 steps; labels count for '
        'the real images alone.', ('release', 'teacher', 'generation'),
        ranked=True,
        contrast=Contrast('What OTA adds', 'OTA', 'student alone')),
    'tdmr':
    StudentStep(
        'TDMR: a small model from a proxy space', (TDMR, ),
        'Two foundation models run once for each view of an image and are '
        'never back-propagated; a small net leads from their features to the '
        'task, and the student follows it, less and less.',
        contrast=Contrast('What TDMR adds', 'TDMR',
                          'KD from a linear probe')),
    'detection':
    StudentStep(
        'Boxes: a small detector from a large one', TREES,
        'The teacher is a frozen trunk with a module; scores and the features '
        'that its heads read are distilled.',
        ranked=True,
        contrast=Contrast('What distilling a detector adds',
                          'student with KD', 'student alone')),
    'export':
    StudentStep(
        'ONNX: the students, ready to deploy', (TDMR, TREES[1]),
        'One file each, compared with PyTorch before it is written; the '
        'metric is that of the file, run by onnxruntime.',
        ('teacher', 'tdmr', 'detection')),
}

#: trunks that this demo reads besides the one of all demos
TRUNKS = {
    'efficientnet-lite0': 'efficientnet_lite0.safetensors',
    'mobilenet-v2': 'mobilenet_v2.safetensors'
}


def prepare_trunks() -> None:
    """Write the weights of the small networks, if not there."""
    for family, name in TRUNKS.items():
        path = trunk_path().with_name(name)
        if not path.is_file():
            convert_trunk(family, None, path)


def fingerprint(name: str, work_dir: Path, seed: int = 0) -> str:
    """Hash of all inputs of a step: configs, version, data and trunks."""
    step = STEPS[name]
    parts = [config(each, work_dir, seed).pretty_text for each in step.configs]
    parts += inputs()
    for file in TRUNKS.values():
        path = trunk_path().with_name(file)
        if path.is_file():
            parts.append(sha256(path))
    for each in step.after:
        parts.append(str(stored(each, work_dir).get('fingerprint')))
    return sha256('\n'.join(parts).encode())


def finished(name: str, work_dir: Path, seed: int = 0) -> bool:
    """Whether there is a result of exactly this step."""
    return stored(name, work_dir).get('fingerprint') == fingerprint(
        name, work_dir, seed)


def run(name: str, work_dir: Path, seed: int = 0) -> None:
    """Run a step in this process and write its ``result.json`` last."""
    start = time.perf_counter()
    prepare_trunks()
    key = fingerprint(name, work_dir, seed)
    step = STEPS[name]
    found = RUNS[name](work_dir, seed).step(step, start, step.ranked)
    write_result(work_dir, name, found, fingerprint=key)
