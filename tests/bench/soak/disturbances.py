"""What disturbs the server during a soak: reloads, clients that leave, die, stop or do not read, and bad input.

Each disturbance is repeated until its task is cancelled. What the server must do is checked here and counted.
"""

import asyncio
import itertools
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence

import grpc
import tritonclient.grpc.aio as triton

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from protos.affinity_pb2_grpc import AffinityStub
from server.client import ServedModel
from tests.bench.soak.calls import Stubs
from tests.bench.soak.traffic import EXPECTED, RIGHT, Tally
from tests.serving import ROOT

NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]  # a window of 64 KB
REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}
Disturb = Callable[[], Awaitable[None]]


def much(model: str) -> pb.GenerateRequest:
    """A generation whose responses no window of 64 KB holds."""
    prompts = [pb.Prompt(text=f"A list of {number} elements") for number in range(16)]
    return pb.GenerateRequest(model=model, prompts=prompts, max_tokens=48, logprobs=20, ignore_eos=True)


async def repeat(disturb: Disturb, kind: str, tally: Tally, *, pause_s: float) -> None:
    """Disturb, wait, and so on. Errors that the server may return under load are counted as such, others as faults."""
    while True:
        try:
            await disturb()
        except (grpc.aio.AioRpcError, triton.InferenceServerException) as error:
            status = error.code().name if isinstance(error, grpc.aio.AioRpcError) else str(error.status())
            outcome = EXPECTED.get(status.removeprefix("StatusCode."), "failed")
            tally.count(kind, outcome, f"{error}" if outcome == "failed" else "")
        except AssertionError as error:
            tally.count(kind, "failed", str(error))
        else:
            tally.count(kind, RIGHT)
        await asyncio.sleep(pause_s)


def reload(target: str, models: Sequence[ServedModel]) -> Disturb:
    """Unload and load one model after the other."""
    order = itertools.cycle([model.name for model in models])

    async def disturb() -> None:
        async with triton.InferenceServerClient(target) as client:
            name = next(order)
            await client.unload_model(name)
            await client.load_model(name)

    return disturb


def leave(stubs: Stubs, model: str) -> Disturb:
    """Cancel a generation after its first response."""

    async def disturb() -> None:
        call = stubs.typed.Generate(much(model))
        await call.read()
        call.cancel()

    return disturb


def read_late(target: str, model: str, seconds: float) -> Disturb:
    """Do not read a generation for some seconds, then read what is there: all of it, or the reason why not."""

    async def disturb() -> None:
        async with grpc.aio.insecure_channel(target, NARROW) as channel:
            call = AffinityStub(channel).Generate(much(model))
            await call.initial_metadata()
            await asyncio.sleep(seconds)
            try:
                async for _ in call:
                    pass
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED:
                    raise

    return disturb


def die(target: str, model: str, *, stop_s: float) -> Disturb:
    """Kill a process that reads a generation, every second time after it was stopped (SIGSTOP) for `stop_s` seconds."""
    stops = itertools.cycle((False, True))

    async def disturb() -> None:
        command = (sys.executable, "-m", "tests.bench.soak.reader", target, model)
        client = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        try:
            assert client.stdout is not None
            await client.stdout.readline()  # it has read a response, or its call has failed
            if next(stops):
                client.send_signal(signal.SIGSTOP)
                await asyncio.sleep(stop_s)
        finally:
            if client.returncode is None:
                client.kill()
            await client.wait()

    return disturb


def bad_input(stubs: Stubs, models: Sequence[ServedModel]) -> Disturb:
    """Send requests that must be refused, each with a status that says so."""
    by_task = {model.task: model.name for model in models}
    typed = stubs.typed
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: stubs.infer(oip.ModelInferRequest(model_name="no-such-model")),
        lambda: typed.Embed(pb.EmbedRequest(model=models[0].name)),
        lambda: typed.FillMask(pb.FillMaskRequest(model=by_task.get("fill-mask", ""), inputs=["no mask"])),
        lambda: typed.FillMask(pb.FillMaskRequest(model=by_task.get("fill-mask", ""), inputs=["[MASK] a" * 9000])),
        lambda: typed.ClassifyImage(
            pb.ClassifyImageRequest(model=by_task.get("classify-image", ""), images=[b"\x89PNG\r\n\x1a\n broken"])
        ),
        lambda: typed.Generate(
            pb.GenerateRequest(model=by_task.get("generate", ""), prompts=[pb.Prompt(text="A")], top_p=-1)
        ).read(),
    ]
    order = itertools.cycle(calls)

    async def disturb() -> None:
        try:
            await next(order)()
        except grpc.aio.AioRpcError as error:
            if error.code().name not in REFUSED:
                raise
        else:
            raise AssertionError("the server accepted bad input")

    return disturb
