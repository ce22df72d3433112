"""The search for the best choice for one model: first graph and provider, then threads and options, then sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from server.artifact import Artifact
from server.batching.collate import PIXELS_PER_TOKEN
from server.batching.defaults import MAX_BATCH_TOKENS
from server.config.settings import ModelSettings
from server.generation.open import DEFAULT_CHUNK_TOKENS
from server.runtime.sessions import CheckedSession
from server.tuning.candidates import (
    Candidate,
    Choice,
    Machine,
    Sizes,
    Way,
    batch_stages,
    chunk_stages,
    option_candidates,
    others,
    thread_candidates,
)
from server.tuning.comparison import Comparison
from server.tuning.search import Found, search
from server.tuning.workloads import PAST_TOKENS, TEXT_TOKENS


@dataclass(frozen=True)
class Best:
    """The best choice, its open session, and the number of comparisons that were made."""

    choice: Choice
    session: CheckedSession
    compared: int


def find_best(
    comparison: Comparison,
    artifact: Artifact,
    default: Candidate,
    ways: Sequence[Way],
    *,
    settings: ModelSettings,
    machine: Machine,
    set_threads: bool,
) -> Best:
    """Search from the default on. With `set_threads`, other numbers of threads are tried."""
    coarse = search(default, [lambda best: others(best, ways, saturates=machine.saturates)], comparison.candidates)
    stages = [option_candidates]
    if set_threads and machine.cpus > 1:
        small = comparison.is_small(coarse.best)
        stages.insert(0, partial(thread_candidates, machine=machine, small=small))
    fine = search(coarse.best, stages, comparison.candidates)
    sizes = _sizes(comparison, artifact, fine.best, settings)
    gained = round(coarse.speedup * fine.speedup, 3)
    choice = Choice(candidate=fine.best, sizes=sizes.best, speedup=gained, complete=comparison.complete)
    return Best(choice, comparison.take(fine.best), coarse.compared + fine.compared + sizes.compared)


def _sizes(comparison: Comparison, artifact: Artifact, best: Candidate, settings: ModelSettings) -> Found[Sizes]:
    """The sizes that the settings leave open."""
    manifest = artifact.manifest
    if manifest.HasField("cache"):
        return _chunk(comparison, artifact, best, settings)
    if settings.max_batch_tokens:
        return Found(Sizes(), 1.0)
    length, longest = TEXT_TOKENS, manifest.text.max_length
    if manifest.HasField("image"):
        length = longest = max(1, manifest.image.height * manifest.image.width // PIXELS_PER_TOKEN)
    default = max(MAX_BATCH_TOKENS[best.provider], longest)
    compare = partial(comparison.batch_tokens, best, length=min(length, longest), items=settings.max_batch_size)
    found = search(default, batch_stages(default, smallest=longest), compare)
    return Found(Sizes(max_batch_tokens=found.best if found.best != default else 0), found.speedup, found.compared)


def _chunk(comparison: Comparison, artifact: Artifact, best: Candidate, settings: ModelSettings) -> Found[Sizes]:
    context = artifact.manifest.text.max_length
    past = min(PAST_TOKENS, context // 2)
    if settings.max_prefill_tokens or context - past < DEFAULT_CHUNK_TOKENS:
        return Found(Sizes(), 1.0)
    compare = partial(comparison.chunk_tokens, best, past=past)
    found = search(DEFAULT_CHUNK_TOKENS, chunk_stages(DEFAULT_CHUNK_TOKENS, largest=context - past), compare)
    size = found.best if found.best != DEFAULT_CHUNK_TOKENS else 0
    return Found(Sizes(max_prefill_tokens=size), found.speedup, found.compared)
