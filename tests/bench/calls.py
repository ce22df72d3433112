"""`python -m tests.bench.calls`: what a call costs, beside a bare gRPC server that answers with a recorded response.

The bundled models are so small that little is left but the cost of calls. Each caller is a connection with one call in
flight; all callers are one thread of this process, which needs a fraction of the CPU time of any server. The bare
server parses the same requests and sends responses of the same bytes. The engine alone is our tasks, batcher and
session, called in a process of their own. The rate of its session counts only the time in which batches run: no server
of this model can be faster. Beside calls per second, the table has the CPU time of the server for each call, which
depends less on other processes.
"""

import argparse
import base64
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import grpc

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from server.rpc.services import OPEN_INFERENCE, TYPED
from tests.bench import options
from tests.bench.callers import closed_loop
from tests.bench.goals import AFFINITY, ECHO
from tests.bench.inputs import masked_texts
from tests.bench.measure import Result, Side, Target, in_rounds, machine, table, verdicts, write
from tests.bench.processes import OURS, TRITON, Missing, cpu_seconds, peer
from tests.bench.sizing import export_bundled
from tests.serving import ROOT, served

PRETRAINED = ROOT / "models" / "pretrained"
BERT, VIT = "bert-mini", "vit-digits"
ENGINE, CORE = "engine alone", "Triton core, identity"
SESSION = "session of the engine alone"
EVERY_PEER = (ECHO, ENGINE, CORE)
FILL_MASK, INFER, IMAGE = "FillMask", "ModelInfer", "ClassifyImage"
CALLERS = (1, 16, 64)
TOKENS, TEXTS = 8, 16
SECONDS = {"published": 2.0, "tiny": 0.05}  # of a side in each round
JUDGED_CALLERS, LEAST_RATIO = 16, 0.5

Run = Callable[[int], tuple[int, float]]  # the number of callers → the calls that were answered, and seconds


@dataclass(frozen=True)
class Call:
    """A kind of call: the requests that callers send in turn, and the same inputs for the engine alone."""

    name: str
    path: str
    model: str
    messages: Sequence[bytes]
    inputs: Sequence[str]  # texts, or image files in base64


@dataclass(frozen=True)
class Party:
    """One of the servers that are compared. It takes part in those calls that it has a run for."""

    name: str
    pid: int | None  # of the process that does the work, if its CPU time is of interest
    runs: dict[str, Run]  # by name of the call


def calls() -> list[Call]:
    """All kinds of calls, each with one text or image."""
    texts = [each.text for each in masked_texts(PRETRAINED / BERT, [TOKENS] * TEXTS)]
    image = (PRETRAINED / VIT / "example.png").read_bytes()
    typed = [pb.FillMaskRequest(model=BERT, inputs=[text]) for text in texts]
    tensors = [tensor_request(text) for text in texts]
    images = [pb.ClassifyImageRequest(model=VIT, images=[image])]
    return [
        Call(FILL_MASK, f"/{TYPED}/FillMask", BERT, [each.SerializeToString() for each in typed], texts),
        Call(INFER, f"/{OPEN_INFERENCE}/ModelInfer", BERT, [each.SerializeToString() for each in tensors], texts),
        Call(
            IMAGE,
            f"/{TYPED}/ClassifyImage",
            VIT,
            [each.SerializeToString() for each in images],
            [base64.b64encode(image).decode()],
        ),
    ]


def tensor_request(text: str) -> oip.ModelInferRequest:
    """A text as clients of the Open Inference Protocol send it."""
    request, raw = oip.ModelInferRequest(model_name=BERT), text.encode()
    request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(raw)) + raw)
    return request


# ---- the servers


def over_grpc(port: int, wanted: Sequence[Call], seconds: float) -> dict[str, Run]:
    def run(call: Call, callers: int) -> tuple[int, float]:
        return closed_loop(("127.0.0.1", port), call.path, call.messages, callers=callers, seconds=seconds)

    return {call.name: partial(run, call) for call in wanted}


def echo(stack: ExitStack, recorded_from: int, wanted: Sequence[Call], seconds: float) -> list[Party]:
    """A bare server, with a response of the server at the port `recorded_from` to each kind of call."""
    running = stack.enter_context(peer(OURS, "echo"))
    with grpc.insecure_channel(f"127.0.0.1:{recorded_from}") as channel:
        for call in wanted:
            response: bytes = channel.unary_unary(call.path)(call.messages[0], timeout=60)
            running.ask(method=call.path, response=base64.b64encode(response).decode())
    return [Party(ECHO, running.pid, over_grpc(running.ask()["port"], wanted, seconds))]


