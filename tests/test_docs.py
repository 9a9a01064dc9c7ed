"""What the documents say is what the programs do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, load_benchmark

from lorasmith.recipe import load_recipe

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["reference", "memory", "reliability", "learning", "scaling"])
def test_a_page_that_is_made_is_current(name):
    made = subprocess.run(
        [sys.executable, f"docs/make_{name}.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout == (ROOT / f"docs/{name}.md").read_text(), "run: make reference"


def test_the_recipe_in_the_readme_loads(tmp_path):
    [text] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "r.yaml").write_text(text)
    assert load_recipe(tmp_path / "r.yaml", []).model.quantization == "nf4"


def test_the_error_in_the_readme_is_the_real_one():
    from lorasmith.errors import RecipeError

    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("recipes/quickstart.yaml"), ["trainer.learning_rat=1e-4"])
    assert f"error: {caught.value}" in README


def test_every_file_and_target_that_the_documents_name_exists():
    makefile = (ROOT / "Makefile").read_text()
    for path in ("README.md", "docs/rows.md", "adapters/README.md", "quickstart/base/README.md"):
        text = (ROOT / path).read_text()
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
            assert f"\n{target}:" in makefile, (path, target)
        for name in re.findall(r"(?:scripts|recipes|docs|tests|quickstart)/[\w./-]+\w", text):
            assert (ROOT / name).exists(), (path, name)


def test_every_row_in_the_documents_is_read_as_the_format_that_it_stands_under(tmp_path):
    from lorasmith.data.formats import COLUMNS, read_rows

    text = (ROOT / "docs/rows.md").read_text()
    examples = re.findall(r"^`([a-z+-]+)`[^`]*?(?:`[^`]+`[^`]*?)*```json\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert {name for name, _ in examples} == set(COLUMNS)
    for name, rows in examples:
        (tmp_path / "r.jsonl").write_text(rows)
        assert read_rows(str(tmp_path / "r.jsonl")).kind == name


def test_the_first_screen_shows_how_to_start():
    top = README.splitlines()[:25]
    assert any("make quickstart" in line for line in top)
    assert any("make test" in line for line in top)
    assert any(line.startswith("accelerate launch scripts/sft.py") for line in top)


def test_the_speeds_in_the_readme_are_those_of_the_benchmarks():
    speed = ROOT / "benchmarks/speed.json"
    benchmark = load_benchmark("speed")
    made = benchmark.region(json.loads(speed.read_text())) if speed.exists() else "Not measured yet."
    assert benchmark.with_region(README, made) == README, "run: make speed"
    audit = json.loads((ROOT / "benchmarks/audit.json").read_text())
    assert audit["rows"] == 100_000
    words = f"in {audit['ours']['seconds']:.1f} s, against {audit['trl']['seconds']:.1f} s"
    assert words in " ".join(README.split())


def test_the_tables_of_preparation_are_those_of_its_measurements():
    text = (ROOT / "docs/prepare.md").read_text()
    for name in ("prepare", "near_duplicates"):
        report = json.loads((ROOT / f"benchmarks/{name}.json").read_text())
        assert load_benchmark(name).table(report) in text, f"copy the table that benchmarks/{name}.py prints"
    report = json.loads((ROOT / "benchmarks/prepare.json").read_text())
    words = f"in {report['ours']['seconds']:.0f} s and {report['ours']['peak_gib']:.2f} GiB"
    assert words in " ".join(README.split())


def test_the_table_of_levers_is_that_of_its_measurements():
    report = json.loads((ROOT / "benchmarks/levers.json").read_text())
    page = (ROOT / "docs/speed.md").read_text()
    assert load_benchmark("levers").with_table(page, report) == page, "run: python benchmarks/levers.py"


def test_the_speeds_of_evaluation_are_those_of_its_measurements():
    report = json.loads((ROOT / "benchmarks/eval_speed.json").read_text())
    page = (ROOT / "docs/evaluation.md").read_text()
    assert load_benchmark("eval_speed").with_table(page, report) == page, "run: python benchmarks/eval_speed.py"
    assert all(cell["same"] == report["rows"] and cell["ratio"] >= 1 for cell in report["cells"].values())


def test_the_table_of_shared_rows_is_that_of_its_measurements():
    report = json.loads((ROOT / "benchmarks/startup.json").read_text())
    assert load_benchmark("startup").table(report["median"]) in (ROOT / "docs/data_at_scale.md").read_text()


def test_every_seeded_bug_still_has_its_place_and_its_tests():
    bugs = yaml.safe_load((ROOT / "benchmarks/scorecard/seeded_bugs.yaml").read_text())
    assert len(bugs) >= 40
    for bug in bugs:
        assert (ROOT / bug["file"]).read_text().count(bug["old"]) == 1, bug["bug"]
        for test in bug["tests"]:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text(), bug["bug"]
