"""Create .venv and install Affinity with extras: `python .ci/install.py EXTRA…`. make install, serve and test use it.

Prints the number and size of the packages before downloading them. Does nothing if .venv is up to date. Uses only the
standard library. Errors are printed in one line; the details are in .venv/install.log.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (before the first line that an older Python cannot run)
    sys.exit(
        "error: Affinity needs Python 3.11 or newer, "
        f"{sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}. Choose another: make PYTHON=python3.12 …"
    )

import hashlib
import json
import platform
import shutil
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "affinity.json"  # the installed extras and the digest of pyproject.toml
LOG = VENV / "install.log"
MEGABYTE = 1e6
LARGE_MEGABYTES = 50  # packages that are listed by name
UNREACHABLE = (
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "NameResolutionError",
    "(from versions: none)",
)


def main(extras: list[str]) -> None:
    """Install what .venv lacks of what pyproject.toml, `extras` and this machine require."""
    extras = [*extras, *extras_of_machine()]
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    installed = installed_extras(digest)
    if set(extras) <= installed:
        return
    wanted = sorted(installed | set(extras))
    create_environment()
    requirement = f".[{','.join(wanted)}]" if wanted else "."
    print(f"Affinity: finding the packages to download for {requirement} …", flush=True)
    announce(to_download(requirement))
    install(requirement)
    STAMP.write_text(json.dumps({"digest": digest, "extras": wanted}))


def extras_of_machine(root: Path = Path("/"), architecture: str = platform.machine()) -> list[str]:
    """`cpu`, which is OpenVINO, where it is the fastest: on x86-64 CPUs of Intel without an NVIDIA GPU."""
    try:
        cpuinfo = (root / "proc/cpuinfo").read_text()
    except OSError:
        return []
    gpu = (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidiactl").exists()
    return ["cpu"] if architecture in ("x86_64", "AMD64") and "GenuineIntel" in cpuinfo and not gpu else []


def installed_extras(digest: str) -> set[str]:
    """The extras in .venv; none if .venv is broken, or its Python or pyproject.toml has changed."""
    try:
        stamp = json.loads(STAMP.read_text())
        works = subprocess.run([PYTHON, "-c", ""], check=False)
    except (OSError, ValueError):
        return set()
    return set(stamp["extras"]) if stamp["digest"] == digest and works.returncode == 0 else set()


def create_environment() -> None:
    """Create .venv unless it exists and works. It stops working when its Python is moved or removed."""
    if PYTHON.exists() and subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return
    print(f"Affinity: creating {VENV.name} with {sys.executable}", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    created = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True)
    if created.returncode:
        last = (created.stdout + created.stderr).strip().splitlines()[-1:] or ["no reason given"]
        sys.exit(f"error: cannot create {VENV} ({last[0]}). On Debian and Ubuntu: apt-get install python3-venv")


def to_download(requirement: str) -> list[tuple[str, float | None]]:
    """Name with version, and size in bytes (None if unknown), of every package that pip would download."""
    report = pip("install", "--dry-run", "--quiet", "--report", "-", "--editable", requirement)
    chosen = [item for item in json.loads(report)["install"] if not item["download_info"].get("dir_info")]
    with ThreadPoolExecutor(16) as pool:
        sizes = pool.map(lambda item: size_bytes(item["download_info"]["url"]), chosen)
    names = [f"{item['metadata']['name']} {item['metadata']['version']}" for item in chosen]
    return list(zip(names, sizes, strict=True))


def size_bytes(url: str) -> float | None:
    """The size of the file at `url`; None if the server does not report it."""
    if url.startswith("file:"):
        return Path(unquote(urlparse(url).path)).stat().st_size
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20) as response:
            return float(response.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def announce(packages: list[tuple[str, float | None]]) -> None:
    """Print the number and total size of the packages, and the names of the large ones."""
    megabytes = sorted(((size or 0) / MEGABYTE, name) for name, size in packages)[::-1]
    large = ", ".join(f"{name} {size:.0f} MB" for size, name in megabytes if size >= LARGE_MEGABYTES)
    at_least = "at least " if any(size is None for _, size in packages) else ""
    total = sum(size for size, _ in megabytes)
    summary = f"{len(packages)} packages, {at_least}{total:,.0f} MB"
    print(f"Affinity: downloading {summary}" + (f" ({large})" if large else ""))
    if any(name.startswith("nvidia-cudnn") for _, name in megabytes):
        print(
            "          PyTorch's CUDA build is a large part of that, and only the export uses it. With PyTorch's index"
        )
        print("          of CPU builds as PIP_EXTRA_INDEX_URL, the download is 2 GB smaller.")
    sys.stdout.flush()


def install(requirement: str) -> None:
    """Run pip install, and print a line for each large download."""
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
    """The output of pip. Exits with a one-line error if pip fails."""
    done = subprocess.run([PYTHON, "-m", "pip", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        LOG.write_text(done.stdout + done.stderr)
        sys.exit(failure(done.stderr))
    return done.stdout


def failure(output: str) -> str:
    """A one-line error from the output of pip."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reasons = [line for line in lines if line.lower().startswith("error: ") and "subprocess" not in line] or lines[-1:]
    reason = reasons[0].split(":", 1)[-1].strip() if reasons else "no reason given"
    if any(message in output for message in UNREACHABLE):
        reason = f"the package index cannot be reached ({reason})"
    return f"error: the installation failed: {reason} (details: {LOG.relative_to(ROOT)})"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("error: interrupted; run the same command again to continue")
