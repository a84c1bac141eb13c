"""Compares the numbers on this project's pages with the results they were taken from.

    python docs/check_numbers.py

A comment `<!-- measured: NAME, … -->` says that the numbers from there to the next heading or the next such comment stand in
docs/results/NAME.json; `<!-- measured: nothing -->` that they define or configure something. Each must be a value of one of
those files, rounded to as many places as are printed. Elsewhere on a page nothing that looks measured (a number with a unit)
may stand. Code, links, and tables that a script writes between `begin` and `end` comments are not read.

A file of results is a JSON object with the keys of KEYS; its numbers are whatever lies under `values`. A file with the key
`source` was not written by a program: it says where its numbers were written down first.
"""

import json
import re
import sys
from collections.abc import Iterator
from decimal import ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"
# What is known of a measurement. `seed`, `seconds` and `commit` are null where there is none or nobody wrote it down.
KEYS = ("command", "commit", "date", "seed", "versions", "machine", "seconds", "values")

MARK = re.compile(r"<!-- measured: ([^>]*?) -->")
UNREAD = re.compile(
    r"<!-- (\w+): begin.*?<!-- \1: end -->|```.*?```|<!--(?! measured:).*?-->|`[^`]*`|\]\([^)]*\)|https?://\S+"
    r"|arXiv[: ]\d+\.\d+|\beqs?\. ?\d+|\bEq\. ?\d+",
    re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.,^])[-−+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+−]?\d+)?(?![\d\w^²³])")
UNIT = (
    r" ?(?:%|×(?! ?\d)|ms\b|µs\b|s\b|min\b|h\b|minutes|seconds|GiB|MiB|GB\b|MB\b|KB\b|kB\b|images/s|tokens/s|TFLOP/s|TB/s|"
    r"points\b|nats|bits|times\b)"
)
MEASURED = re.compile(NUMBER.pattern + UNIT)


def blank(match: re.Match) -> str:
    """The newlines of what is not read, so that lines keep their numbers."""
    return " " + "\n" * match.group().count("\n")


def lines(page: Path) -> Iterator[tuple[int, str, str | None]]:
    """`(number, text, names)` of each line that is read, `names` those of the comment it stands under."""
    names = None
    for number, line in enumerate(UNREAD.sub(blank, page.read_text()).splitlines(), start=1):
        if line.startswith("#"):
            names = None
        elif found := MARK.search(line):
            names = found.group(1)
        else:
            yield number, line, names


def numbers(tree) -> Iterator[Decimal]:
    """Every number of a JSON tree."""
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from numbers(value)
    elif isinstance(tree, int | float | Decimal) and not isinstance(tree, bool):
        yield Decimal(str(tree))


def parse(word: str) -> Decimal:
    return Decimal(word.replace(",", "").replace("−", "-").lstrip("+"))


def agrees(printed: Decimal, value: Decimal) -> bool:
    """Whether `value`, rounded to the places of `printed`, is `printed`; the sign may be in the words."""
    if not value.is_finite():
        return False
    places = Decimal(1).scaleb(printed.as_tuple().exponent)
    return any(
        abs(value).quantize(places, rounding) == abs(printed) for rounding in (ROUND_HALF_UP, ROUND_HALF_DOWN)
    )


def exists(name: str) -> bool:
    return name == "nothing" or (RESULTS / f"{name}.json").is_file()


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(), parse_float=Decimal)


def check(page: Path) -> list[str]:
    """A line for each number of a page that no result holds."""
    wrong = []
    for number, line, names in lines(page):
        where = f"{page.name}:{number}"
        if names is None:
            wrong += [f"{where}: {found.group()!r} under no comment" for found in MEASURED.finditer(line)]
        elif missing := [name for name in names.split(", ") if not exists(name)]:
            wrong += [f"{where}: no file results/{name}.json" for name in missing]
        elif names != "nothing":
            known = [value for name in names.split(", ") for value in numbers(load(name)["values"])]
            for found in NUMBER.finditer(line):
                if not any(agrees(parse(found.group()), value) for value in known):
                    wrong.append(f"{where}: {found.group()!r} is not in {names}")
    return wrong


def check_results() -> list[str]:
    """A line for each file of results that lacks a key, or that no page names."""
    named = set()
    for page in pages():
        for match in MARK.finditer(page.read_text()):
            named.update(match.group(1).split(", "))
    wrong = []
    for path in sorted(RESULTS.glob("*.json")):
        missing = [key for key in KEYS if key not in load(path.stem)]
        wrong += [f"results/{path.name}: without {', '.join(missing)}"] if missing else []
        wrong += [f"results/{path.name}: no page names it"] if path.stem not in named else []
    return wrong


def pages() -> list[Path]:
    return [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


def main() -> None:
    wrong = [*check_results(), *(line for page in pages() for line in check(page))]
    print("\n".join(wrong) or "all numbers agree")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
