"""English technical text in a Python installation: docstrings, and the language reference in `pydoc`.

Sources are read, never imported, except for CPython's modules in C, whose docstrings are not in files. Each text is
split into paragraphs: one line of prose, or one `name : type` with its description. Whole modules are held out by a
hash of their name. Each paragraph is kept only once, so none is both in the training data and held out.

Knows nothing of tokens or models.
"""

import ast
import hashlib
import importlib
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path

PACKAGES = {  # distribution: (version, folder, licence); the extra `train` installs exactly these
    "astropy": ("8.0.2", "astropy", "BSD-3-Clause"),
    "bokeh": ("3.9.2", "bokeh", "BSD-3-Clause"),
    "dask": ("2026.8.0", "dask", "BSD-3-Clause"),
    "django": ("5.2.19", "django", "BSD-3-Clause"),
    "jax": ("0.10.2", "jax", "Apache-2.0"),
    "keras": ("3.15.1", "keras", "Apache-2.0"),
    "matplotlib": ("3.11.2", "matplotlib", "PSF-based"),
    "networkx": ("3.6.1", "networkx", "BSD-3-Clause"),
    "numpy": ("2.4.6", "numpy", "BSD-3-Clause"),
    "pandas": ("3.1.1", "pandas", "BSD-3-Clause"),
    "pymc": ("5.28.5", "pymc", "Apache-2.0"),
    "scikit-image": ("0.26.0", "skimage", "BSD-3-Clause"),
    "scikit-learn": ("1.9.1", "sklearn", "BSD-3-Clause"),
    "scipy": ("1.17.1", "scipy", "BSD-3-Clause"),
    "seaborn": ("0.13.2", "seaborn", "BSD-3-Clause"),
    "sqlalchemy": ("2.1.9", "sqlalchemy", "MIT"),
    "statsmodels": ("0.15.0", "statsmodels", "BSD-3-Clause"),
    "sympy": ("1.14.0", "sympy", "BSD-3-Clause"),
    "torch": ("2.13.0", "torch", "BSD-3-Clause"),
    "transformers": ("5.23.0", "transformers", "Apache-2.0"),
    "xarray": ("2026.9.0", "xarray", "Apache-2.0"),
}
HELD_OUT_OF_256 = 5  # 2 % of the modules
SAMPLED = ("python", "networkx", "sqlalchemy")  # packages whose held-out paragraphs are saved with the models
SKIPPED = re.compile(
    r"(^|[/_])(tests?|testing|conftest|vendor|_vendor|externals?|extern|idlelib|lib2to3|site-packages)([/_.]|$)"
)
RAW_DOCSTRINGS = re.compile(r"add_?(new)?_?doc(str)?$")  # numpy, scipy and torch: for docstrings of C code
CODE = re.compile(  # prompts, directives, tables, rules and statements
    r"^(>>>|\.\.\.|In \[|Out\[|\$ |#|\.\. |\||\+[-=])|[{};]$|^[-=~^*\"'`#.+_ ]+$|^:?\w+(:: |::$)"
    r"|^@|^import |^from \w+ import"
)
HEADING = re.compile(r"[A-Z]\w*( \w+)?:?")  # "Args:", "Returns", "Note:"; its text follows
ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " "})
COMMON_WORDS = re.compile(
    r"(the|an?|of|to|is|in|and|for|or|be|if|that|this|it|as|with|by|on|are|not|from|which|will|can|used|when|at)"
)
SHORTEST, LONGEST = 40, 2000  # characters of a paragraph


@dataclass(frozen=True)
class Document:
    """The paragraphs of the texts of one module. `name` is that of the module, as `package/path.py`."""

    name: str
    texts: tuple[tuple[str, ...], ...]

    @property
    def held_out(self) -> bool:
        return hashlib.sha256(self.name.encode()).digest()[0] < HELD_OUT_OF_256

    @property
    def python(self) -> bool:
        """Whether the document is part of Python's own documentation."""
        return self.name.startswith("python/")


@dataclass(frozen=True)
class Corpus:
    """The training documents and the held-out documents."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]


def read(packages: Iterable[str] = tuple(PACKAGES)) -> Corpus:
    """Python's own documentation and that of `packages`, split into training and held-out documents."""
    documents = [*python_documents(), *(document for name in packages for document in package_documents(name))]
    return split(documents)


def split(documents: Iterable[Document]) -> Corpus:
    """Hold out whole modules by a hash of their names. Keep each paragraph once, for training if possible."""
    documents = sorted(documents, key=lambda document: (not document.python, document.name))
    seen: set[str] = set()
    training = [unseen(document, seen) for document in documents if not document.held_out]
    held_out = [unseen(document, seen) for document in documents if document.held_out]
    return Corpus(*(tuple(document for document in part if document.texts) for part in (training, held_out)))


