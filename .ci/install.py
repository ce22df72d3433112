"""Make .venv and install Affinity into it: `python .ci/install.py EXTRA…`, as make does for install, serve and test.

Says beforehand what will be downloaded and how large that is. Does nothing if what was asked for is there already.
Uses the standard library alone; whatever goes wrong is told in one line, the details are in .venv/install.log.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (before anything that an older Python could not run)
    sys.exit(
        "error: Affinity needs Python 3.11 or newer, "
        f"{sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}. Name another one: make PYTHON=python3.12 …"
    )

import hashlib
import json
import shutil
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "affinity.json"  # what was installed, from which pyproject.toml
LOG = VENV / "install.log"
MEGABYTE = 1e6
WORTH_NAMING_MEGABYTES = 50
UNREACHABLE = (
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "NameResolutionError",
    "(from versions: none)",
)


def main(extras: list[str]) -> None:
    """Bring .venv up to date with pyproject.toml and `extras`."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    installed = installed_extras(digest)
    if set(extras) <= installed:
        return
    wanted = sorted(installed | set(extras))
    make_environment()
    requirement = f".[{','.join(wanted)}]" if wanted else "."
    print(f"Affinity: working out what has to be downloaded for {requirement} …", flush=True)
    announce(to_download(requirement))
    install(requirement)
    STAMP.write_text(json.dumps({"digest": digest, "extras": wanted}))


def installed_extras(digest: str) -> set[str]:
    """The extras in .venv, if it works and was made from the same pyproject.toml by the same Python."""
    try:
        stamp = json.loads(STAMP.read_text())
        works = subprocess.run([PYTHON, "-c", ""], check=False)
    except (OSError, ValueError):
        return set()
    return set(stamp["extras"]) if stamp["digest"] == digest and works.returncode == 0 else set()


def make_environment() -> None:
    """Make .venv, again if the one that is there does not run (its Python was moved or removed)."""
    if PYTHON.exists() and subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return
    print(f"Affinity: making {VENV.name} with {sys.executable}", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True)
    if made.returncode:
        last = (made.stdout + made.stderr).strip().splitlines()[-1:] or ["no reason given"]
        sys.exit(f"error: cannot make {VENV} ({last[0]}). On Debian and Ubuntu: apt-get install python3-venv")


def to_download(requirement: str) -> list[tuple[str, float | None]]:
    """Name with version, and bytes (None where the index does not tell), of every package that pip would fetch."""
    report = pip("install", "--dry-run", "--quiet", "--report", "-", "--editable", requirement)
    chosen = [item for item in json.loads(report)["install"] if not item["download_info"].get("dir_info")]
    with ThreadPoolExecutor(16) as pool:
        sizes = pool.map(lambda item: size_bytes(item["download_info"]["url"]), chosen)
    names = [f"{item['metadata']['name']} {item['metadata']['version']}" for item in chosen]
    return list(zip(names, sizes, strict=True))


def size_bytes(url: str) -> float | None:
    """How large the file behind `url` is; None where nobody tells."""
    if url.startswith("file:"):
        return Path(unquote(urlparse(url).path)).stat().st_size
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20) as response:
            return float(response.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def announce(packages: list[tuple[str, float | None]]) -> None:
    """Print how much will be downloaded, the largest by name."""
    megabytes = sorted(((size or 0) / MEGABYTE, name) for name, size in packages)[::-1]
    large = ", ".join(f"{name} {size:.0f} MB" for size, name in megabytes if size >= WORTH_NAMING_MEGABYTES)
    at_least = "at least " if any(size is None for _, size in packages) else ""
    total = sum(size for size, _ in megabytes)
    summary = f"{len(packages)} packages, {at_least}{total:,.0f} MB"
    print(f"Affinity: downloading {summary}" + (f" ({large})" if large else ""))
    if any(name.startswith("nvidia-cudnn") for _, name in megabytes):
        print("          Much of it is PyTorch's CUDA build, which only the export uses; with pip pointed at PyTorch's")
        print("          own index of CPU builds (PIP_EXTRA_INDEX_URL) it is 2 GB less.")
    sys.stdout.flush()


def install(requirement: str) -> None:
    """Install, with a line for each large download."""
    command = [PYTHON, "-m", "pip", "install", "--no-input", "--progress-bar", "off", "--editable", requirement]
    with LOG.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in process.stdout:
            log.write(line)
            words = line.split()
            if line.strip().startswith("Downloading") and words[-1] == "MB)":
                print(f"          {words[1].rsplit('/')[-1]} {words[-2]} MB)", flush=True)
            elif line.startswith("Installing collected"):
                print("Affinity: installing", flush=True)
    if process.wait():
        sys.exit(failure(LOG.read_text()))


def pip(*arguments: str) -> str:
    """What pip prints; ends the program with one line if it fails."""
    done = subprocess.run([PYTHON, "-m", "pip", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        LOG.write_text(done.stdout + done.stderr)
        sys.exit(failure(done.stderr))
    return done.stdout


def failure(output: str) -> str:
    """One line about why pip failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reasons = [line for line in lines if line.lower().startswith("error: ") and "subprocess" not in line] or lines[-1:]
    reason = reasons[0].split(":", 1)[-1].strip() if reasons else "no reason given"
    if any(sign in output for sign in UNREACHABLE):
        reason = f"the package index cannot be reached ({reason})"
    return f"error: installing failed: {reason} (details: {LOG.relative_to(ROOT)})"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("error: interrupted; run the same command again to go on")
