"""How much of a picture, clip or sound is taken in before it is refused."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Settings of all that reads media. What goes beyond one is a MediaError that names the file and this setting.

    Sizes are taken from the header where there is one, before anything is decoded; what a header cannot be trusted to say (lengths)
    is counted again while decoding, which stops at the limit. Pillow by itself refuses more than 179M pixels, whatever is set here.
    """

    bytes: int = 2**30  # of the file
    pixels: int = 50_000_000  # of a picture, or of one frame of a clip
    clip_pixels: int = 200_000_000  # of all frames of a clip that are kept, 3 bytes each
    seconds: float = 600.0  # of sound, or of a clip from where reading it starts
    frames: int = 50_000  # of a clip that are decoded to choose from

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name)!r}; a limit must be above 0")
