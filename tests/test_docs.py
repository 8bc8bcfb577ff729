# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The code on the pages for newcomers runs as it stands there."""

import re
from pathlib import Path
from typing import List

import pytest

DOCS = Path(__file__).resolve().parents[1] / 'docs'
PAGES = ['coming_from_peft.md', 'coming_from_mmdet.md', 'multitask.md']


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
