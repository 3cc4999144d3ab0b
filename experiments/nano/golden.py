"""Golden logits of a checkpoint, for whoever runs it with other code: golden.json into the checkpoint's folder.

python experiments/nano/golden.py [MODEL]
"""

import argparse

import fourfold
from fourfold.data.corpus import Corpus
from fourfold.evals.golden import write_golden
from fourfold.formats import locate
from fourfold.text.chat import render
from fourfold.text.tokenizer import Tokenizer

LONG = 400  # tokens, of which an indexer has to choose


def prompts(tokenizer: Tokenizer) -> dict[str, list[int]]:
    """A short text, a chat, a chat with thinking, and the start of a held-out novel."""
    bos, encode = tokenizer.special("bos"), tokenizer.encode
    novel = next(d.text for d in Corpus.open("tiny-text").documents("held_out") if d.source == "novels")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    return {
        "text": [bos, *encode("It was a dark and stormy night, and the rain fell in torrents.")],
        "chat": render([{"role": "system", "content": "Answer briefly."}, *question], tokenizer),
        "thinking": render([{"role": "user", "content": "what is 38 plus 22"}], tokenizer, thinking=True),
        "long": [bos, *encode(novel[: 8 * LONG])][:LONG],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="nano")
    name = parser.parse_args().model
    model = fourfold.load(name, dtype="float32")
    print(write_golden(model, locate(name), prompts(model.tokenizer)))


if __name__ == "__main__":
    main()
