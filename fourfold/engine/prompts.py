"""Messages with media as a prompt of one model, and what it drew as something to look at."""

from typing import Any

from torch import Tensor

from fourfold.media import spans
from fourfold.media.limits import Limits
from fourfold.media.reading import as_span
from fourfold.media.spans import FILM_RATE, Span
from fourfold.model.transformer import Transformer
from fourfold.text.chats import ChatFormat, choose


def prompt_of(
    model: Transformer,
    messages: list[dict[str, Any]],
    chat: ChatFormat | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> tuple[Span, bool]:
    """Messages (text/content.py) as a prompt, and whether it ends in open thoughts; `options` are those of `ChatFormat.render`.

    Raises DataError for a message that is none, MediaError for a file that cannot be read, or by a model of text only.
    """
    chat = chat or choose(model.tokenizer)
    return chat.span(model.tokenizer, messages, lambda kind, source: shown(model, kind, source, limits), **options)


def shown(model: Transformer, kind: Any, source: Any, limits: Limits | None = None) -> Span:
    """An image, a video or audio as the model reads it. Raises MediaError."""
    return as_span(kind, source, model.tokenizer, model.config.media_in, limits or Limits())


def reread(model: Transformer, pixels: Tensor) -> Span:
    """What was drawn, uint8 [frames, 3, H, W], as a picture or clip to read: patches, where the drawing itself is codes."""
    from fourfold.media.images import fit

    sizes = model.config.media_in
    assert sizes is not None, "this model reads no pictures"
    patch, together = sizes.image_patch_size, sizes.clip_patch_frames
    if len(pixels) == 1:
        return spans.picture(fit(pixels[0], sizes.image_longest, patch), model.tokenizer, patch, together)
    step = max(-(-len(pixels) // sizes.clip_frames), round(FILM_RATE / sizes.clip_rate), 1)
    seconds = [place / FILM_RATE for place in range(0, len(pixels), step)]
    return spans.clip(fit(pixels[::step], sizes.clip_longest, patch), seconds, model.tokenizer, patch, together)
