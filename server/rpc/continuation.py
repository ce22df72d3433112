"""The continuation of one prompt, as both doors get it: counted piece by piece, and closed with its reader."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from server.admission import Call
from server.metrics import Tokens
from server.repository import Model
from server.rpc.sampling import Continuation
from server.tasks.generate import Piece


async def continue_text(
    model: Model,
    prompt: str | Sequence[int],
    how: Continuation,
    *,
    call: Call,
    tokens: Tokens,
    number: int = 0,
    field: str,
) -> AsyncGenerator[Piece, None]:
    """Pieces of text as they come. `number` is the prompt's in the request, `field` what the caller knows it as."""
    stream = model.task.stream(
        prompt, how.sampling, stop=how.stop, include_stop=how.include_stop, call=call, field=field
    )
    async with aclosing(stream) as pieces:
        async for piece in pieces:
            tokens.came(len(piece.token_ids), prompt=number)
            if piece.usage is not None:
                tokens.usages.append(piece.usage)
            yield piece
