# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The code on the pages for newcomers runs as it stands there."""

import re
from pathlib import Path
from typing import List

import pytest
from _own_data import HERE, run, write_data, write_trunk

import vim_mm
from vim_mm.zoo import Zoo

DOCS = Path(__file__).resolve().parents[1] / 'docs'
PAGES = [
    'coming_from_peft.md', 'coming_from_mmdet.md', 'multitask.md',
    'new_task.md'
]


def code_blocks(page: str) -> List[str]:
    text = (DOCS / page).read_text()
    return re.findall(r'^```python\n(.*?)^```$', text, re.DOTALL | re.M)


@pytest.mark.parametrize('page', PAGES)
def test_code_runs(page: str, tmp_path: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks(page)
    assert len(blocks) > 1
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, 'exec'), names)


@pytest.mark.parametrize('page', PAGES)
def test_the_page_is_linked_and_its_links_lead_somewhere(page: str) -> None:
    assert f'docs/{page}' in (DOCS.parent / 'README.md').read_text()
    links = re.findall(r'\]\(([\w.]+\.md)\)', (DOCS / page).read_text())
    assert links and all((DOCS / link).is_file() for link in links)


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(vim_mm.__file__).parent / '.mim').exists(),
    reason='vim_mm runs from a source tree; install it')
def test_commands_of_a_new_task_run(tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of one's own with data as the page names them."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    write_trunk(tmp_path)
    text = (DOCS / 'new_task.md').read_text()
    blocks = re.findall(r'^```bash\n(.*?)^```$', text, re.DOTALL | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 14
    for line in lines:
        more: List[str] = []
        if line.startswith('vim-mm new-task'):
            more = ['--images-per-second', '.01']  # as short as can be
        elif re.match('vim-mm (train|test|rank)', line):
            more = HERE
        run(re.sub(r'iter_\d+', 'iter_20', line), more)
    assert Zoo('work_dirs/zoo').names() == ['cells', 'photos', 'street']
    assert Zoo('other_zoo').names() == ['cells']


# ---------------------------------------------------------------- findings

FINDINGS = DOCS.parent / 'findings'
ROWS = dict(
    re.findall(r'^\| \[(\w+)\]\(\1\.sh\) \| (.+) \|$',
               (FINDINGS / 'README.md').read_text(), re.M))


def test_all_findings_are_listed() -> None:
    assert sorted(ROWS) == sorted(p.stem for p in FINDINGS.glob('*.sh'))


@pytest.mark.parametrize('name', sorted(ROWS))
def test_a_finding_names_its_library_and_what_is_done(name: str) -> None:
    path = FINDINGS / f'{name}.sh'
    text, (library, _, done) = path.read_text(), ROWS[name].split(' | ')
    header = text[:text.index('set -euo pipefail')]
    assert f'\n# {library}' in header and '\n# Seen: ' in header
    assert library.replace(' ', '==') in text and 'vim_mm.' not in text
    assert path.stat().st_mode & 0o111
    for place in re.findall(r'`(\w+/[\w/.]+)`', done):
        assert (DOCS.parent / 'vim_mm' / place).exists()
