"""The English text that the shipped text model was trained on: books of Project Gutenberg and the documentation of Python.

    python -m benchmarks.english_text --books=BOOKS --output=data/english

BOOKS is a folder with the plain text of the books of TRAIN and TEST, as NUMBER.txt; each is a repository
github.com/GITenberg/NAME_NUMBER. They are in the public domain in the United States. What Project Gutenberg puts before
and after a book is cut off, so that nothing of its trademark licence is in the text. Python's documentation is what its
own `pydoc_data` and the docstrings of its standard library hold (PSF License, Copyright Python Software Foundation).
Writes OUTPUT/train/*.txt and OUTPUT/test/*.txt, read by --config.data.name=text:OUTPUT.
"""

import argparse
import ast
import pydoc_data.topics
import re
import sysconfig
from pathlib import Path

# Author and title by number.
TRAIN = {
    3261: "W. Morris, News from Nowhere",
    14263: "E. M. Lane, Katrine",
    15122: "A. F. Johnston, The Little Colonel's Hero",
    16215: "W. H. Ainsworth, Jack Sheppard",
    16351: "E. MacDowell, Critical and Historical Essays",
    17474: "H. E. Krehbiel, How to Listen to Music",
    18304: "J. Street, American Adventures",
    52834: "E. MacCulloch, Guernsey Folk Lore",
}
TEST = {14881: "H. Butterworth, The Log School-House on the Columbia", 18195: "The Girl's Own Paper, No. 353"}
DOCSTRINGS = 2**20  # Bytes, of the modules in alphabetical order.


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--books", type=Path, required=True, help="a folder of NUMBER.txt")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args()
    texts = {
        f"{split}/{number}.txt": book(next(arguments.books.glob(f"{number}*.txt")))
        for split, numbers in (("train", TRAIN), ("test", TEST))
        for number in numbers
    }
    texts["train/python.txt"] = "\n\n".join(pydoc_data.topics.topics.values())
    texts["train/docstrings.txt"] = docstrings()[:DOCSTRINGS]
    for name, text in texts.items():
        path = arguments.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"{name}  {len(text.encode()):,} bytes")


def book(path: Path) -> str:
    """The book itself, between the marks of Project Gutenberg."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("cp1252")
    text = text.replace("\r\n", "\n")
    start = re.search(r"^\*\*\* ?START OF.*\n", text, re.MULTILINE)
    end = re.search(r"^(\*\*\* ?END OF|End of (the )?Project Gutenberg)", text, re.MULTILINE | re.IGNORECASE)
    if start is None or end is None:
        raise SystemExit(f"{path}: no marks of Project Gutenberg; accepted: a book as it distributes them")
    lines = text[start.end() : end.start()].splitlines()
    return "\n".join(line for line in lines if "gutenberg" not in line.lower()).strip() + "\n"


def docstrings() -> str:
    """The docstrings of the standard library's modules, one after the other."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
    return "\n\n".join(text for text in found if len(text) > 100)


if __name__ == "__main__":
    main()
