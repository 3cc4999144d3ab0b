"""Replies of a checkpoint to a fixed list of messages, greedy and drawn, none of them chosen afterwards.

python experiments/nano/samples.py [MODEL]
"""

import sys

import fourfold
from fourfold.engine.generate import generate
from fourfold.engine.sampler import Sampling
from fourfold.model.transformer import Transformer
from fourfold.text.chat import render

ASKED = (
    "Hello! How are you?",
    "What is the capital of France?",
    "What is a hamster?",
    "What kind of animal is a trout?",
    "How do I make pancakes?",
    "What language do people speak in Brazil?",
    "What is the opposite of hot?",
    "Who was Jane Austen?",
    "What is your name?",
    "Write a short poem about the sea.",
)
SUMS = ("What is 47 + 38?", "12 * 7", "Anna has 3 boxes with 8 apples each. She eats 5 apples. How many are left?")
TEXTS = ("It was a dark and", "The economy of the island", "def read_lines(path):\n")
LONGEST = 120  # tokens of a reply


def samples(model: Transformer) -> list[dict]:
    """`kind` (chat, thinking, text), `prompt`, and the reply `greedy` and `drawn` (temperature 0.7, top-p 0.95, seed 0)."""
    found = []
    for kind, prompts in (("chat", ASKED), ("thinking", SUMS), ("text", TEXTS)):
        for prompt in prompts:
            ids = _ids(model, kind, prompt)
            drawn = Sampling(temperature=0.7, top_p=0.95, seed=0, max_tokens=LONGEST)
            replies = {"greedy": Sampling(temperature=0, max_tokens=LONGEST), "drawn": drawn}
            found.append({"kind": kind, "prompt": prompt} | {name: _reply(model, ids, how) for name, how in replies.items()})
    return found


def _ids(model: Transformer, kind: str, prompt: str) -> list[int]:
    tokenizer = model.tokenizer
    if kind == "text":
        return [tokenizer.special("bos"), *tokenizer.encode(prompt)]
    return render([{"role": "user", "content": prompt}], tokenizer, thinking=kind == "thinking")


def _reply(model: Transformer, ids: list[int], sampling: Sampling) -> str:
    """The text, with the end of the thinking marked."""
    tokens = [token for piece in generate(model, ids, sampling, model.tokenizer) for token in piece.tokens]
    end = model.tokenizer.special("/think")
    parts = (tokens[: tokens.index(end)], tokens[tokens.index(end) + 1 :]) if end in tokens else (tokens,)
    return " => ".join(model.tokenizer.decode(part).strip() for part in parts)


def main() -> None:
    model = fourfold.load(*sys.argv[1:2] or ["nano"], dtype="float32")
    for sample in samples(model):
        print(f"[{sample['kind']}] {sample['prompt']}\n  greedy: {sample['greedy']}\n  drawn:  {sample['drawn']}\n")


if __name__ == "__main__":
    main()
