"""What the README tells a stranger to type works, as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines()])
def test_each_command_line_answers(line: str, bundled_server: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "python"
    position = arguments.index("server.client") + 1
    assert run([sys.executable, *arguments[:position], "--server", bundled_server, *arguments[position:]]).strip()


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n\n")[0].splitlines()[-1])
def test_each_piece_of_python_runs(code: str, bundled_server: str) -> None:
    run([sys.executable, "-c", code.replace("localhost:8001", bundled_server)])


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tree_names_the_folders_that_are_there() -> None:
    fenced = re.findall(r"^```\w*\n(.*?)^```$", README, re.M | re.S)
    [tree] = [block for block in fenced if "models/    " in block]
    named = {line.split("/")[0] for line in tree.splitlines()}
    assert named == {"models", "export", "server", "protos", "tests", "docker"}
