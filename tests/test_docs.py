"""The documentation cannot drift: names, sections, commands, task files and scripts in it are held against the code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from copy import copy
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import PIL.Image
import pytest
from test_boundaries import TIERS

import harness
from harness import hookspecs
from harness.cli import chosen_methods, cli, flat, own
from harness.leaderboard import read_board
from harness.registry import Registry, load
from harness.tasks import find_tasks, load_task, read_task
from harness.testing import check_detector

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
CORE = Path(harness.__file__).parent
PLUGINS = sorted(point.value for point in entry_points(group="harness"))


class Block(NamedTuple):
    """A fenced block: its page, the words after the fence, its text."""

    page: str
    info: tuple[str, ...]
    text: str


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        for info, text in re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            found.append(Block(page.name, tuple(info.split()), text))
    return [block for block in found if block.info and block.info[0] in languages]


def the(page: str, *info: str) -> str:
    """The one block of a page that begins with these words."""
    (block,) = [block for block in blocks(info[0]) if block.page == page and block.info[: len(info)] == info]
    return block.text


def named(blocks: list[Block]) -> list[Any]:
    return [pytest.param(block, id=f"{block.page}-{i}") for i, block in enumerate(blocks)]


# --- names


def test_the_hooks_in_the_architecture_are_the_hooks_there_are():
    there = {name for name in vars(hookspecs) if name.startswith("harness_")}
    assert set(re.findall(r"\bharness_(?:register|add|on)_\w+", text_of("docs/architecture.md"))) == there


def test_the_modules_in_the_architecture_are_the_modules_of_the_core():
    rows = re.findall(r"^\| `(\w+\.py)` \|", text_of("docs/architecture.md"), re.M)
    assert sorted(rows) == sorted(path.name for path in CORE.glob("*.py"))


def test_the_plugins_in_the_architecture_are_the_plugins_there_are():
    table = text_of("docs/architecture.md").partition("### The bundled plugins")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(harness_\w+)` \|", table, re.M)) == PLUGINS


def test_the_tiers_in_the_architecture_are_the_tiers_that_are_tested():
    assert tuple(tuple(line.split()) for line in the("architecture.md", "text", "tiers").splitlines()) == TIERS


def sources() -> Iterator[Path]:
    for package in ("harness", *PLUGINS):
        yield from Path(str(import_module(package).__file__)).parent.glob("**/*.py")


def test_every_section_that_a_docstring_cites_is_in_the_method():
    headings = re.findall(r"^(?:#{2,3} |- \*\*)(\d+(?:\.\w+)?)", text_of("docs/method.md"), re.M)
    cited: set[str] = set()
    for path in sources():
        for words in re.findall(r"\b[Ss]ections? ((?:\d+(?:\.\w+)*(?:, | and )?)+)", path.read_text(encoding="utf-8")):
            cited.update(re.findall(r"\d+(?:\.\w+)?", words))
    assert cited
    assert not cited - set(headings)


def test_every_link_to_a_file_of_the_project_leads_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_link_to_a_heading_of_another_page_leads_to_one():
    for page in PAGES:
        for link, anchor in re.findall(r"\]\(([^)#:]+)#([^)]+)\)", page.read_text(encoding="utf-8")):
            headings = re.findall(r"^#+ (.*)$", (page.parent / link).read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {link}#{anchor}"


@pytest.mark.parametrize("kind", ["backbones", "concept_methods", "detectors", "scorers", "localizers", "metrics"])
def test_everything_that_is_bundled_is_named_somewhere(kind: str):
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [name for name in load().entries(kind) if not re.search(rf"`{re.escape(name)}[`:]", pages)]


def test_the_keys_in_the_page_on_tasks_are_the_keys_of_a_task_file():
    from dataclasses import fields

    from harness.tasks import TaskFile

    table = text_of("docs/own-data.md").partition("## The keys of a task file")[2].partition("##")[0]
    keys = {word for cell in re.findall(r"^\| (`[^|]*) \|", table, re.M) for word in re.findall(r"`(\w+)`", cell)}
    assert keys == {field.name for field in fields(TaskFile)}


# --- commands


def silent(command: click.Command) -> click.Command:
    """The command as it parses, without what it does; a group keeps its commands."""
    done = copy(command)
    if isinstance(done, click.Group):
        done.commands = {name: silent(child) for name, child in done.commands.items()}
    else:
        done.callback = lambda **options: options
    return done


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words after `harness`) of every command line: in fenced blocks, and in a line of text."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = re.findall(r"`(harness [^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
        for block in blocks("bash", "console", "sh"):
            lines += block.text.replace("\\\n", " ").splitlines() if block.page == page.name else []
        for line in lines:
            words = shlex.split(line, comments=True)
            while words:
                end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";")), len(words))
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words, end = words[1:], end - 1
                if words[:1] == ["harness"]:
                    yield page.name, words[1:end]
                words = words[end + 1 :]


COMMANDS = [pytest.param(page, words, id=f"{page}: {' '.join(words)}") for page, words in commands()]


@pytest.mark.parametrize(("page", "words"), COMMANDS)
def test_every_command_line_parses_and_names_what_there_is(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.cli.read_config", lambda context, path: None)
    registry = load()
    group = own(cli)
    registry.add_commands(group)
    if words in ([name] for name in group.commands):
        return  # a command spoken of by its name
    options = silent(group).main(words, prog_name="harness", obj=registry, standalone_mode=False)
    if words[:1] == ["run"] and not {"-p", "--plugin"} & set(words):
        exist(registry, page, options)
    if words[:1] == ["show"]:
        assert words[1] in {*find_tasks(registry), *registry.methods()}


def exist(registry: Registry, page: str, options: dict[str, Any]) -> None:
    assert chosen_methods(registry, flat(options["method"]), dict(options))
    for task in flat(options["task"]):
        assert task.partition(":")[0] in find_tasks(registry) or task in OWN, f"{page}: {task}"
    for backbone in flat(options["backbone"]):
        assert backbone.partition(":")[0] in registry.entries("backbones"), f"{page}: {backbone}"


OWN = {f"{match[1]}.yaml" for block in blocks("yaml") if (match := re.match(r"task: (\S+)", block.text))}
"""The task files that the pages show how to write."""


def test_the_main_job_and_the_tests_are_one_command_after_their_markers():
    for marker, inside in (("main job", "harness run "), ("tests", "pytest")):
        found = re.search(rf"^<!-- {marker} -->\n```bash\n([^\n]+)\n```$", text_of("README.md"), re.M)
        assert found, marker
        assert "pip install -c constraints.txt -e " in found[1]
        assert inside in found[1]


# --- task files and boards


@pytest.mark.parametrize("block", named(blocks("yaml")))
def test_every_task_and_board_definition_is_read(block: Block, tmp_path: Path):
    path = tmp_path / "shown.yaml"
    path.write_text(block.text, encoding="utf-8")
    if block.text.startswith("task:"):
        read_task(path)
        assert len(block.text.splitlines()) < 15
    else:
        assert block.text.startswith("board:")
        read_board(path)


def repeated(shown: str, key: str, names: tuple[str, str, str]) -> list[dict[str, Any]]:
    """The row that a page shows, in every split: four with the concept and two without any."""
    row = json.loads(shown)
    bare = {**row, "concepts": [], **{name: [] for name in ("masks", "regions") if name in row}}
    return [{**one, key: name} for name in names for one in (row, row, row, row, bare, bare)]


def test_the_images_with_masks_of_the_page_are_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rows = repeated(the("own-data.md", "json", "flowers/metadata.jsonl"), "split", ("train", "cal", "test"))
    rows += [{**row, "concepts": ["tulip"], "masks": [{**row["masks"][0], "concept": "tulip"}]} for row in rows if row["masks"]]
    mask = rows[0]["masks"][0]["mask"]
    for i, row in enumerate(rows):
        row["file_name"] = f"images/{i}.png"
        write_image(tmp_path / "flowers" / row["file_name"], i)
    write_image(tmp_path / "flowers" / mask, 1)
    Path("flowers/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = shown_task("flowers")
    assert task.concepts == ("rose", "tulip")
    assert not task.notes


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)


def test_the_texts_with_spans_of_the_page_are_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rows = repeated(the("own-data.md", "json", "reviews.jsonl"), "part", ("train", "dev", "test"))
    rows += [
        {**row, "concepts": ["anger"], "regions": [{**row["regions"][0], "concept": "anger"}]} for row in rows if row["regions"]
    ]
    for i, row in enumerate(rows):
        row["review"] += f" {i}"
    Path("reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = shown_task("reviews")
    assert task.concepts == ("joy", "anger")
    assert not task.notes


def shown_task(name: str) -> Any:
    (text,) = [b.text for b in blocks("yaml") if b.page == "own-data.md" and b.text.startswith(f"task: {name}\n")]
    Path(f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_task(load(), f"{name}.yaml")


# --- scripts and the plugin of CONTRIBUTING


def run_in(folder: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HARNESS_")}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, env={**environment, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def harness_in(folder: Path, *words: str) -> str:
    return run_in(folder, "-c", "from harness.cli import main; main()", *words, "--bootstrap", "20", "--cache-dir", "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where CONTRIBUTING's plugin, as printed, was run beside the method of the paper: results/ holds both."""
    made = tmp_path_factory.mktemp("docs")
    first = next(block.text for block in blocks("python") if block.page == "CONTRIBUTING.md")
    (made / "top3.py").write_text(first, encoding="utf-8")
    table = harness_in(made, "run", "-p", "top3.py", "--task", "toy", "--method", "top3,superactivator")
    assert re.search(r"^  top3 +[01]\.\d{3} \[", table, re.M), table
    return made


