"""The pages beside the numbers: links, named tests, equations, extras, tutorials, and the site itself."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import ROOT

from crate_jax import objectives

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
GENERATED = ("all-results.md", "notebooks/")  # docs/site/hooks.py makes them.
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")) or target.startswith(GENERATED):
            continue
        path, _, anchor = target.partition("#")
        if any(path.removeprefix("../") == made or path.startswith(f"../{made}") for made in GENERATED):
            continue
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


@pytest.mark.parametrize("page", ["complaints.md", "reliability.md", "house.md", "segmentation.md"])
def test_named_tests_exist(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert named
    for file, function in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not function or f"\ndef {function}(" in source, f"{file}::{function}"


def test_every_objective_has_its_equation():
    equations = tomllib.loads((DOCS / "equations.toml").read_text(encoding="utf-8"))
    assert set(equations) == set(objectives.__all__) - {"StepAgreement"}


def test_every_extra_is_explained():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (DOCS / "install.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", page, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(explained))) == sorted(extras)
    for where in ("README.md", "docs/install.md", "docs/index.md"):
        for names in re.findall(r"pip install '?\.\[([\w,]+)\]", (ROOT / where).read_text(encoding="utf-8")):
            assert set(names.split(",")) <= set(extras), where


def test_configurations_say_the_accuracy_that_is_recorded():
    """The default of each classifier, seed 0."""
    files = {"CRATE": "base", "CRATE-α": "crate_alpha", "ViT": "vit", "ToST": "tost"}
    recorded = {}
    for name in ("digits", "digits-families"):
        recorded |= json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))["values"]
    for family, file in files.items():
        said = re.search(
            r"Measured: ([\d.]+) %", (ROOT / "configs" / f"{file}.py").read_text(encoding="utf-8")
        )
        assert float(said[1]) == round(recorded[family]["accuracies %"][0], 1), file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["objectives", "compare"])
def test_the_code_of_a_tutorial_runs(name):
    """Tutorials in Python that need no files: each block by itself, but with what those before it defined."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "tutorials" / f"{name}.md").read_text(), re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, name, "exec"), names)


def test_words_are_spelled_right():
    program = Path(sys.executable).with_name("codespell")
    if not program.exists():
        pytest.skip("no codespell: pip install 'crate_jax[docs]'")
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["objectives", "inside", "compress"])
def test_notebooks_run(name):
    notebook = nbformat.read(DOCS / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    program = Path(sys.executable).with_name("mkdocs")
    if not program.exists():
        pytest.skip("no mkdocs: pip install 'crate_jax[docs]'")
    command = [program, "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://", text), page.name
    shutil.rmtree(tmp_path / "site")
