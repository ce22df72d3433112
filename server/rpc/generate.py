"""The continuations of one request, as both doors get them: counted as they are read, and ended with their reader."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from server.admission.queue import RequestContext
from server.observability.prometheus import Tokens
from server.rpc.sampling_params import Continuation
from server.tasks.generate import Generate, Prompt
from server.tasks.text_stream import TextDelta


async def continue_texts(
    generate: Generate,
    prompts: Sequence[Prompt],
    how: Continuation,
    *,
    call: RequestContext,
    tokens: Tokens,
    field: str,
    release: Callable[[], None],
) -> AsyncGenerator[tuple[int, TextDelta], None]:
    """Pieces of text as they come, each with the number of its prompt. `field` is what the caller knows these as.

    `release` ends the use of the model. It is called when the engine has the prompts, and not when the last piece is
    read: a slow reader must not hold up the unloading of a model.
    """
    admitted = generate.stream(
        prompts, how.sampling, stop=how.stop, include_stop=how.include_stop, call=call, field=field
    )
    async with admitted as continued, aclosing(continued.read()) as pieces:
        release()
        async for number, piece in pieces:
            tokens.came(len(piece.token_ids), prompt=number)
            if piece.usage is not None:
                tokens.usages.append(piece.usage)
            yield number, piece