def test_the_plugin_of_contributing_gives_a_result_as_printed(folder: Path):
    (result,) = (folder / "results" / "toy" / "toy" / "top3").glob("*/result.json")
    rows = json.loads(result.read_text())["scores"]
    (f1,) = [row["value"] for row in rows if (row["metric"], row["layer"], row["concept"]) == ("f1", "chosen", "macro")]
    assert f1 > 0.8


def test_the_plugin_of_contributing_keeps_the_contract(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "top3", raising=False)
    check_detector(import_module("top3").Top3())


@pytest.mark.parametrize("block", named([b for b in blocks("python") if "runnable" in b.info]))
def test_every_script_that_is_marked_runnable_runs(block: Block, folder: Path):
    run_in(folder, "-c", block.text)


def test_the_folder_of_embeddings_that_the_script_writes_can_be_measured(folder: Path):
    script = the("own-data.md", "python", "runnable")
    assert len([line for line in script.splitlines() if line and not line.startswith(("import ", "from "))]) <= 15
    run_in(folder, "-c", script)
    table = harness_in(folder, "run", "--backbone", "embeddings:my_embeddings", "--method", "max", "--layers", "6,11")
    assert "my_embeddings on embeddings/my_embeddings" in table


def test_the_keys_and_columns_in_the_page_on_results_are_those_of_a_result(folder: Path):
    import pyarrow.parquet as pq

    (result,) = (folder / "results" / "toy" / "toy" / "superactivator").glob("*/result.json")
    read, page = json.loads(result.read_text()), text_of("docs/results.md")
    assert {path.name for path in result.parent.iterdir()} <= set(re.findall(r"^  (\w+(?:\.\w+)?)  ", page, re.M))
    words = set(re.findall(r"`(\w+)`", page))
    for keys in (read, read["scores"][0], read["choices"][0], read["task"], read["method"]):
        assert set(keys) <= words, set(keys) - words
    for name in ("per_sample", "calibration"):
        columns = set(pq.read_schema(result.parent / f"{name}.parquet").names)
        assert columns <= words, columns - words
