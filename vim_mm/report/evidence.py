# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How well a ranking agrees with the measured usefulness of modules."""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Tuple

from vim_mm.evaluation.transferability import library
from vim_mm.features.module_rows import FUSED, TRUNK, UNIFORM
from vim_mm.utils.messages import InputError, short
from vim_mm.utils.reading import ReadError, read_json

REPORT_BYTES = 16 << 20

#: Methods of a report beside single modules, and what rankings call them.
METHODS = {
    TRUNK: TRUNK,
    'uniform gates': UNIFORM,
    'score-started gates': FUSED,
    # as tools/compare.py calls them
    'uniform': UNIFORM,
    'recommended': FUSED
}


@dataclass
class Agreement:
    """How well a score ranked modules whose true usefulness is known.

    Attributes:
        tau (float): Kendall's tau-b of both orders; NaN if one is constant.
        weighted_tau (float): Kendall's tau in which the top weighs more.
        top (str): The module that the score ranks first.
        regret (float): Metric of the truly best module, minus that of
            ``top``.
        modules (list[str]): The modules compared.
    """
    tau: float
    weighted_tau: float
    top: str
    regret: float
    modules: List[str]


def usefulness(report: Path, step: str) -> Tuple[str, Dict[str, float]]:
    """What each module alone achieved on a task, from a demo's report.

    Args:
        report (Path): A ``report.json``; rows of the method 'single: NAME'
            and of :data:`METHODS` are read, and several runs of one are
            averaged.
        step (str): The step of the report, which is the config's file name.

    Returns:
        tuple[str, dict[str, float]]: Name of the metric, larger being better,
        and its value for each module, and as far as they are there for the
        bare trunk, all modules alike and the recommended fusion.

    Raises:
        ValueError: If the report has no such step, or no single modules.
    """
    rows = read_rows(report)
    ours = [row for row in rows if row['step'] == step]
    values: Dict[str, List[float]] = {}
    for row in ours:
        method = row['method']
        name = METHODS.get(method)
        if method.startswith('single: '):
            name = method.replace('single: ', '', 1)
        if name is not None:
            values.setdefault(name, []).append(float(row['value']))
    if not set(values) - set(METHODS.values()):
        steps = sorted({row['step'] for row in rows})
        raise InputError(
            f"{str(report)!r} has no rows 'single: NAME' of the step "
            f'{step!r}, which would say how useful each module is; it holds '
            f'the steps {steps}.')
    means = {name: sum(each) / len(each) for name, each in values.items()}
    return ours[0]['metric'], means


def read_rows(report: Path) -> List[dict]:
    """The rows of a demo's report.

    Raises:
        FileNotFoundError: If there is none.
        InputError: If it is none.
    """
    try:
        rows = read_json(Path(report), REPORT_BYTES, finite=False)
        types = dict(step=str, method=str, metric=str, value=(int, float))
        if not isinstance(rows, list):
            raise ReadError('it is no list')
        for row in rows:
            for key, kind in types.items():
                if not isinstance(row, dict) or not isinstance(
                        row.get(key), kind):
                    raise ReadError(f'a row has no `{key}`, {short(row)}')
    except ReadError as error:
        raise InputError(f'{str(report)!r} is no report.json of the demo '
                         f'({error}).') from error
    return rows


def agreement(scores: Mapping[str, Mapping[str, float]],
              truth: Mapping[str, float],
              whole: bool = False) -> Dict[str, Agreement]:
    """Compare the order of every score with the true one.

    Args:
        scores: Module to name of the score to value.
        truth: Module to what it achieved, larger being better.
        whole (bool): Whether the bare trunk, all modules alike and the
            recommended fusion count as well. Defaults to False.

    Returns:
        dict[str, Agreement]: By name of the score, over the modules known to
        both; the bare trunk is none.

    Raises:
        ValueError: If they have fewer than two modules in common.
    """
    others = () if whole else METHODS.values()
    modules = [m for m in scores if m in truth and m not in others]
    if len(modules) < 2:
        raise ValueError(
            f'Evidence and ranking have {len(modules)} modules in common '
            f'({modules}), and an order takes two; the evidence knows '
            f'{sorted(set(truth) - set(METHODS.values()))}.')
    stats = library('scipy.stats')
    true = [truth[m] for m in modules]
    result = {}
    for kind in scores[modules[0]]:
        values = [scores[m][kind] for m in modules]
        top = modules[values.index(max(values))]
        result[kind] = Agreement(
            tau=float(stats.kendalltau(values, true).statistic),
            weighted_tau=float(stats.weightedtau(values, true).statistic),
            top=top,
            regret=max(true) - truth[top],
            modules=modules)
    return result
