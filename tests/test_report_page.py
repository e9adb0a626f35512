"""The page, the figures, the tables and the command, without a browser."""

from __future__ import annotations

import csv
import importlib
import itertools
import json
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
import typer
from report_runs import Best, certified, many, run
from typer.testing import CliRunner

from osscar_opt.bench.report import _parts, _style
from osscar_opt.bench.report.evaluation import evaluate
from osscar_opt.bench.report.figures import COUNT, draw, save_figures
from osscar_opt.bench.report.page import inline_svg, page, write_page
from osscar_opt.bench.report.tables import method_rows, run_rows, write_csv, write_parquet
from osscar_opt.bench.store import Store
from osscar_opt.cli import reporting
from osscar_opt.cli._console import GuardedGroup
from osscar_opt.errors import UnavailableError

pytest.importorskip("matplotlib")
EVIL = "<script>alert('run')</script>"


@pytest.fixture(scope="module")
def evaluation():
    return evaluate(many(60))


@pytest.fixture(scope="module")
def made(evaluation):
    return page(evaluation, title="Test", source="runs.db")


@pytest.fixture(scope="module")
def drawn(evaluation):
    return [(drawing.name, inline_svg(drawing)) for drawing in draw(evaluation)]


class Tags(HTMLParser):
    """Every element, every id, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.ids, self.scripts, self.open = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.open = tag

    def handle_data(self, data):
        if self.open == "script":
            self.scripts.append(data)
            self.open = None


# ------------------------------------------------------------------------------------------------------------ page


def test_the_page_loads_nothing(made):
    tags = Tags(made)
    assert not [attrs for _, attrs in tags.found if attrs.get("src")]
    links = [attrs["href"] for _, attrs in tags.found if "href" in attrs]
    assert all(link.startswith(("#", "data:,")) for link in links)
    assert not re.search(r"@import|url\((?!#)", made)
    assert "default-src 'none'" in made


def test_names_in_the_page_are_unique_and_references_lead_somewhere(made):
    ids = Tags(made).ids
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', made)) <= set(ids)


def test_every_method_has_its_box_and_its_curves(evaluation, made, drawn):
    tags = Tags(made)
    boxes = [attrs["value"] for tag, attrs in tags.found if tag == "input"]
    assert boxes == [str(index) for index in range(len(evaluation.labels))]
    for name, svg in drawn:
        assert {f'data-series="{box}"' for box in boxes} <= set(re.findall(r'data-series="\d+"', svg)), name


def test_all_figures_are_there_and_no_colour_is_left_that_the_dark_theme_does_not_know(made, drawn):
    assert made.count("<figure ") == COUNT
    for name, svg in drawn:
        ET.fromstring(svg.replace("xlink:", ""))
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set(), name


def test_nothing_from_a_run_becomes_markup():
    rows = [
        certified("exact", 4.0, instance=EVIL),
        run(f"greedy {EVIL}", 5.0, instance=EVIL, termination="\u2028</script>"),
        run(
            "swap",
            None,
            instance=EVIL,
            reason=f"It failed: {EVIL} & more.",
            environment={"cpu": EVIL, EVIL: [EVIL]},
        ),
    ]
    text = page(evaluate(rows, family=lambda one: EVIL), title=EVIL, source=EVIL)
    tags = Tags(text)
    assert [tag for tag, _ in tags.found].count("script") == 2
    assert EVIL not in text
    assert "&lt;script&gt;alert(&#x27;run&#x27;)" in text
    data = json.loads(tags.scripts[0])
    assert data["runs"]["rows"][0][0] == EVIL
    assert data["methods"][1]["label"] == f"greedy {EVIL}"


def test_the_tables_of_the_page_hold_every_run_and_pair(evaluation, made):
    data = json.loads(Tags(made).scripts[0])
    assert len(data["runs"]["rows"]) == len(evaluation.runs)
    assert len(data["pairs"]["rows"]) == len(evaluation.pairs)
    for table in (data["runs"], data["pairs"]):
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}


def test_an_empty_store_makes_a_page():
    text = page(evaluate([]))
    assert "There are no runs." in text
    assert "There is nothing to draw." in text


def test_a_store_of_nothing_but_failures_makes_a_page():
    text = page(
        evaluate([run("greedy", None), run("osscar", None, outcome="refused", reason="Not for blocks.")])
    )
    assert "The process ended with signal 9." in text
    assert "Not for blocks." in text


def test_unknown_numbers_are_not_zero():
    rows = _parts.summary_table(evaluate([run("greedy", None)]), _style.method_styles(["greedy"]))
    assert rows.count("–") >= 5


def test_the_page_replaces_the_old_one_whole(evaluation, tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("old")
    monkeypatch.setattr("osscar_opt.bench.report.page.draw", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        write_page(evaluation, target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


# --------------------------------------------------------------------------------------------------------- figures


def test_figures_are_the_same_every_time(drawn, evaluation):
    assert [inline_svg(drawing) for drawing in draw(evaluation)] == [svg for _, svg in drawn]


def test_figures_as_files(evaluation, tmp_path):
    written = save_figures(evaluation, tmp_path / "figures", ("svg",))
    assert len(written) == COUNT
    for path in written:
        ET.parse(path)


def test_without_matplotlib_a_sentence_says_what_to_install(evaluation, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnavailableError, match=r"pip install 'osscar-opt\[bench\]'"):
        page(evaluation)


DEFICIENCIES = {  # Machado, Oliveira and Fernandes 2009, full severity, on linear RGB
    "none": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def linear(color):
    parts = np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Ottosson's OKLab, in which equal distances look equally large."""
    cones = np.array(
        [[0.412221, 0.536333, 0.051446], [0.211903, 0.680700, 0.107397], [0.088302, 0.281719, 0.629979]]
    )
    axes = np.array(
        [[0.210454, 0.793618, -0.004072], [1.977998, -2.428592, 0.450594], [0.025904, 0.782772, -0.808676]]
    )
    return axes @ np.cbrt(cones @ np.clip(rgb, 0, 1))


