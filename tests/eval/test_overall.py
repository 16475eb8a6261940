"""Equation 9: the paper's tables to the printed digit, several metrics, directions, and bad tables."""

import csv
import io
import json
from pathlib import Path

import pytest

from eval import overall

PAPER = json.loads((Path(__file__).parents[1] / "weighting" / "paper_tables.json").read_text(encoding="utf-8"))


def as_csv(entry):
    rows = dict(entry["rows"])
    if "baseline_from" in entry:
        rows = {"STL": PAPER[entry["baseline_from"]]["rows"]["STL"], **rows}
    text = io.StringIO()
    csv.writer(text).writerows([["method", *entry["tasks"]], *([method, *row] for method, row in rows.items())])
    return text.getvalue()


def run(capsys, *arguments):
    status = overall.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


TABLES = [name for name, entry in PAPER.items() if isinstance(entry, dict) and "rows" in entry]


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_tables(tmp_path, capsys, name):
    entry = PAPER[name]
    (tmp_path / "t.csv").write_text(as_csv(entry), encoding="utf-8")
    zero = ["--zero"] if entry["baseline"] == "EW" else []
    status, _, _ = run(capsys, tmp_path / "t.csv", *zero, "--output", tmp_path / "o.json")
    assert status == 0
    methods = json.loads((tmp_path / "o.json").read_text())["methods"]
    misprints = entry.get("misprints", {})
    for method, printed in entry["printed"].items():
        found = [methods[method][key] for key in (["delta_i_zero"] if zero else ["delta_i", "delta_e"])]
        if name == "table1":  # its rows are rounded too coarsely for more
            assert found == pytest.approx(printed, abs=0.05)
        else:
            expected = misprints[method]["from_its_row"] if method in misprints else printed
            assert [f"{value:.2f}" for value in found] == [
                f"{value:.2f}".replace("-0.00", "0.00") for value in expected
            ]


def test_the_misprints_are_misprints():
    """What the paper prints there is not what its own rows give."""
    wrong = PAPER["table3"]["misprints"]["IGBv1"]
    assert wrong["printed"] == PAPER["table3"]["printed"]["IGBv1"] != wrong["from_its_row"]
    table6 = PAPER["table6"]
    for model, name in (("LLaVA-v1.5-13B", "llava13b"), ("Qwen2-VL-2B", "qwen2vl")):
        for method, (delta_i, delta_e, zero) in table6["printed"][model].items():
            full, zero_full = PAPER[f"table11_{name}"]["printed"][method], PAPER[f"table12_{name}"]["printed"][method]
            assert [delta_e, zero] == [full[1], *zero_full]
            assert (delta_i == full[0]) == (method not in table6["misprints"].get(model, {}))
    assert table6["misprints"]["Qwen2-VL-2B"]["VisATB"] == {"printed": -1.32, "from_table11": -1.23}


def test_several_metrics_count_as_one_task(tmp_path, capsys):
    """I_A = mean(+50%, +25% of a falling error) = 37.5%, I_B = −10%: ΔI 13.75, ΔE 5."""
    text = "method,A/em,A/wer ↓,B\nSTL,0.4,0.8,1.0\nNew,0.6,0.6,0.9\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    status, out, _ = run(capsys, tmp_path / "t.csv")
    assert status == 0
    assert out.splitlines()[-1].split() == ["New", "13.75", "5.00"]
    methods = {"STL": {"A": {"em": 0.4, "wer": 0.8}, "B": 1.0}, "New": {"A": {"em": 0.6, "wer": 0.6}, "B": 0.9}}
    content = {"methods": methods, "higher_is_better": {"A": {"wer": False}}}
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert run(capsys, tmp_path / "t.json")[1] == out


def test_zero_shot_takes_exactly_the_seven(tmp_path, capsys):
    names = [
        "TextVQA",
        "POPE",
        "MME/perception",
        "MME/cognition",
        "SQA^I",
        "MMBench",
        "SEED^I",
        "MM-Vet",
        "LLaVA-Bench",
    ]
    header = ",".join(["method", *names])
    table = tmp_path / "t.csv"
    table.write_text(f"{header}\nEW,1,1,1000,300,1,1,1,1,50\nNew,1.7,1,1000,900,1,1,1,1,90\n")
    status, out, _ = run(capsys, table, "--zero")
    assert status == 0
    assert out.splitlines()[-1].split() == ["New", "10.00"]
    table.write_text("method,TextVQA,POPE\nEW,1,1\nNew,2,2\n")
    status, _, error = run(capsys, table, "--zero")
    assert status == 2
    assert "ΔI_zero needs exactly one column of MME" in error


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "empty"),
        ("t.csv", "method,A\nEW,1\n", "no method 'STL'"),
        ("t.csv", "method,A,B\nSTL,1,2\nEW,1\n", "EW has no figure on B"),
        ("t.csv", "method,A\nSTL,0\nEW,1\n", "STL on A: a baseline needs a figure above 0"),
        ("t.csv", "method,A\nSTL,\nEW,1\n", "STL on A"),
        ("t.csv", "method,A\nSTL,1\nEW,nan\n", "EW on A must be a finite number"),
        ("t.csv", "method,A\nSTL,1\nEW,x\n", "EW on A must be a finite number"),
        ("t.csv", "method,A\nSTL,1\nSTL,2\n", "'STL' comes twice"),
        ("t.csv", "method,A,A\nSTL,1,1\n", "a column comes twice"),
        ("t.csv", "method\nSTL\n", "no tasks"),
        ("t.json", '{"methods": ', "not valid JSON"),
        ("t.json", "[]", "needs `methods`"),
        ("t.json", '{"methods": {"STL": {"A": 1}}, "higher_is_better": {"B": true}}', "unknown: ['B']"),
        ("t.json", '{"methods": {"STL": {"A": true}}}', "STL on A must be a finite number"),
        ("t.json", '{"methods": {"STL": {"A": 1}, "EW": {}}}', "EW has no figure on A"),
    ],
)
def test_bad_tables_are_named(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    status, _, error = run(capsys, tmp_path / name, "--output", tmp_path / "o.json")
    assert status == 2
    assert message in error
    assert name in error
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert run(capsys, tmp_path / "nope.csv")[0] == 2
