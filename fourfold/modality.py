"""What may stand at a place of a sequence: words, patches of what is read, codes of what is drawn."""

from enum import IntEnum


class Modality(IntEnum):
    """The kind of one token. Only TEXT is from the vocabulary; the control tokens inside a span of media are TEXT too."""

    TEXT = 0
    IMAGE = 1  # a patch of a picture
    VIDEO = 2  # a patch of a frame of a clip
    AUDIO = 3  # a stretch of log-mel frames
    DRAWN = 4  # a code of a picture that is drawn
    FILMED = 5  # a code of a clip that is drawn

    @property
    def is_code(self) -> bool:
        """The token is a code of the picture codec, with a table and a head of its own."""
        return self in CODES


READ = (Modality.IMAGE, Modality.VIDEO, Modality.AUDIO)  # a vector made of a patch stands here, in place of a token
CODES = (Modality.DRAWN, Modality.FILMED)
