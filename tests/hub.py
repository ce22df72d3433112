"""A fake Hugging Face hub on this machine: the HTTP responses of huggingface.co that a download needs."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

ANSWERS = {401: "Invalid credentials in Authorization header", 503: "Service Unavailable"}


@dataclass
class Repository:
    """A repository with one commit, on the branch main and with the tag v1. A gated one requires `token`.

    If `status` is not 200, it is the response to every request.
    """

    directory: Path
    token: str | None = None
    status: int = 200

    @property
    def commit(self) -> str:
        return hashlib.sha1(str(self.directory).encode()).hexdigest()

    def files(self) -> dict[str, Path]:
        return {
            path.relative_to(self.directory).as_posix(): path for path in self.directory.rglob("*") if path.is_file()
        }


@dataclass
class Hub:
    """`fetched` are the downloaded files, `asked` all requests, `tokens` their authorization headers."""

    url: str
    repositories: dict[str, Repository]
    fetched: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)


class Handler(BaseHTTPRequestHandler):
    """Handles one request. The hub is an attribute of the server."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""

    def answer(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        hub.tokens.add(self.headers["Authorization"])
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repository = hub.repositories.get("/".join(parts[:2]))
        if repository is None:
            return self.refuse(401, "RepoNotFound")
        if repository.status != 200:
            return self.refuse(repository.status, "", ANSWERS[repository.status])
        what, revision, rest = *parts[2:4], "/".join(parts[4:])
        if revision not in ("main", "v1", repository.commit):
            return self.refuse(404, "RevisionNotFound")
        if what == "revision":
            return self.say(
                {"id": "/".join(parts[:2]), "sha": repository.commit, "siblings": self.siblings(repository)}
            )
        if what == "tree":
            return self.say(
                [{"type": "file", "path": name, **about(file)} for name, file in repository.files().items()]
            )
        if repository.token and self.headers["Authorization"] != f"Bearer {repository.token}":
            return self.refuse(403, "GatedRepo")
        if rest not in repository.files():
            return self.refuse(404, "EntryNotFound")
        return self.send(repository, rest)

    def siblings(self, repository: Repository) -> list[dict]:
        return [{"rfilename": name} for name in repository.files()]

    def send(self, repository: Repository, name: str) -> None:
        content = repository.files()[name].read_bytes()
        if self.command == "GET":
            self.server.hub.fetched.append(name)
        etag = hashlib.sha256(content).hexdigest()
        self.reply(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.commit})

    def say(self, answer: object) -> None:
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str = "") -> None:
        self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": message or code})

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def about(file: Path) -> dict:
    """The size of a file and git's object id of its content."""
    content = file.read_bytes()
    return {"size": len(content), "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}


@contextmanager
def serving(repositories: dict[str, Path | Repository]) -> Iterator[Hub]:
    """Run a hub with these repositories on a free port until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    repositories = {
        name: found if isinstance(found, Repository) else Repository(found) for name, found in repositories.items()
    }
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}", repositories)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