@pytest.mark.parametrize(
    ("palette", "paper"), [(_style.PALETTE, "#ffffff"), (_style.DARK_PALETTE, "#12161b")]
)
def test_colours_are_told_apart_by_everybody_and_can_be_read(palette, paper):
    for matrix in DEFICIENCIES.values():
        seen = [oklab(matrix @ linear(color)) for color in palette]
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 0.085
    light = [linear(color) @ [0.2126, 0.7152, 0.0722] + 0.05 for color in (paper, *palette)]
    assert min(max(light[0], one) / min(light[0], one) for one in light[1:]) > 4.1


def test_well_known_methods_keep_their_colours_and_all_styles_differ():
    labels = ["mine", "greedy", "search patience=1", "exact", *(f"method {index}" for index in range(20))]
    styles = _style.method_styles(labels)
    assert styles["greedy"].slot == _style.method_styles(["greedy"])["greedy"].slot
    assert len({(style.slot, style.dash) for style in styles.values()}) == len(labels)
    assert len(_style.method_styles([f"method {index}" for index in range(50)])) == 50


@pytest.mark.parametrize(
    ("wanted", "step", "expected"),
    [
        ([0.1, 0.9], 0.1, [0.1, 0.9]),
        ([1.0, 1.0, 1.0], 0.1, [0.8, 0.9, 1.0]),
        ([0.0, 0.0], 0.1, [0.0, 0.1]),
        ([0.4, 0.5, 0.5, 0.6], 0.1, [0.35, 0.45, 0.55, 0.65]),
        ([], 0.1, []),
    ],
)
def test_labels_are_moved_apart_as_little_as_possible(wanted, step, expected):
    assert _style.spread(wanted, step) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------------- tables


def test_csv_holds_every_run_and_method(evaluation, tmp_path):
    runs, methods = write_csv(evaluation, tmp_path / "out.csv")
    with runs.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(evaluation.runs)
    assert float(rows[0]["objective"]) == evaluation.runs[0].objective
    assert rows[0]["kept"] == "0 1"
    with methods.open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == list(evaluation.labels)


def test_parquet_has_types_and_the_same_rows(evaluation, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    runs, methods = write_parquet(evaluation, tmp_path / "out.parquet")
    assert parquet.read_table(runs).to_pylist() == run_rows(evaluation)
    assert parquet.read_table(methods).to_pylist() == method_rows(evaluation)
    assert str(parquet.read_schema(runs).field("seed").type) == "int64"


def test_without_pyarrow_a_sentence_says_what_to_do(evaluation, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnavailableError, match=r"pip install 'osscar-opt\[parquet\]', or write CSV"):
        write_parquet(evaluation, tmp_path / "out.parquet")


# --------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def command():
    app = typer.Typer(cls=GuardedGroup)
    app.command()(reporting.report)
    app.command()(reporting.export_benchopt)

    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "runs.db"
    with Store(path) as opened:
        for number, row in enumerate(many(6)):
            object.__setattr__(row, "key", f"{number:032x}")
            opened.add(row)
    return path


def test_the_command_writes_all_there_is(command, store, tmp_path):
    pytest.importorskip("pyarrow")
    folder = tmp_path / "figures"
    done = command(
        "report",
        store,
        "--figures",
        folder,
        "--csv",
        tmp_path / "a.csv",
        "--parquet",
        tmp_path / "a.parquet",
        "--json",
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["written"]["page"] == str(tmp_path / "runs.html")
    assert document["runs"]["ok"] + document["runs"]["failed"] == 24
    assert {row["label"] for row in document["methods"]} == {"greedy", "osscar", "search", "exact"}
    assert len(list(folder.iterdir())) == 2 * COUNT
    assert (tmp_path / "a-methods.parquet").exists()


def test_the_command_for_people(command, store, tmp_path):
    done = command("report", store, "--out", tmp_path / "page.html", "--no-records")
    assert done.exit_code == 0, done.output
    assert "optima" in done.stdout
    assert f"page: {tmp_path / 'page.html'}" in done.stdout.replace("\n", "")


def test_the_command_refuses_what_cannot_be(command, store, tmp_path):
    missing = command("report", tmp_path / "none.db")
    assert missing.exit_code == 2
    assert "there is no store" in missing.output
    nowhere = command("report", store, "--out", tmp_path / "no" / "page.html")
    assert nowhere.exit_code == 2
    assert "there is no directory" in nowhere.output


def test_records_are_what_runs_are_measured_against(command, store, tmp_path, monkeypatch):
    first = many(1)[0]
    record = {(first.hash, first.keep): Best(0.01, 0.01, True)}
    module = importlib.import_module("osscar_opt.instances.ledger")
    monkeypatch.setattr(module, "best_known", lambda: record)
    document = json.loads(command("report", store, "--json").stdout)
    assert "1 from the records" in (tmp_path / "runs.html").read_text()
    assert max(row["worst_gap"] for row in document["methods"]) > 10
