# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A short selection of the tests beside other versions of what we stand on.

    python tests/matrix.py              # all cells; `make matrix`
    python tests/matrix.py --only 'numpy 1.26'

A cell is an overlay: a temporary folder in front of the installed packages,
which stay as they are. It is filled with pip from the network, and where pip
has no such package for this machine the cell is untested, and the table says
so. Ends with 1 if a test failed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
#: Imports and configs, image pipelines, training of all kinds of task, what
#: is written beside parts of torch that change (operators, checkpoints and
#: their pickles, autocast, graphs, grouped products, strategies) or beside the
#: libraries' own words (rates, trials), and whatever knows timm, transformers
#: and PEFT. Long tests are left out.
SMOKE = (
    'tests/test_utils/test_setup_env.py',
    'tests/test_utils/test_mmcv_ops.py',
    'tests/test_utils/test_checkpoint.py',
    'tests/test_utils/test_checkpoint_form.py',
    'tests/test_utils/test_pickle_bounds.py',
    'tests/test_engine/test_exact.py',
    'tests/test_engine/test_rates.py',
    'tests/test_engine/test_resume.py',
    'tests/test_trial_strategies.py',
    'tests/test_models/test_adapters/test_bank.py',
    'tests/test_models/test_autocast.py',
    'tests/test_models/test_backbones/test_plan_compiled.py',
    'tests/test_models/test_moe/test_dispatch.py',
    'tests/test_models/test_moe/test_moe_export.py',
    'tests/test_configs/test_pipelines.py',
    'tests/test_models/test_auto_channels.py::test_a_run_trains_and_tests',
    'tests/test_models/test_backbones/test_hugging_face.py',
    'tests/test_interchange/test_peft_published.py',
)
#: What is really imported in a cell.
_VERSIONS = '''
import importlib, json
found = {}
for name in ("torch", "numpy", "cv2", "transformers"):
    try:
        found[name] = importlib.import_module(name).__version__
    except ImportError as error:
        found[name] = f"no import: {error}"
import vim_mm
from vim_mm.utils.import_hooks import ops_are_stand_in
found["ops"] = "stand-in" if ops_are_stand_in() else "compiled"
print(json.dumps(found))
'''
#: Makes `mmcv._ext` an ordinary module, which is what compiled ops are.
_SITE = '''
import sys
from importlib.util import spec_from_file_location
from pathlib import Path

class Compiled:
    def find_spec(self, name, path=None, target=None):
        if name == "mmcv._ext":
            return spec_from_file_location(
                name, Path(__file__).with_name("compiled_ops.py"))

sys.meta_path.insert(0, Compiled())
'''
_OPS = '''
import torchvision
from vim_mm.utils.mmcv_ops import STAND_IN_OPS, missing_op
globals().update(STAND_IN_OPS)
__getattr__ = missing_op
'''


@dataclass(frozen=True)
class Cell:
    """One combination of versions.

    Attributes:
        name (str): What is another than installed.
        packages (tuple[str]): What pip puts into the overlay. Packages not
            named here stay at their installed versions.
        alone (bool): Whether without what they depend on.
        files (tuple): Names and texts of files to write.
    """

    name: str
    packages: Tuple[str, ...] = ()
    alone: bool = True
    files: Tuple[Tuple[str, str], ...] = ()


CELLS = (
    Cell('as installed'),
    Cell('numpy 1.26', ('numpy==1.26.*', )),
    Cell('transformers 5', ('transformers>=5', 'huggingface_hub',
                            'tokenizers'), alone=False),
    Cell('opencv 5', ('opencv-python-headless>=5', )),
    Cell('compiled mmcv ops (a fake counts)',
         files=(('sitecustomize.py', _SITE), ('compiled_ops.py', _OPS))),
    Cell('the original OpenMMLab packages',
         ('mmengine==0.10.7', 'mmcv-lite==2.1.0', 'mmdet==3.3.0',
          'mmsegmentation==1.2.2', 'mmpretrain==1.2.0', 'setuptools<81')),
    # the first that loads checkpoints safely; it wants a sympy of its own
    Cell('oldest torch', ('torch==2.6.*', 'torchvision==0.21.*', 'triton',
                          'sympy'), alone=False),
    Cell('newest torch', ('torch', 'torchvision', 'triton'), alone=False),
)