def unseen(document: Document, seen: set[str]) -> Document:
    """The document without the paragraphs in `seen`, to which the others are added."""
    texts = []
    for text in document.texts:
        fresh = {fingerprint(paragraph): paragraph for paragraph in text if fingerprint(paragraph) not in seen}
        seen.update(fresh)
        texts.append(tuple(fresh.values()))
    return replace(document, texts=tuple(text for text in texts if text))


def fingerprint(paragraph: str) -> str:
    """The text by which equal paragraphs are found: without case, spaces and punctuation."""
    return re.sub(r"[^a-z0-9]+", " ", paragraph.lower()).strip()


def python_documents() -> Iterator[Document]:
    """The language reference, the standard library, and the docstrings of built-in types and functions."""
    topics = importlib.import_module("pydoc_data.topics").topics
    for name, text in topics.items():
        yield Document(f"python/topics/{name}", (tuple(paragraphs(text)),))
    yield from folder_documents(Path(sysconfig.get_path("stdlib")), "python")
    for name in sorted(set(sys.builtin_module_names) & sys.stdlib_module_names):
        texts = (tuple(paragraphs(doc)) for doc in builtin_docstrings(importlib.import_module(name)))
        yield Document(f"python/builtin/{name}", tuple(texts))


def builtin_docstrings(module: object) -> Iterator[str]:
    """The docstrings of the functions and types of a module in C, and of their methods."""
    for thing in vars(module).values():
        members = vars(thing).values() if isinstance(thing, type) else ()
        for each in (thing, *members):
            if isinstance(doc := getattr(each, "__doc__", None), str):
                yield doc


def package_documents(name: str) -> Iterator[Document]:
    """The docstrings of a distribution, which must be installed in the version of the table."""
    version, folder, _ = PACKAGES[name]
    installed = distribution(name)
    if installed.version.split("+")[0] != version:
        raise ValueError(
            f"{name} is installed in version {installed.version}: expected {version}, see the extra `train`"
        )
    yield from folder_documents(Path(str(installed.locate_file(folder))), folder)


def folder_documents(folder: Path, prefix: str) -> Iterator[Document]:
    """One document for each module in a folder, except tests and vendored code."""
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if not SKIPPED.search(name):
            texts = (tuple(paragraphs(doc)) for doc in docstrings(path.read_text("utf-8", errors="replace")))
            yield Document(f"{prefix}/{name}", tuple(text for text in texts if text))


def docstrings(source: str) -> Iterator[str]:
    """Every docstring of a module, and those that it sets for C code; none if Python cannot parse it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield ast.get_docstring(node) or ""
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if RAW_DOCSTRINGS.search(name):
                strings = (arg.value for arg in ast.walk(node) if isinstance(arg, ast.Constant))
                yield textwrap.dedent(max((s for s in strings if isinstance(s, str)), key=len, default=""))


def paragraphs(text: str) -> Iterator[str]:
    """Split a docstring into paragraphs of English prose and descriptions of parameters, without code and tables."""
    for chunk in re.split(r"\n\s*\n", text.translate(ASCII).expandtabs()):
        lines = [line for line in chunk.splitlines() if line.strip()]
        if any(CODE.search(line.strip()) for line in lines):
            lines = lines[: next(i for i, line in enumerate(lines) if CODE.search(line.strip()))]
        for item in items(lines):
            if SHORTEST <= len(item) <= LONGEST and is_prose(item):
                yield item


def items(lines: list[str]) -> Iterator[str]:
    """Join wrapped lines; if some are indented, each line that is not indented begins a new item."""
    if lines and HEADING.fullmatch(lines[0].strip()):
        lines = lines[1:]
    if not lines:
        return
    margin = min(indent(line) for line in lines)
    described = any(indent(line) > margin for line in lines)
    item: list[str] = []
    for line in lines:
        if described and indent(line) == margin and item:
            yield joined(item, margin)
            item = []
        item.append(line)
    yield joined(item, margin)


def joined(lines: list[str], margin: int) -> str:
    """One line of prose; or two lines, the second of which joins the indented ones."""
    rest = [" ".join(line.split()) for line in lines]
    if len(lines) > 1 and indent(lines[1]) > margin:
        return f"{rest[0]}\n    {' '.join(rest[1:])}"
    return " ".join(rest)


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def is_prose(text: str) -> bool:
    """English in ASCII: mostly letters, several words, and some of the most common ones."""
    letters = sum(char.isalpha() or char == " " for char in text)
    words = re.findall(r"[a-z]+", text.lower())
    common = sum(COMMON_WORDS.fullmatch(word) is not None for word in words)
    return text.isascii() and letters >= 0.8 * len(text) and len(words) >= 6 and common >= 0.15 * len(words)


def lines(documents: Iterable[Document]) -> Iterator[str]:
    """All texts in order, for training a tokenizer."""
    return ("\n\n".join(text) for document in documents for text in document.texts)
