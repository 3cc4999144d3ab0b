"""A prompt in, text and drawings out as they come: chunked prefill, cached decoding, stop strings, whole characters only."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fourfold.engine.canvas import Drawing
from fourfold.engine.request import Piece, Request
from fourfold.engine.sampler import Sampling
from fourfold.engine.sequence import PREFILL, Prompt, Sequence, span_of
from fourfold.engine.writer import Read, Writer, end_tokens
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer

__all__ = ["Drawing", "Piece", "Sampling", "end_tokens", "generate"]


def generate(
    model: Transformer,
    prompt: Prompt,
    sampling: Sampling,
    tokenizer: Tokenizer,
    sequence: Sequence | None = None,
    chunk: int = PREFILL,
    drawing: Drawing | None = None,
) -> Iterator[Piece]:
    """Continue a prompt (a Span, or token ids), a Piece for each token; the last piece has the finish reason.

    A prompt that ends in a drawing, as after `spans.draw_opening`, has it drawn first. `sequence` keeps its cache between calls: a
    prompt that begins like what it has seen is computed from there on. Raises ConfigError at once for an empty prompt, or one that
    leaves no room in the context or for its drawing.
    """
    writer = Writer(model, tokenizer, Request(prompt, sampling, drawing or Drawing()))
    return _alone(writer, Sequence(model) if sequence is None else sequence, chunk)


def _alone(writer: Writer, sequence: Sequence, chunk: int) -> Iterator[Piece]:
    """Drive one answer over one sequence, which is rewound to what it shares with the prompt."""
    steps, logits, first = writer.write(), None, True
    try:
        while True:
            item = next(steps) if logits is None else steps.send(logits)
            if isinstance(item, Piece):
                logits = None
                yield item
            else:
                logits = _heard(sequence, item, sequence.rewind(item.own) if first else item.own, chunk)
                first = False
    except StopIteration:
        return
    finally:
        sequence.end_twin()


@torch.inference_mode()
def _heard(sequence: Sequence, wish: Read, own: Prompt, chunk: int) -> Tensor:
    """Read what an answer wants read; the logits it wants."""
    if wish.twin is None:
        sequence.end_twin()
        hidden = sequence.read(own, chunk)
    else:
        hidden = sequence.read_beside(span_of(own, len(sequence)), wish.twin, chunk)
    return (sequence.model.code_logits if wish.codes else sequence.model.logits)(hidden)
