"""A small omni model with its codec, and real files for it to read."""

import wave
from pathlib import Path

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.media import spans
from fourfold.media.codec import Codec, CodecConfig
from fourfold.media.spans import Span
from fourfold.model.transformer import Transformer
from fourfold.presets import preset
from fourfold.text.tokenizer import Tokenizer
from tests.builders import scatter

CODES, TOGETHER = 60, 2  # frames of a clip that share their patches
PICTURE, CLIP = (3, 4), (3, 2, 2)  # the largest drawings of the model


def omni_config(tokenizer: Tokenizer) -> ModelConfig:
    """debug-omni with few codes, small drawings and a short context."""
    config = preset("debug-omni")
    return config.but(
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=256,
        initializer_range=0.1,
        memory=config.memory.but(engram_compressed_vocab_size=tokenizer.compression()[1]),
        media_in=config.media_in.but(image_longest=32, clip_longest=16, clip_frames=4, clip_patch_frames=TOGETHER),
        media_out=config.media_out.but(image_token_size=CODES, image_grid=PICTURE, film_grid=CLIP),
    )


def make_omni(tokenizer: Tokenizer) -> Transformer:
    """In evaluation mode with random weights; with its tokenizer and codec."""
    model = scatter(Transformer(omni_config(tokenizer), tokenizer.compression()[0]).init_weights(3), 3).eval()
    model.tokenizer = tokenizer
    object.__setattr__(model, "codec", make_codec())
    return model


def make_codec() -> Codec:
    config = CodecConfig(levels=(5, 4, 3), widths=(8, 8), encoder_blocks=1, decoder_blocks=1)
    return Codec(config).init_weights(5).eval()


def picture(seed: int, height: int = 16, width: int = 24) -> Tensor:
    """uint8 [3, height, width]."""
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def controls(tokenizer: Tokenizer, *names: str) -> Span:
    return spans.text([tokenizer.special(name) for name in names])


def asked(tokenizer: Tokenizer, *parts: Span | str) -> Span:
    """A prompt of ours: the parts in the user's turn, up to where the assistant begins."""
    said = [spans.text(tokenizer.encode(part)) if isinstance(part, str) else part for part in parts]
    return spans.join([controls(tokenizer, "bos", "user"), *said, controls(tokenizer, "end", "assistant")])


def a_picture(tokenizer: Tokenizer, seed: int = 0, height: int = 16, width: int = 24) -> Span:
    return spans.picture(picture(seed, height, width), tokenizer, 8, TOGETHER)


def a_clip(tokenizer: Tokenizer, seed: int = 0) -> Span:
    frames = torch.stack([picture(seed + i, 16, 8) for i in range(3)])
    return spans.clip(frames, [0.0, 0.2, 0.5], tokenizer, 8, TOGETHER)


def a_sound(tokenizer: Tokenizer, seed: int = 0, frames: int = 45) -> Span:
    mel = torch.randn(frames, 80, generator=torch.Generator().manual_seed(seed))
    return spans.sound(mel, tokenizer, 8)


def write_tone(path: Path, seconds: float = 0.4, rate: int = 8000) -> Path:
    """A real WAV file."""
    samples = (torch.sin(torch.arange(int(seconds * rate)) * 0.3) * 12000).to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.numpy().tobytes())
    return path
