"""The README files: their commands and Python blocks run, their links lead somewhere, their tables are complete."""

import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from server.status import CANCEL_STATUSES, STATUS
from tests.serving import ROOT, Served

LONGEST_README = 170  # lines of the one at the top
FOLDERS = ("models", "export", "server", "protos", "tests", "docker")
FILES = ("README.md", *(f"{folder}/README.md" for folder in FOLDERS))
TEXTS = {name: (ROOT / name).read_text("utf-8") for name in FILES}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """The code blocks of one language with the file that each stands in, in order."""
    return [(file, code) for file, text in TEXTS.items() for found, code in FENCED.findall(text) if found == language]


def commands() -> list[tuple[str, str]]:
    """The command lines to run, each with its file."""
    return [(file, line) for file, block in blocks("bash") for line in block.splitlines()]


def section(file: str, heading: str) -> str:
    """The text between a heading and the next one of the same level."""
    _, found, rest = TEXTS[file].partition(f"\n## {heading}\n")
    assert found, f"{file} has no heading {heading!r}"
    return rest.partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """The first cell of each row of the tables in a text."""
    return re.findall(r"^\| ?([^|\n]+?) ?\|", text, re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a text."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("file", "line"), commands())
def test_each_command_line_answers(file: str, line: str, bundled: Path, bundled_server: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "python"
    if "server.client" in arguments:
        position = arguments.index("server.client") + 1
        arguments[position:position] = ["--server", bundled_server]
    arguments = [re.sub(r"^artifacts(?=/)", str(bundled), argument) for argument in arguments]
    assert run([sys.executable, *arguments]).strip()


@pytest.mark.parametrize(("file", "code"), blocks("python"), ids=lambda text: text.splitlines()[-1].strip())
def test_each_python_block_runs(file: str, code: str, bundled_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(code.replace("localhost:8001", bundled_server), file, "exec"), {})


@pytest.mark.parametrize("file", FILES)
def test_every_link_leads_somewhere(file: str) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)]+)\)", FENCED.sub("", TEXTS[file])):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath((ROOT / file).parent / path)) if path else ROOT / file
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            broken.append(link)
    assert broken == []


def test_the_readme_at_the_top_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= LONGEST_README


def test_the_tree_names_the_folders_that_are_there() -> None:
    [tree] = [block for _, block in FENCED.findall(TEXTS["README.md"]) if "models/    " in block]
    assert {line.split("/")[0] for line in tree.splitlines()} == set(FOLDERS)


def test_the_readme_at_the_top_links_to_that_of_each_folder() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXTS["README.md"])
    assert {f"{folder}/README.md" for folder in FOLDERS} <= set(links)


def test_the_tables_of_settings_name_those_of_help() -> None:
    flags, _, keys = run([sys.executable, "-m", "server", "--help"]).partition("keys of --set")
    flags = flags.partition("\nmodels:\n")[2]  # after usage, --help and --version
    documented = section("server/README.md", "Settings")
    cells = [cell.strip("`") for cell in first_cells(documented) if cell.startswith("`")]
    assert [cell for cell in cells if cell.startswith("--")] == re.findall(r"^  (--[\w-]+)", flags, re.MULTILINE)
    assert [cell for cell in cells if not cell.startswith("--")] == re.findall(r"^  (\w+)  ", keys, re.MULTILINE)
    variables = set(re.findall(r"AFFINITY_\w+", documented))
    assert variables == set(re.findall(r"AFFINITY_\w+", flags))


def test_the_table_of_errors_names_every_status() -> None:
    documented = [cell for cell in first_cells(section("server/README.md", "Errors")) if cell.isupper()]
    answered = {status.name for status in (*STATUS.values(), *CANCEL_STATUSES.values())} | {"INTERNAL"}
    assert len(documented) == len(set(documented))
    assert set(documented) == answered


def test_the_tables_of_metrics_name_every_family(bundled_running: Served) -> None:
    with urllib.request.urlopen(bundled_running.url("/metrics"), timeout=60) as response:
        families = set(re.findall(r"^# TYPE (\w+)", response.read().decode(), re.MULTILINE))
    cells = " ".join(first_cells(section("server/README.md", "Metrics")))
    documented = re.findall(r"`(\w+)`", cells)
    assert len(documented) == len(set(documented))
    assert set(documented) == families


def test_the_table_of_export_options_names_those_of_help() -> None:
    documented = re.findall(r"^\| `(--[\w-]+)", section("export/README.md", "Commands"), re.MULTILINE)
    known = set(re.findall(r"^  (--[\w-]+)", run([sys.executable, "-m", "export", "--help"]), re.MULTILINE))
    assert sorted(documented) == sorted(known - {"--list"})
