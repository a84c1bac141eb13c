"""Writing a report: every file of a section, one page that needs nothing else, and sections that fail."""

import base64
import html.parser
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from crate_jax import InputError, models
from crate_jax.parallel.sharding import MeshConfig, make_mesh
from crate_jax.reports import writing
from crate_jax.reports.base import Figure, Gallery, Section, SectionResult, Table
from crate_jax.runs.config import Config
from crate_jax.training.opening import Opened

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
GOOD = SectionResult(
    title="Good <section>",
    text="Measured by hand & eye.",
    values={"number": 0.5},
    tables=[Table("a [table]", ["", "value"], [["<row>", 1], ["[/row]", "…"]])],
    figures=[Figure("good.png", PNG, 'A "dot".')],
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
STEPS = SectionResult(
    title="Steps",
    text="Six drawings.",
    galleries=[
        Gallery(
            "drawings",
            {"image": ['"1"', 2], "layer": [1, 2, 3]},
            [Figure(f"step-{i}.svg", SVG, f"Drawing {i}.", caption="One & all.") for i in range(6)],
        )
    ],
)


def fail(trained):
    raise ZeroDivisionError("division by zero [/b]\nand more")


def miss(trained):
    raise InputError("folder:/gone is not here")


@pytest.fixture
def trained(tmp_path):
    config = Config(model=models.crate("tiny"))
    info = SimpleNamespace(name="digits", num_examples={"train": 10, "test": 5})
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    run = SimpleNamespace(
        config=config, workdir=tmp_path, info=info, mesh=mesh, model=SimpleNamespace(num_params=7)
    )
    lines = [{"step": 5, "train/loss": 1.0}, {"step": 9, "eval/loss": 0.25, "eval/count": 5.0, "final": True}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Opened(run, {}, 9)


def sections(monkeypatch, **made):
    monkeypatch.setattr(writing, "SECTIONS", {name: Section(make) for name, make in made.items()})


class Page(html.parser.HTMLParser):
    """Tags that were opened and not closed, images, and everything that points somewhere."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.ids, self.sliders = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(values)
        self.sliders += [json.loads(values["data-values"])] if tag == "input" else []
        self.links += [values[name] for name in ("src", "href") if name in values]
        self.ids += [values["id"]] if "id" in values else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_section_becomes_files_and_a_part_of_the_page(trained, monkeypatch, capsys):
    sections(monkeypatch, good=lambda trained: GOOD, nothing=lambda trained: None)
    outcome = writing.write_report(trained)
    folder = trained.run.workdir / "report"
    assert outcome.failed == {}
    assert outcome.written["good <section>"] == f"{folder / 'good.png'}; {folder / 'good.json'}"
    assert json.loads((folder / "good.json").read_text()) == {"number": 0.5}
    assert (folder / "good.png").read_bytes() == PNG
    printed = capsys.readouterr().out
    assert "a [table]" in printed and "[/row]" in printed

    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and len(set(page.ids)) == len(page.ids)
    assert page.images == [
        {
            "src": f"data:image/png;base64,{base64.b64encode(PNG).decode()}",
            "alt": 'A "dot".',
            "class": "pixels",
        }
    ]
    # Nothing outside of the page is asked for.
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "Good &lt;section&gt;" in text and "&lt;row&gt;" in text and "0.2500" in text
    assert "prefers-color-scheme: dark" in text and not re.search(r"\burl\(", text)

    report = json.loads((folder / "report.json").read_text())
    assert report["run"]["evaluation"] == {"loss": 0.25, "count": 5.0} and report["run"]["finished"]
    assert report["run"]["config"]["model"]["family"] == "crate"
    (section,) = report["sections"]
    assert section["values"] == {"number": 0.5}
    assert section["figures"] == [{"file": "good.png", "alt": 'A "dot".', "caption": ""}]


def test_a_gallery_is_stepped_through(trained, monkeypatch):
    """Without the script the pictures stand one under the other; with it a slider for each axis chooses one."""
    sections(monkeypatch, steps=lambda trained: STEPS)
    assert writing.write_report(trained).failed == {}
    folder = trained.run.workdir / "report"
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.sliders == [['"1"', "2"], ["1", "2", "3"]]
    assert [image["alt"] for image in page.images] == [f"Drawing {i}." for i in range(6)]
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.images)
    assert text.count("<figcaption>One &amp; all.</figcaption>") == 6
    assert (folder / "step-5.svg").read_bytes() == SVG
    (gallery,) = json.loads((folder / "report.json").read_text())["sections"][0]["galleries"]
    assert gallery["axes"] == {"image": ['"1"', "2"], "layer": ["1", "2", "3"]}
    assert gallery["figures"][5] == {"file": "step-5.svg", "alt": "Drawing 5.", "caption": "One & all."}


def test_a_section_that_fails_takes_nothing_with_it(trained, monkeypatch, capsys):
    sections(monkeypatch, bad=fail, good=lambda trained: GOOD)
    outcome = writing.write_report(trained)
    assert outcome.failed == {"bad": "ZeroDivisionError: division by zero [/b]"}
    assert "good <section>" in outcome.written and "report" in outcome.written
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("report:")]
    assert lines == [
        "report: bad failed (ZeroDivisionError: division by zero [/b]); the run and the other sections are not affected"
    ]
    report = json.loads((trained.run.workdir / "report" / "report.json").read_text())
    assert "test_writing.py" in report["sections"][0]["traceback"]
    assert "This section failed" in (trained.run.workdir / "report" / "index.html").read_text()


def test_numbers_that_cannot_be_written_fail_their_section_alone(trained, monkeypatch):
    bad = SectionResult("Bad", "", values={"array": np.zeros(2)})
    sections(monkeypatch, bad=lambda trained: bad, good=lambda trained: GOOD)
    assert list(writing.write_report(trained).failed) == ["bad"]


def test_a_page_that_cannot_be_written_is_one_line(trained, monkeypatch, capsys):
    sections(monkeypatch)
    (trained.run.workdir / "report").write_text("a file where the folder should be")
    assert list(writing.write_report(trained).failed) == ["index.html"]
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_without_the_data_the_section_of_an_earlier_report_stays(trained, monkeypatch, capsys):
    sections(monkeypatch, good=lambda trained: GOOD)
    writing.write_report(trained)
    sections(monkeypatch, good=miss)
    capsys.readouterr()
    assert writing.write_report(trained).failed == {}
    assert capsys.readouterr().out == "report: good cannot be made: folder:/gone is not here\n"
    text = (trained.run.workdir / "report" / "index.html").read_text()
    assert (
        "From an earlier report of this step" in text
        and "Measured by hand" in text
        and len(Page(text).images) == 1
    )
    # A third time too, but not for other parameters.
    writing.write_report(trained)
    assert "Measured by hand" in (trained.run.workdir / "report" / "index.html").read_text()
    writing.write_report(Opened(trained.run, {}, 10))
    assert "cannot be made here" in (trained.run.workdir / "report" / "index.html").read_text()


def test_a_run_without_metrics_has_a_report(trained, monkeypatch):
    sections(monkeypatch, good=lambda trained: GOOD)
    (trained.run.workdir / "metrics.jsonl").unlink()
    writing.write_report(Opened(trained.run, {}, 0))
    text = (trained.run.workdir / "report" / "index.html").read_text()
    assert "Test set at step" not in text and "Measured by hand" in text
