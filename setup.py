# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Packaging: ``pip install .``, ``pip install -e .``, wheel and sdist."""

import os
import shutil
from pathlib import Path
from typing import Dict, List

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# what mmengine and mim look for in the folder `.mim` of an installed package
MIM_PARTS = ('configs', 'tools', 'requirements', 'model-index.yml')
MIM_SUFFIXES = ('.py', '.yml', '.md', '.sh', '.txt')


class BuildPy(build_py):
    """Puts ``.mim`` into the package: copies in a wheel, links when editable.

    ``_base_ = 'vim_mm::...'`` reads from there. An editable install reads the
    source tree, so the links go there and follow every edit.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            link_mim(ROOT / 'vim_mm' / '.mim')
            return
        for target, source in self.mim_files().items():
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(source, target)

    def mim_files(self) -> Dict[str, str]:
        """Path of each file in the build, and where it comes from."""
        folder = Path(self.build_lib) / 'vim_mm' / '.mim'
        files = {}
        for part in MIM_PARTS:
            path = ROOT / part
            for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
                if file.suffix in MIM_SUFFIXES and file.is_file():
                    files[str(folder / file.relative_to(ROOT))] = str(file)
        return files

    def get_outputs(self, include_bytecode: bool = True) -> List[str]:
        return super().get_outputs(include_bytecode) + list(self.mim_files())

    def get_output_mapping(self) -> Dict[str, str]:
        return {**super().get_output_mapping(), **self.mim_files()}


def link_mim(folder: Path) -> None:
    """Link the parts into ``folder``; copy where links are not allowed."""
    folder.mkdir(exist_ok=True)
    for part in MIM_PARTS:
        link, source = folder / part, ROOT / part
        if link.is_symlink() or link.is_file():
            link.unlink()
        elif link.is_dir():
            shutil.rmtree(link)
        try:
            link.symlink_to(os.path.relpath(source, folder))
        except OSError:
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, link)


def requirements(name: str) -> List[str]:
    """The requirements that ``requirements/NAME.txt`` lists."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def version() -> str:
    """The version, without importing the package and its dependencies."""
    scope: Dict[str, str] = {}
    exec((ROOT / 'vim_mm' / 'version.py').read_text(), scope)
    return scope['__version__']


# The mm* libraries are an extra on purpose: installing vim_mm must not put one
# fork over the other in an environment that has them already.
EXTRAS = {
    name: requirements(name)
    for name in ('mminstall', 'optional', 'tests', 'demo')
}
EXTRAS['all'] = sorted({line for lines in EXTRAS.values() for line in lines})
README = ROOT / 'README.md'

setup(
    name='vim_mm',
    version=version(),
    description='Vision middleware for OpenMMLab: a frozen trunk, modules '
    'learned on midstream data, a fusion for the task at hand',
    long_description=README.read_text() if README.exists() else '',
    long_description_content_type='text/markdown',
    author='vim_mm contributors',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['vim_mm', 'vim_mm.*']),
    install_requires=requirements('runtime'),
    extras_require=EXTRAS,
    entry_points=dict(
        console_scripts=['vim-mm = vim_mm.utils.commands:main']),
    cmdclass=dict(build_py=BuildPy),
    zip_safe=False,
    classifiers=[
        'Development Status :: 4 - Beta',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3 :: Only',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ])
