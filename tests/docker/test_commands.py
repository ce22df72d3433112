"""The commands in docker/README.md name files, resources and secrets that exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.docker.engine import ROOT
from tests.docker.manifests import KUBERNETES, kubectl, pod, render

README = (ROOT / "docker" / "README.md").read_text().replace("\\\n", "")  # joins long lines
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines()]


def arguments(*start: str) -> list[list[str]]:
    """The arguments of the commands that begin so."""
    words = [shlex.split(line) for line in COMMANDS]
    return [each[len(start) :] for each in words if tuple(each[: len(start)]) == start]


def test_every_overlay_is_described() -> None:
    overlays = {folder.name for folder in (KUBERNETES / "overlays").iterdir()}
    assert set(re.findall(r"\]\(kubernetes/overlays/([\w-]+)/kustomization.yaml\)", README)) == overlays


def test_what_is_applied_can_be_rendered() -> None:
    applied = arguments("kubectl", "apply")
    assert len(applied) > 4
    for option, path in applied:
        assert render(ROOT / path) if option == "-k" else yaml.safe_load((ROOT / path).read_text())


def test_compose_files_exist() -> None:
    files = [word for words in arguments("docker", "compose") for word in words if word.endswith(".yaml")]
    assert len(files) > 2
    assert all((ROOT / file).exists() for file in files)


def test_resources_that_commands_name_exist() -> None:
    names = {"inferenceservice/affinity-models", "service/affinity-models-predictor"}  # the latter is made by KServe
    for folder in (KUBERNETES / "export", KUBERNETES / "overlays" / "cpu"):
        names |= {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in render(folder)}
    words = [word for words in arguments("kubectl") for word in words if re.fullmatch(r"[a-z]+/[a-z-]+", word)]
    assert len(words) > 3
    assert set(words) <= names


def test_the_commands_make_the_secrets_that_are_mounted(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    shutil.copy(ROOT / "docker" / "secrets.sh", tmp_path / "docker")
    [script] = [line for line in COMMANDS if line.startswith("docker/secrets.sh affinity.affinity")]
    subprocess.run(shlex.split(script), cwd=tmp_path, check=True, capture_output=True)
    made = {}
    for words in arguments("kubectl", "create"):
        command = [kubectl(), "create", *words, "--dry-run=client", "--output=yaml"]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        secret = yaml.safe_load(done.stdout)
        made[secret["metadata"]["name"]] = set(secret["data"])
        assert secret["metadata"]["namespace"] == "affinity"
    assert made == {"affinity-tls": {"tls.crt", "tls.key", "ca.crt"}, "affinity-tokens": {"tokens"}}
    volumes = pod(render(KUBERNETES / "overlays" / "secure"))["volumes"]
    assert {volume["secret"]["secretName"] for volume in volumes if "secret" in volume} == set(made)
