"""The ways to run a model that are worth measuring: provider, graph and precision, threads, options. Pure."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace

Option = tuple[str, str]  # of ONNX Runtime's session configuration
Way = tuple[str, str, str]  # provider, precision of the graph, precision in which the provider computes

# ONNX Runtime divides the work of an operator into blocks that shrink towards the end, so that no thread waits long for
# the last one. "For some models, it helps to reduce the variance […] and boost performance"
# (onnxruntime_session_options_config_keys.h). It changes no result.
SHRINKING_BLOCKS: Option = ("session.dynamic_block_base", "4")
MANY_THREADS = 4  # with fewer there is little to divide
# Without VNNI, products of unsigned and signed 8-bit numbers saturate at 16 bits; with this option the runtime makes
# weights unsigned at load, which is exact and slower ("Avx2PrecisionMode", onnxruntime_session_options_config_keys.h).
EXACT_PRODUCTS: Option = ("session.x64quantprecision", "1")
EIGHT_BIT_PRODUCTS = ("int8-dynamic", "int8-dynamic+int8-kv")  # precisions of graphs
OPTIONS: dict[str, tuple[Option, ...]] = {"cpu": (SHRINKING_BLOCKS, EXACT_PRODUCTS)}  # by provider
FEW_THREADS = (4, 1)  # enough for a model whose operators take less time than to wake many threads


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to run a model, as a session is opened: in `precision`, from the graph of precision `graph`."""

    provider: str
    graph: str
    precision: str
    threads: int
    options: tuple[Option, ...] = ()

    def __str__(self) -> str:
        graph = "" if self.graph == self.precision else f" from {self.graph}"
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        options = "".join(f", {name}={value}" for name, value in self.options)
        return f"{self.provider} in {self.precision}{graph}, {threads}{options}"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of runs, in tokens; 0: the default of the provider."""

    max_batch_tokens: int = 0
    max_prefill_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How to run a model, and how many times as fast as the default the candidate was when it was measured.

    Unless it is `complete`, other work left too little memory or CPU time to try all candidates.
    """

    candidate: Candidate
    sizes: Sizes = Sizes()
    speedup: float = 1.0
    complete: bool = True

    @property
    def is_default(self) -> bool:
        return self.speedup == 1 and self.sizes == Sizes()

    def __str__(self) -> str:
        faster = "the default" if self.speedup == 1 else f"{self.speedup:.2f} times as fast as the default"
        sizes = "".join(f", {name}={value}" for name, value in asdict(self.sizes).items() if value)
        return f"{self.candidate}, {faster}{sizes}"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The CPUs that a process may use. Fewer `cores` than `cpus`: two CPUs share a core.

    `saturates`: products of 8-bit numbers may saturate at 16 bits.
    """

    cpus: int
    cores: int
    saturates: bool = False


def ways(
    providers: Sequence[str], graphs: Sequence[str], *, openvino: Collection[str], bf16: bool, has_cache: bool
) -> list[Way]:
    """All ways to run graphs of these precisions on these providers.

    `openvino` are the precisions that OpenVINO knows. `bf16`: this CPU has instructions with which OpenVINO computes
    graphs in fp32 faster, in bf16. Graphs with a cache do not run on OpenVINO.
    """
    found: list[Way] = []
    for provider in providers:
        for graph in graphs:
            if provider != "openvino":
                found.append((provider, graph, graph))
            elif graph in openvino and not has_cache:
                found += [(provider, graph, "bf16")] if bf16 and graph == "fp32" else []
                found.append((provider, graph, graph))
    return found


def others(default: Candidate, ways: Sequence[Way], *, saturates: bool = False) -> list[Candidate]:
    """Candidates for the other ways, with the default's threads; see `Machine` for `saturates`."""
    found = []
    for provider, graph, precision in ways:
        found.append(replace(default, provider=provider, graph=graph, precision=precision))
        if saturates and provider == "cpu" and graph in EIGHT_BIT_PRODUCTS:
            found.append(replace(found[-1], options=(EXACT_PRODUCTS,)))
    return [each for each in dict.fromkeys(found) if each != default]


def thread_candidates(best: Candidate, machine: Machine, *, small: bool) -> list[Candidate]:
    """The same with fewer threads: one for each core, and for a small model (`small`) some numbers below."""
    counts = [machine.cores, *(FEW_THREADS if small else ())]
    return [replace(best, threads=count) for count in dict.fromkeys(counts) if count < best.threads]


def option_candidates(best: Candidate) -> list[Candidate]:
    """The same with one more option."""
    if best.provider != "cpu" or best.threads < MANY_THREADS or SHRINKING_BLOCKS in best.options:
        return []
    return [replace(best, options=(*best.options, SHRINKING_BLOCKS))]


def batch_stages(default: int, *, smallest: int) -> list[Callable[[int], list[int]]]:
    """Stages for the tokens of a batch: half of the default; then, if that is better, half of it again, else twice.

    A batch must be able to hold `smallest` tokens.
    """
    return [
        lambda best: [default // 2] if default // 2 >= smallest else [],
        lambda best: [2 * default] if best == default else [best // 2] if best // 2 >= smallest else [],
    ]


def chunk_stages(default: int, *, largest: int) -> list[Callable[[int], list[int]]]:
    """Stages for the tokens of a prompt between two steps: twice the best so far, two times."""

    def twice(best: int) -> list[int]:
        return [2 * best] if 2 * best <= largest else []

    return [twice, lambda best: twice(best) if best > default else []]


def is_possible(choice: Choice, ways: Sequence[Way], machine: Machine, *, threads: int) -> bool:
    """Whether a choice that was kept can be among the candidates. `threads` is the number that is set; 0: none is."""
    each = choice.candidate
    return (
        (each.provider, each.graph, each.precision) in ways
        and (each.threads == threads if threads else 1 <= each.threads <= machine.cpus)
        and set(each.options) <= set(OPTIONS.get(each.provider, ()))
    )
