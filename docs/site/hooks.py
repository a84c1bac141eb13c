"""What mkdocs does besides: pages of results and notebooks, names of packages, links that leave docs/.

All of it is made from files of this folder; nothing is imported from the package.
"""

import ast
import json
import re
import textwrap
from html import escape
from pathlib import Path

from mkdocs.structure.files import File

DOCS = Path(__file__).parents[1]
NOTEBOOKS = ("objectives", "inside", "compress")
MARK = re.compile(r"<!-- every name of ([\w.]+) -->")


def on_files(files, config):
    """Add a page for each file of results, one that lists them, and one for each notebook."""
    pages = {f"notebooks/{name}.md": notebook(name) for name in NOTEBOOKS}
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(DOCS.glob("results/*.json"))
    }
    named = {name: [page for page in sorted(DOCS.glob("*.md")) if mentions(page, name)] for name in results}
    pages["all-results.md"] = overview(results, named)
    pages |= {f"results/{name}.md": result(name, record, named[name]) for name, record in results.items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """The names of a package; notebooks and folders are linked as pages, files beside docs/ become their names."""
    markdown = MARK.sub(lambda match: names(match[1]), markdown)
    return re.sub(
        r"\[([^\]\n]+)\]\(([^)\s]+)\)", lambda match: linked(match, Path(page.file.src_uri).parent), markdown
    )


def on_page_content(html, page, config, files):
    """What a function returns has no name here: without the dash that stands after one."""
    return re.sub(r'(<li class="doc-section-item field-body">)\s*–', r"\1", html)


def linked(match: re.Match, folder: Path) -> str:
    """A link of a page in `folder` as the site has it."""
    text, target = match.groups()
    if target.endswith(".ipynb"):
        return f"[{text}](notebooks/{target.removesuffix('.ipynb')}.md)"
    if target == "results/":
        return f"[{text}](all-results.md)"
    outside = not (DOCS / folder / target).resolve().is_relative_to(DOCS.resolve())
    return text if outside and "://" not in target else match.group()


def names(package: str) -> str:
    """Every public name of a package, from the module that defines it: some modules are called like their function."""
    init = DOCS.parent.joinpath(*package.split("."), "__init__.py")
    body = ast.parse(init.read_text(encoding="utf-8")).body
    homes = {
        name.name: node.module for node in body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assigned = {node.targets[0].id: node.value for node in body if isinstance(node, ast.Assign)}
    public = sorted(ast.literal_eval(assigned["__all__"]), key=str.casefold)
    return "\n\n".join(f"::: {homes.get(name, package)}.{name}" for name in public)


def mentions(page: Path, name: str) -> bool:
    """Whether a page says that numbers on it stand in this file of results."""
    found = re.findall(r"<!-- measured: ([^>]*?) -->", page.read_text(encoding="utf-8"))
    return any(name in names.split(", ") for names in found)


def words(value) -> str:
    """A value of a result's front matter in a cell of a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(words, value))
    return "not recorded" if value is None else str(value).replace("|", "\\|")


def code(text: str) -> str:
    """As code in a cell of a table."""
    return f"`{text.replace('`', '')}`"


def overview(results: dict, named: dict) -> str:
    """One row for each file of results."""
    rows = []
    for name, record in results.items():
        where = ", ".join(f"[{page.stem}]({page.name})" for page in named[name]) or "README"
        command = code(textwrap.shorten(words(record["command"]), 100, placeholder=" …"))
        date = str(record["date"])[:10].replace("-", "\N{NON-BREAKING HYPHEN}")
        rows.append(f"| [{name}](results/{name}.md) | {where} | {date} | {command} |")
    head = (
        "# Every result file\n\nEach number on these pages stands in one of these files, which say how it was made; "
        "`python docs/check_numbers.py`, a test, compares them. `python -m benchmarks.results --nightly` trains the five "
        "cheapest again and compares.\n\n| result | pages | date | command |\n|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def result(name: str, record: dict, pages: list[Path]) -> str:
    """The page of one file: how it was made, and its values as they are."""
    keys = ("command", "commit", "date", "seed", "machine", "seconds", "versions", "source")
    said = {key: words(record[key]) for key in keys if key in record}
    rows = [f"| {key} | {code(value) if key == 'command' else value} |" for key, value in said.items()]
    where = ", ".join(f"[{page.stem}](../{page.name})" for page in pages) or "the README"
    values = json.dumps(record["values"], indent=1, ensure_ascii=False)
    return (
        f"# {name}\n\nNumbers on {where}; the file is [{name}.json]({name}.json).\n\n| | |\n|---|---|\n"
        + "\n".join(rows)
        + f'\n\n<details><summary>Values</summary><pre class="values">{escape(values)}</pre></details>\n'
    )


def notebook(name: str) -> str:
    """A notebook with what it printed and drew, as a page."""
    cells = json.loads((DOCS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                image = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="what the cell above draws" src="data:image/png;base64,{image}">')
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    download = f"This page is the notebook `docs/{name}.ipynb` as it ran."
    head, _, rest = "\n\n".join(parts).partition("\n")
    return f"{head}\n\n{download}\n{rest}\n"