@dataclass(frozen=True)
class Row:
    """What came of a cell.

    Attributes:
        cell (Cell): The cell.
        result (str): A word on its tests, or why there are none.
        failed (bool): Whether a test failed.
        versions (dict): Versions that were really imported.
    """

    cell: Cell
    result: str
    failed: bool
    versions: Dict[str, str]


def call(command: Sequence[str],
         overlay: Optional[Path] = None) -> subprocess.CompletedProcess:
    """Run a command, with an overlay in front of the installed packages."""
    path = [str(each) for each in (overlay, ROOT) if each]
    env = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(path),
        OMP_NUM_THREADS='1',
        PYTHONWARNINGS='ignore',
        COLUMNS='200')  # pytest cuts reasons to the width
    return subprocess.run(
        command, cwd=ROOT, env=env, text=True, capture_output=True)


def fill(cell: Cell, overlay: Path) -> str:
    """Put a cell's files and packages into its overlay.

    Returns:
        str: Why this is not possible here, or nothing.
    """
    for name, text in cell.files:
        (overlay / name).write_text(text)
    if not cell.packages:
        return ''
    command = [
        sys.executable, '-m', 'pip', 'install', '-q', '--target',
        str(overlay), '--disable-pip-version-check', '--only-binary', ':all:'
    ]
    if cell.alone:
        command.append('--no-deps')
    else:
        pins = overlay / 'pins.txt'
        pins.write_text('\n'.join(others(cell.packages)))
        command += ['-c', str(pins)]
    done = call([*command, *cell.packages])
    if done.returncode:
        lines = [line for line in done.stderr.splitlines()
                 if line.startswith('ERROR')] or ['pip failed']
        return lines[-1].removeprefix('ERROR: ')
    return ''


def others(packages: Sequence[str]) -> List[str]:
    """Constraints that keep all other installed packages.

    What torch brings of CUDA belongs to its version.
    """
    named = {re.split('[^A-Za-z0-9_.-]', each)[0] for each in packages}
    named = {name.lower().replace('_', '-') for name in named}
    return sorted(
        f'{dist.name}=={dist.version}' for dist in metadata.distributions()
        if dist.name.lower().replace('_', '-') not in named
        and not dist.name.startswith(('nvidia-', 'nvidia_', 'cuda')))


def examine(cell: Cell, tests: Sequence[str]) -> Row:
    """Run the tests in a cell."""
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder)
        problem = fill(cell, overlay)
        if problem:
            return Row(cell, f'untested: {problem}', False, {})
        found = call([sys.executable, '-c', _VERSIONS], overlay)
        if found.returncode:
            last = found.stderr.strip().splitlines()[-1]
            return Row(cell, f'does not import: {last}', True, {})
        versions = json.loads(found.stdout.splitlines()[-1])
        done = call([
            sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
            '-m', 'not gpu and not slow', *tests
        ], overlay)
        lines = done.stdout.strip().splitlines() or ['no output']
        print('\n'.join(x for x in lines if x.startswith(('FAILED', 'ERROR'))))
        failed = bool(done.returncode)
        return Row(cell, lines[-1].strip('= '), failed, versions)


def table(rows: Sequence[Row]) -> str:
    """The rows as a table of Markdown."""
    columns = ('torch', 'numpy', 'cv2', 'transformers', 'ops')
    lines = [
        '| cell | torch | numpy | opencv | transformers | mmcv ops | tests |',
        '|---|---|---|---|---|---|---|'
    ]
    for row in rows:
        versions = ' | '.join(row.versions.get(x, '–') for x in columns)
        lines.append(f'| {row.cell.name} | {versions} | {row.result} |')
    return '\n'.join(lines)


def main(args: Optional[Sequence[str]] = None) -> int:
    """Run the cells that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        '--only', action='append', choices=[cell.name for cell in CELLS],
        help='this cell alone; may be given several times')
    parser.add_argument('tests', nargs='*', help='other tests than the short '
                        'selection')
    given = parser.parse_args(args)
    rows = []
    for cell in CELLS:
        if not given.only or cell.name in given.only:
            print(f'[{cell.name}]', flush=True)
            rows.append(examine(cell, given.tests or SMOKE))
            print(rows[-1].result, flush=True)
    print(table(rows))
    return int(any(row.failed for row in rows))


if __name__ == '__main__':
    sys.exit(main())
