"""Text generation, as both services use it."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from server.admission.queue import RequestContext
from server.observability.prometheus import TokenTimer
from server.rpc.parameters.sampling import GenerationOptions
from server.tasks.generate import Generate, Prompt
from server.tasks.text_stream import TextDelta


async def generate_deltas(
    generate: Generate,
    prompts: Sequence[Prompt],
    options: GenerationOptions,
    *,
    context: RequestContext,
    token_timer: TokenTimer,
    field: str,
    release: Callable[[], None],
) -> AsyncGenerator[tuple[int, TextDelta], None]:
    """Yield the number of a prompt and its new text, and count the tokens. `field` names the prompts in errors.

    `release` ends the use of the model. It is called when the engine has the prompts instead of at the end of the
    stream, because a slow reader must not delay the unloading of a model.
    """
    admitted = generate.stream(
        prompts,
        options.sampling,
        stop=options.stop,
        include_stop=options.include_stop,
        context=context,
        field=field,
    )
    async with admitted as stream, aclosing(stream.read()) as deltas:
        release()
        async for number, delta in deltas:
            token_timer.record(len(delta.token_ids), prompt=number)
            if delta.usage is not None:
                token_timer.usages.append(delta.usage)
            yield number, delta
