"""The one way from a file to its span: read, brought to the size that the model's config asks for, laid out."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fourfold.errors import MediaError
from fourfold.media import spans
from fourfold.media.limits import Limits
from fourfold.media.sources import Kind, Source, name_of
from fourfold.media.spans import Span

if TYPE_CHECKING:
    from fourfold.parts import MediaInConfig
    from fourfold.text.tokenizer import Tokenizer

WINDOW = 30.0  # seconds of sound between one <|audio|> and its end; longer sound is several such spans


def as_span(kind: Kind, source: Source, tokenizer: "Tokenizer", config: "MediaInConfig | None", limits: Limits = Limits()) -> Span:
    """A file or its bytes as the model reads it: what chat, generate, data and server put into a sequence.

    `kind` is what it is meant to be; an animated picture given as an image is read as the clip that it is. Pillow, PyAV and
    soundfile are imported by the first call that needs them. Raises MediaError (see `read_image`, `read_clip`, `read_sound`),
    also when `config` is None: the model reads text only.
    """
    if kind not in _READERS:
        raise ValueError(f"{kind!r} is none of {', '.join(_READERS)}")
    if config is None:
        raise MediaError(f"{name_of(source, kind)}: this model reads text only; load one with media_in, such as nano-omni")
    return _READERS[kind](source, tokenizer, config, limits)


def _image(source: Source, tokenizer: "Tokenizer", config: "MediaInConfig", limits: Limits) -> Span:
    from fourfold.media.images import fit, is_animated, read_image

    if is_animated(source, limits):
        return _video(source, tokenizer, config, limits)
    pixels = fit(read_image(source, limits), config.image_longest, config.image_patch_size)
    return spans.picture(pixels, tokenizer, config.image_patch_size, config.clip_patch_frames)


def _video(source: Source, tokenizer: "Tokenizer", config: "MediaInConfig", limits: Limits) -> Span:
    from fourfold.media.video import read_clip

    patch, longest = config.image_patch_size, config.clip_longest
    clip = read_clip(source, config.clip_rate, most_frames=config.clip_frames, limits=limits, longest=longest, multiple=patch)
    return spans.clip(clip.frames, clip.seconds, tokenizer, patch, config.clip_patch_frames)


def _audio(source: Source, tokenizer: "Tokenizer", config: "MediaInConfig", limits: Limits) -> Span:
    from fourfold.media.audio import log_mel, read_sound, windows

    mels = [log_mel(stretch, config.audio_mel_bins) for stretch in windows(read_sound(source, limits), WINDOW)]
    return spans.join(spans.sound(mel, tokenizer, config.audio_frames_per_token) for mel in mels)


_READERS: dict[str, Callable[[Source, "Tokenizer", "MediaInConfig", Limits], Span]] = {
    "image": _image,
    "video": _video,
    "audio": _audio,
}