def engine(stack: ExitStack, artifacts: Path, wanted: Sequence[Call], seconds: float) -> list[Party]:
    """Our tasks without gRPC, and their session. They answer ModelInfer as they answer FillMask."""
    running = stack.enter_context(peer(OURS, "own_tasks", artifacts, "0"))

    def run(call: Call, duration: str, callers: int) -> tuple[int, float]:
        found = running.ask(model=call.model, inputs=call.inputs, callers=callers, seconds=seconds)
        return found["answered"], found[duration]

    return [
        Party(ENGINE, running.pid, {call.name: partial(run, call, "seconds") for call in wanted}),
        Party(SESSION, None, {call.name: partial(run, call, "session_seconds") for call in wanted}),
    ]


def triton_core(stack: ExitStack, wanted: Sequence[Call], seconds: float) -> list[Party]:
    """The Triton core with a model of its Python backend that returns its input, for calls of its protocol."""
    running = stack.enter_context(peer(TRITON, "triton_identity", BERT))
    spoken = [call for call in wanted if call.path.startswith(f"/{OPEN_INFERENCE}/")]
    return [Party(CORE, running.pid, over_grpc(running.ask()["port"], spoken, seconds))]


# ---- measuring


class Measurements:
    """Compares the parties, a kind of call and a number of callers at a time."""

    def __init__(self, parties: Sequence[Party], rounds: int) -> None:
        self._parties, self._rounds = parties, rounds

    def of(self, call: Call, callers: int) -> list[Result]:
        """The results of all parties that take part, with the CPU time of a call as a note."""
        workload = workload_name(call.name, callers)
        taking_part = [party for party in self._parties if call.name in party.runs]
        spent: dict[str, list[float]] = {party.name: [] for party in taking_part}

        def side(party: Party) -> Side:
            def rate() -> float:
                before = cpu_seconds(party.pid) if party.pid else 0.0
                answered, seconds = party.runs[call.name](callers)
                if party.pid:
                    spent[party.name].append((cpu_seconds(party.pid) - before) / max(answered, 1))
                print(f"  {workload}: {party.name}: {answered / seconds:,.0f} per second", flush=True)
                return answered / seconds

            return Side(party.name, rate)

        results = in_rounds(workload, [side(party) for party in taking_part], self._rounds)
        return [
            replace(each, note=f"{median(spent[each.side][1:]) * 1e3:.3f} ms of CPU a call")  # without the warm-up
            if spent[each.side]
            else each
            for each in results
        ]


def workload_name(call: str, callers: int) -> str:
    return f"{call}, {callers} caller{'s' * (callers > 1)}"


def opened(
    stack: ExitStack, artifacts: Path, wanted: Sequence[Call], given: argparse.Namespace
) -> tuple[list[Party], list[Result]]:
    """The parties that run here, and a result with the reason for each that does not."""
    seconds = given.seconds or SECONDS[given.sizes]
    server = stack.enter_context(served(artifacts, "--threads", "0"))
    parties = [Party(AFFINITY, server.process.pid, over_grpc(server.port, wanted, seconds))]
    openers: dict[str, Callable[[], list[Party]]] = {
        ECHO: lambda: echo(stack, server.port, wanted, seconds),
        ENGINE: lambda: engine(stack, artifacts, wanted, seconds),
        CORE: lambda: triton_core(stack, wanted, seconds),
    }
    skipped = []
    for name in given.peers:
        print(f"opening {name} …", flush=True)
        try:
            parties += openers[name]()
        except Missing as reason:
            skipped.append(Result(INFER, name, note=f"skipped: {reason}"))
    return parties, skipped


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options.parser("calls", __doc__)
    options.add_sizes(parser, SECONDS)
    options.add_choice(parser, "--workloads", (FILL_MASK, INFER, IMAGE))
    parser.add_argument("--callers", type=int, nargs="+", default=CALLERS, help="(1 16 64)")
    options.add_choice(parser, "--peers", EVERY_PEER)
    options.add_rounds(parser, 5)
    parser.add_argument("--seconds", type=float, help="of each side in a round (2)")
    options.add_folder(parser)
    options.add_output(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    with ExitStack() as stack:
        artifacts = export_bundled(stack.enter_context(options.folder_of(given)), [BERT, VIT])
        wanted = [call for call in calls() if call.name in given.workloads]
        parties, results = opened(stack, artifacts, wanted, given)
        measurements = Measurements(parties, given.rounds)
        for call in wanted:
            for callers in given.callers:
                results += measurements.of(call, callers)
    judged = [workload_name(name, JUDGED_CALLERS) for name in (FILL_MASK, INFER) if name in given.workloads]
    print(f"\n{machine()}; {given.rounds} rounds\n")
    print(table(results, "calls per second"), end="\n\n")
    print(verdicts(results, [Target(workload, AFFINITY, ECHO, LEAST_RATIO) for workload in judged]))
    if given.output:
        write(given.output, results)


if __name__ == "__main__":
    main()
