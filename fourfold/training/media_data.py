"""The sources of a mix that are pictures, clips, speech and sounds, and the codec that makes codes of what is drawn.

A source is called CORPUS:SOURCES or CORPUS:SOURCES:TASK, as in `tiny-omni:fashion:draw`, `tiny-omni:fluent+noto` and
`tiny-omni:speech` (sources of a corpus or kinds of them; the tasks are those of data/omni_documents.py).
"""

from typing import TYPE_CHECKING

from fourfold import paths
from fourfold.config import ModelConfig
from fourfold.data.mixing import MixedRows
from fourfold.errors import CheckpointError, ConfigError, DataError
from fourfold.media.codec import Codec
from fourfold.text.tokenizer import Tokenizer
from fourfold.training.recipes import Recipe

if TYPE_CHECKING:  # what decodes media is imported only where there are any
    from fourfold.data.omni_documents import Documents
    from fourfold.data.omni_rows import OmniRows
    from fourfold.data.shelf import Shelf


def is_media(source: str) -> bool:
    return ":" in source


class MediaSources:
    """Opens what a recipe names. `checksums`: of the files of its corpora of media and of its codec; both empty for text alone.

    Raises ConfigError where the model reads no media, CheckpointError without a codec, DataError for an unknown source or task.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer):
        self.recipe, self.tokenizer = recipe, tokenizer
        self.names = sorted({n for s in recipe.stages if s.tokens for n in recipe.sources(s) if is_media(n)})
        config = recipe.model_config()
        if self.names and config.media_in is None:
            raise ConfigError(f"mix: {self.names[0]} is no text, and {recipe.preset} reads text only; choose preset nano-omni")
        self.codec = Codec.load(recipe.media.codec) if config.media_out else None
        self.config = self.fit(config)
        self.checksums: dict[str, str] = {}
        if self.codec is not None:
            self.checksums["codec"] = _codec_checksum(recipe.media.codec)
        self._shelves: dict[tuple[str, str], Shelf] = {}
        self._documents: dict[tuple[str, str], Documents] = {}
        for name in self.names:
            files = self._shelf(name.split(":")[0], "train").corpus.corpus.checksums
            self.checksums |= {f"{name.split(':')[0]}/{file}": checksum for file, checksum in files.items()}

    def fit(self, config: ModelConfig) -> ModelConfig:
        """The config with the codec's number of codes and size of a code."""
        if self.codec is None or config.media_out is None:
            return config
        sizes = {"image_token_size": self.codec.codes, "code_downsample": self.codec.config.downsample}
        return config.but(media_out=config.media_out.but(**sizes))

    def rows(self, name: str, length: int, split: str = "train") -> "OmniRows":
        from fourfold.data.omni_documents import Documents
        from fourfold.data.omni_rows import OmniRows

        corpus, sources, task = (*name.split(":", 2), "")[:3]
        shelf = self._shelf(corpus, split)
        if (name, split) not in self._documents:
            self._documents[name, split] = Documents(shelf, sources, task)
        called = f"{shelf.corpus.corpus.name}:{sources}:{task}"  # wherever the corpus lies
        return OmniRows(self._documents[name, split], length, f"{called}/{split}/{self.recipe.seed}")

    def held_out(self, length: int) -> MixedRows | None:
        """Rows of every source of the recipe that has held-out items, as many of each."""
        found = {}
        for name in self.names:
            try:
                found[name] = self.rows(name, length, "held_out")
            except DataError:  # a source may have none
                continue
        return MixedRows(found, dict.fromkeys(found, 1.0)) if found else None

    def _shelf(self, corpus: str, split: str) -> "Shelf":
        from fourfold.data.omni import OmniCorpus
        from fourfold.data.shelf import Codes, Shelf

        if (corpus, split) not in self._shelves:
            opened, every = OmniCorpus.open(corpus), self.recipe.document_stride
            codes = None
            if self.codec is not None:
                codes = Codes(opened, split, self.codec, self.checksums["codec"], self.config.media_out, every)
            self._shelves[corpus, split] = Shelf(opened, split, self.tokenizer, self.config.media_in, codes, every)
        return self._shelves[corpus, split]


def _codec_checksum(name_or_folder: str) -> str:
    from fourfold.data.shelf import checksum_of

    folder = paths.find("models", name_or_folder)
    if folder is None:
        raise CheckpointError(f"media.codec: {name_or_folder} is not there; train one with `fourfold train codec`")
    return checksum_of(folder)
