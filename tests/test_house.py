# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Floors of the package: what a part imports or names lies below it."""

import ast
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest

import vim_mm

PACKAGE = Path(vim_mm.__file__).resolve().parent
#: From the ground up.
FLOORS = ('version', 'registry', 'utils', 'evaluation', 'zoo', 'datasets',
          'models', 'interchange', 'features', 'engine', 'apis', 'report',
          'demo')
#: They name parts of all floors, to lead to them: locations of registries,
#: and what a doctor tries to import.
SIGNPOSTS = ('registry.py', 'utils/doctor.py')
SOURCES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob('*.py')) if '.mim' not in path.parts
}
#: The package itself, and where its parts were before.
OUTSIDE = ('__init__.py', '__main__.py', '_moved.py')
FILES = [file for file in SOURCES if file not in OUTSIDE]


def floor(module: str) -> str:
    """The floor of 'vim_mm.zoo.card' or of 'zoo/card.py'."""
    name = module.replace('.py', '').replace('/', '.').replace('vim_mm.', '')
    return name.partition('.')[0]


def imported(file: str, for_hints: bool = True) -> Iterator[str]:
    """Modules of this package that a file imports, wherever it does."""
    here = ['vim_mm', *Path(file).parent.parts]
    hints = [] if for_hints else [
        inner for node in ast.walk(SOURCES[file]) if isinstance(node, ast.If)
        and ast.unparse(node.test) == 'TYPE_CHECKING'
        for inner in ast.walk(node)
    ]
    for node in ast.walk(SOURCES[file]):
        if node in hints:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names
                        if a.name.startswith('vim_mm.'))
        elif isinstance(node, ast.ImportFrom):
            base = here[:len(here) + 1 - node.level] if node.level else []
            module = '.'.join(base + [node.module] * bool(node.module))
            if module == 'vim_mm':  # from vim_mm import zoo
                yield from (f'vim_mm.{a.name}' for a in node.names)
            elif module.startswith('vim_mm.'):
                names = [f'{module}.{a.name}' for a in node.names]
                modules = [name for name in names if is_module(name)]
                yield from modules
                if len(modules) < len(names):
                    yield module


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split('.')[1:])
    return path.is_dir() or path.with_suffix('.py').is_file()


@lru_cache
def registered() -> Dict[str, str]:
    """Classes that configs name as 'vim_mm.NAME', and their floors."""
    return {
        node.name: floor(file)
        for file, tree in SOURCES.items() for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(
            'register_module' in ast.unparse(d) for d in node.decorator_list)
    }


def named(file: str) -> Iterator[Tuple[str, str]]:
    """Strings 'vim_mm.X' of a file, and the floor of X."""
    classes = registered()
    for node in ast.walk(SOURCES[file]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            package, _, rest = node.value.partition('.')
            first = rest.partition('.')[0]
            if package == 'vim_mm' and (first in classes or first in FLOORS):
                yield node.value, classes.get(first, first)


def test_every_part_has_a_floor():
    assert {floor(file) for file in FILES} == set(FLOORS)
    assert {'ViMBackbone': 'models', 'GateLogHook': 'engine'}.items() <= \
        registered().items()


@pytest.mark.parametrize('part', FLOORS)
def test_nothing_is_imported_from_above(part):
    above = FLOORS[FLOORS.index(part) + 1:]
    wrong = [(file, module) for file in FILES if floor(file) == part
             for module in imported(file) if floor(module) in above]
    assert not wrong


@pytest.mark.parametrize('part', FLOORS)
def test_nothing_is_named_from_above(part):
    """The registry is no way round the floors."""
    above = FLOORS[FLOORS.index(part) + 1:]
    wrong = [(file, text) for file in FILES
             if floor(file) == part and file not in SIGNPOSTS
             for text, its_floor in named(file) if its_floor in above]
    assert not wrong


def test_modules_import_each_other_in_no_circle():
    def target(module: str) -> str:
        path = module.replace('vim_mm.', '', 1).replace('.', '/')
        package = f'{path}/__init__.py'
        return package if package in SOURCES else f'{path}.py'

    graph = {
        file: {target(module) for module in imported(file, for_hints=False)}
        for file in SOURCES
    }
    assert sum(map(len, graph.values())) > 200
    done: Set[str] = set()

    def visit(file: str, trail: List[str]) -> None:
        assert file not in trail, ' -> '.join(
            trail[trail.index(file):] + [file])
        if file not in done:
            for other in sorted(graph[file]):
                visit(other, trail + [file])
            done.add(file)

    for file in graph:
        visit(file, [])


# -------------------------------------------------------------- one writer

#: What writes a file, by the last part of its name.
WRITERS = ('write_text', 'write_bytes', 'imwrite', 'save_file', 'copyfile',
           'copy2', 'savez', 'savetxt', 'dump')
#: Functions of these names write if a module of theirs has them.
SAVERS = ('torch.save', 'np.save', 'onnx.save', 'shutil.copy', 'Image.save')
#: They write the files of all others; demo data is written in drafts of its
#: own; and this is a switch of the system.
OWN_WRITERS = ('utils/files.py', 'utils/checksum.py', 'demo/data/')
SWITCH = '/proc/self/clear_refs'
BENCHMARKS = {
    str(path): ast.parse(path.read_text())
    for path in sorted((PACKAGE.parent / 'benchmarks').glob('*.py'))
    if path.name.startswith(('evidence_', 'mtht_', 'students_', 'bench.',
                             'bank.', 'fusions.', 'no_harm_summary'))
}


def writes(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that write a file which is no draft, and no log."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition('.')[2]
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        opens = last == 'open' and any(
            isinstance(mode, str) and set(mode) & set('wx+')
            and set(mode) <= set('rwxbt+') for mode in modes)
        if not (opens or name in SAVERS or last in WRITERS):
            continue
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        if 'draft' not in names and SWITCH not in ast.unparse(node):
            yield node


def test_all_files_are_written_by_one_writer():
    """It writes a draft, flushes it and renames it (utils/files.py)."""
    files = {**SOURCES, **BENCHMARKS}
    wrong = [(file, ast.unparse(node)) for file, tree in files.items()
             if not file.startswith(OWN_WRITERS) for node in writes(tree)]
    assert not wrong


@pytest.mark.parametrize('code', [
    'path.write_text(x)', 'torch.save(x, path)', "open(path, 'w')",
    "path.open('wb')", "Path(x).open('x')", 'cfg.dump(path)',
    'cv2.imwrite(str(path), image)', "open(path, 'r+b')"
])
def test_writing_around_it_would_be_seen(code: str):
    assert list(writes(ast.parse(code)))
    drafted = code.replace('path', 'draft').replace('Path(x)', 'draft')
    assert not list(writes(ast.parse(drafted)))
    assert not list(writes(ast.parse("open(path, 'rb'), path.open('a')")))


def test_files_of_tests_have_names_of_their_own():
    """pytest cannot import two files of one name from folders of tests."""
    names = Counter(p.name for p in Path(__file__).parent.rglob('test_*.py'))
    assert {name for name, count in names.items() if count > 1} == set()
