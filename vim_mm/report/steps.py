# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a report is made of: steps, their numbers and their images."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

Gates = Dict[str, Dict[str, float]]
#: The row of a gallery that shows the annotations.
TRUTH = 'truth'
#: What names of single modules begin with.
SINGLE = 'single: '


@dataclass
class Row:
    """One measured value and its cost.

    Attributes:
        step (str): The step it belongs to.
        task (str): What is learned, and its kind.
        method (str): What the row distinguishes within the step.
        metric (str): Name of the metric; larger is better where rows compete.
        value (float): Its value.
        n_train (int): Images learned from.
        n_test (int): Images behind the value.
        seconds (float): Wall time of the method.
        peak_mb (float): Peak memory of the method, in MB.
        seed (int): Seed of the run. Defaults to 0.
    """
    step: str
    task: str
    method: str
    metric: str
    value: float
    n_train: int
    n_test: int
    seconds: float
    peak_mb: float
    seed: int = 0


@dataclass
class Answer:
    """What a method says about one image.

    Attributes:
        method (str): Row of the gallery; :data:`TRUTH` for the annotation.
        image (str): Column of the gallery.
        caption (str): The answer in words.
        file (str): The drawing, relative to the report; empty where words
            say it all.
        right (bool, optional): Whether it is; None if that is no question of
            yes or no.
    """
    method: str
    image: str
    caption: str
    file: str = ''
    right: Optional[bool] = None


@dataclass
class Gallery:
    """Answers of several methods about the same images.

    Attributes:
        title (str): What is asked; empty if the step says so.
        answers (list[Answer]): In the order of the rows.
        legend (dict): Class to colour (RGB), where colours mean classes.
    """
    title: str = ''
    answers: List[Answer] = field(default_factory=list)
    legend: Dict[str, Tuple[int, int, int]] = field(default_factory=dict)

    def methods(self) -> List[str]:
        """Its rows."""
        return list(dict.fromkeys(each.method for each in self.answers))

    def drop(self, method: str) -> None:
        """Take one row out."""
        self.answers = [a for a in self.answers if a.method != method]


@dataclass
class Chart:
    """A figure in full width.

    Attributes:
        file (str): PNG, relative to the report.
        caption (str): What it shows.
    """
    file: str
    caption: str


@dataclass
class Made:
    """Something that was prepared, and what it took.

    Attributes:
        name (str): What.
        files (int): Number of files.
        seconds (float): Wall time.
        peak_mb (float): Peak memory, in MB.
    """
    name: str
    files: int
    seconds: float
    peak_mb: float


@dataclass
class Contrast:
    """What a step is about: one method against another.

    Attributes:
        what (str): The question, such as "What fusing adds".
        result (str): The method, or how its name begins.
        against (str): What it is compared with.
    """
    what: str
    result: str
    against: str


@dataclass
class Step:
    """The part of a report for one step.

    Attributes:
        title (str): Heading.
        text (str): A few words on data and method.
        rows (list[Row]): Its numbers, one a method and seed.
        gates (dict, optional): Slot name to module name to weight.
        galleries (list[Gallery]): Answers on test images.
        charts (list[Chart]): Figures.
        made (list[Made]): What was prepared, instead of numbers.
        contrast (Contrast, optional): What the headline says of it.
        seconds (float): Wall time of the whole step.
        ranked (bool): Whether its rows compete; the best is then bold.
        origin (str): Commit, date and machine.
    """
    title: str
    text: str
    rows: List[Row] = field(default_factory=list)
    gates: Optional[Gates] = None
    galleries: List[Gallery] = field(default_factory=list)
    charts: List[Chart] = field(default_factory=list)
    made: List[Made] = field(default_factory=list)
    contrast: Optional[Contrast] = None
    seconds: float = 0.
    ranked: bool = True
    origin: str = ''

    @classmethod
    def from_dict(cls, stored: Dict[str, Any]) -> 'Step':
        """The inverse of :func:`dataclasses.asdict`."""
        parts = dict(rows=Row, charts=Chart, made=Made)
        found = {
            name: [kind(**each) for each in stored.get(name, ())]
            for name, kind in parts.items()
        }
        found['galleries'] = [
            gallery_from(each) for each in stored.get('galleries', ())
        ]
        if stored.get('contrast'):
            found['contrast'] = Contrast(**stored['contrast'])
        return cls(**{**stored, **found})


def gallery_from(stored: Dict[str, Any]) -> Gallery:
    """A gallery read from JSON."""
    answers = [Answer(**each) for each in stored['answers']]
    return Gallery(**{**stored, 'answers': answers})


def slug(text: str) -> str:
    """A name that files may have."""
    return ''.join(c if c.isalnum() else '-' for c in text)
