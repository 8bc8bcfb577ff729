# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checks data and trunk, measures, and writes the config of a new task."""

import re
import shlex
import textwrap
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

from vim_mm.utils.arguments import check_width
from vim_mm.utils.config import read_config
from vim_mm.utils.drafts import NotFlushedError, open_draft
from vim_mm.utils.files import discard, write_atomic
from vim_mm.utils.kinds import KINDS
from vim_mm.utils.quiet_logs import quiet
from vim_mm.zoo.base_card import check_name, is_name
from .coco import read_coco
from .folders import read_folders
from .label_maps import read_label_maps
from .own_data import OwnData, OwnDataError, short
from .own_trunk import OwnTrunk, TrunkError, find_trunk
from .plan import Pace, Plan, given_pace, in_words, make_plan, measure
from .text import ZOO, Writer

#: Sides of images in pixels, by median size of the data between the two.
SIDES = dict(cls=(112, 224), det=(112, 448), seg=(112, 448))
WORDS = dict(cls='Classification', det='Detection', seg='Segmentation')


@dataclass
class NewTask:
    """A config that was written.

    Attributes:
        config (Path): The config.
        name (str): Name of the task and of its module.
        data (OwnData): What was found.
        plan (Plan): How long it runs.
        pace (str): What the plan was made by.
        notes (list[str]): What the user should know.
        commands (list[str]): What to do next, in order.
    """
    config: Path
    name: str
    data: OwnData
    plan: Plan
    pace: str
    notes: List[str]
    commands: List[str]


def read_data(coco: Sequence[str] = (),
              folder: Optional[str] = None,
              images: Sequence[str] = (),
              labels: Optional[str] = None,
              classes: Sequence[str] = ()) -> OwnData:
    """Read and check data of any kind; arguments are those of the tool.

    Raises:
        FileNotFoundError: If something is not there.
        OwnDataError: If it is not said which data, or it cannot be learned
            from.
    """
    if bool(coco) + bool(folder) + bool(labels) != 1:
        raise OwnDataError(
            'Name the data in one way: --coco JSON [JSON], --folder DIR, or '
            '--images DIR --labels DIR.')
    if classes and not labels:
        raise OwnDataError('--classes is for label maps; a json and folders '
                           'name their classes themselves.')
    if coco:
        return read_coco([Path(each).expanduser() for each in coco],
                         [Path(each).expanduser() for each in images])
    if folder:
        if images:
            raise OwnDataError('--images belongs to --coco or --labels; '
                               '--folder holds its images itself.')
        return read_folders(Path(folder).expanduser())
    if len(images) != 1:
        raise OwnDataError('--labels needs one folder of images beside it: '
                           '--images DIR.')
    return read_label_maps(
        Path(images[0]).expanduser(),
        Path(labels).expanduser(), classes)


def new_task(data: OwnData,
             trunk: str,
             out: str,
             name: Optional[str] = None,
             minutes: float = 10.,
             size: Optional[int] = None,
             shots: Optional[int] = None,
             indices: Optional[int] = None,
             licence: Optional[str] = None,
             images_a_second: Optional[float] = None,
             overwrite: bool = False) -> NewTask:
    """Write the config of a task that learns a module from one's own data.

    Args:
        data (OwnData): From :func:`read_data`.
        trunk (str): Name of a trunk config, or the path of a config.
        out (str): The config to write.
        name (str, optional): Name of the module; that of ``out`` when None.
        minutes (float): How long the training may take. Defaults to 10.
        size (int, optional): Longest side of the images in pixels, both
            sides of a classifier's; by the data when None.
        shots (int, optional): Images of each class to learn from; all when
            None.
        indices (int, optional): Learn from the first images alone.
        licence (str, optional): Licence of the module; that of the data, if
            it is known, when None.
        images_a_second (float, optional): The pace of the machine that
            trains, if it is not this one. Measured when None.
        overwrite (bool): Replace a config. Defaults to False.

    Raises:
        FileNotFoundError: If there is no such trunk.
        ValueError: If a setting does not fit; nothing is written then.
    """
    config = Path(out).expanduser()
    name = _name(config, name)
    _check(config, minutes, shots, indices, images_a_second, overwrite)
    found = find_trunk(trunk, KINDS[data.kind].scope)
    licence = licence or data.licence or 'not stated'
    writer = Writer(name, config, data, found,
                    choose_size(data, found, size), shots, indices, licence)
    number = min(data.train.num, indices or data.train.num,
                 (shots or data.train.num) * len(data.classes))
    with _lists(writer.lists, data):
        pace = given_pace(images_a_second) if images_a_second else _measure(
            writer, config, make_plan(minutes, None, number, data.val.num))
        plan = make_plan(minutes, pace, number, data.val.num)
        commands = _commands(config, name, plan)
        header = _header(name, data, plan, pace, commands)
        write_atomic(config, writer.write(header, plan))
    notes = [*data.notes, *_notes(found, plan, minutes, licence)]
    return NewTask(config, name, data, plan, pace.source, notes, commands)


def choose_size(data: OwnData, trunk: OwnTrunk, size: Optional[int]) -> int:
    """The side of images, a multiple of the trunk's stride.

    Raises:
        TrunkError: If the trunk takes another size only.
    """
    if trunk.size is not None:
        height, width = trunk.size
        if height != width or size not in (None, height):
            raise TrunkError(
                f'The trunk of {trunk.path} takes images of {height}x{width} '
                'px alone; leave --size out'
                f'{", and choose a square one" * (height != width)}.')
        return height
    stride = max(trunk.strides)
    if size is None:
        low, high = SIDES[data.kind]
        side = min(data.size) if data.kind == 'cls' else max(data.size)
        size = min(max(side, low), high)
    elif size < 2 * stride:
        raise TrunkError(f'--size {size} is less than two patches of the '
                         f"trunk's {stride} px; give more.")
    return max(2, round(size / stride)) * stride


def _name(config: Path, name: Optional[str]) -> str:
    if name is not None:
        return check_name(name)
    name = re.sub(r'[^A-Za-z0-9_-]+', '-', config.stem).strip('-_')
    if not is_name(name):
        raise OwnDataError(f'{config.name} gives the module no name; say '
                           '--name.')
    return name


def _check(config: Path, minutes: float, shots: Optional[int],
           indices: Optional[int], images_a_second: Optional[float],
           overwrite: bool) -> None:
    for value, option in ((shots, '--shots'), (indices, '--indices')):
        if value is not None:
            check_width(value, option)
    for value, option in ((minutes, '--minutes'), (images_a_second,
                                                   '--images-per-second')):
        if value is not None and not 0 < value < float('inf'):
            raise OwnDataError(f'{option} {value} is to be above zero.')
    if shots and indices:
        raise OwnDataError('--shots draws images by class, and --indices '
                           'takes the first ones; give one of both.')
    if config.suffix != '.py':
        raise OwnDataError(f'--out {config} is to end in .py.')
    if config.exists() and not overwrite:
        raise OwnDataError(f'{config} is there already: name another with '
                           '--out, or replace it with --overwrite.')
    config.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def _lists(folder: Path, data: OwnData) -> Iterator[None]:
    """Write the lists of images; they go again if what follows fails."""
    fresh, unsure = not folder.exists(), None
    try:
        if data.files:
            folder.mkdir(exist_ok=True)
        for name, text in data.files.items():
            try:
                write_atomic(folder / name, text)
            except NotFlushedError as error:  # it is there all the same
                unsure = error
        yield
    except NotFlushedError:
        raise  # the config is there, too
    except BaseException:
        if fresh:
            with suppress(OSError):  # which would hide the first
                discard(folder)
        raise
    if unsure is not None:
        raise unsure


@quiet()
def _measure(writer: Writer, config: Path, plan: Plan) -> Pace:
    """Time the task as it is written; the file does not stay."""
    # whoever has the draft has the name, also after one that was killed
    file, draft = open_draft(config)
    text = draft.with_name(f'{draft.name}.py')
    try:
        with suppress(NotFlushedError):  # it does not stay
            write_atomic(text, writer.write('', plan))
        return measure(read_config(str(text)))
    finally:
        for path in (text, draft):
            with suppress(OSError):  # which would hide the first
                path.unlink()
        file.close()


def _commands(config: Path, name: str, plan: Plan) -> List[str]:
    file = shlex.quote(str(config))
    checkpoint = shlex.quote(
        f'work_dirs/{config.stem}/iter_{plan.max_iters}.pth')
    return [
        f'vim-mm train {file}',
        f'vim-mm test {file} {checkpoint}',
        f'vim-mm zoo show {ZOO} {name}',
        f'vim-mm rank {file} --zoo {ZOO}',
        f'vim-mm infer PHOTOS --model {name}={file},{checkpoint} '
        '--out-dir out',
    ]


def _header(name: str, data: OwnData, plan: Plan, pace: Pace,
            commands: Sequence[str]) -> str:
    """The docstring of the config."""
    classes = short(data.classes).replace('\\', '/').replace('"', "'")
    paragraphs = [
        f"{WORDS[data.kind]}: the module '{name}' beside a frozen trunk.",
        f'{len(data.classes)} classes ({classes}), {plan.num_train} images to '
        f'learn from and {data.val.num} to judge by.',
        '\n'.join(f'    {command}' for command in commands),
        f'About {in_words(plan.minutes)} at {pace.train:.2g} images a second '
        f'({pace.source}): head on cached features, then module and head '
        'together. The log has, as step 0, what the frozen trunk achieves '
        'with the head alone.'
    ]
    return '\n\n'.join(
        text if text.startswith(' ') else textwrap.fill(text, 79)
        for text in paragraphs) + '\n'


def _notes(trunk: OwnTrunk, plan: Plan, minutes: float,
           licence: str) -> List[str]:
    notes = []
    if trunk.lacks:
        notes.append(
            f'The weights of the trunk are not at {trunk.lacks} yet; the head '
            f'of {trunk.path} says how to bring them.')
    if not trunk.normalized:
        notes.append(f'{trunk.path.name} has no `trunk_normalization`, so '
                     "images are normalised by ImageNet's statistics.")
    if plan.minutes > 1.2 * minutes:
        notes.append(
            f'It takes about {in_words(plan.minutes)}, more than '
            f'{in_words(minutes)}: smaller images (--size), fewer of them '
            '(--shots, --indices) or a smaller trunk are faster.')
    if licence == 'not stated':
        notes.append("The module's card will not state a licence; name one "
                     'with --licence before you hand it on.')
    return notes
