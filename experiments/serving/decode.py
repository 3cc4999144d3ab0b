"""Tokens per second of greedy decoding, of one sequence and of eight. Writes decode.json.

pip install gguf transformers     # for SmolLM2, see experiments/nano/smollm2.py
python experiments/serving/decode.py [--rounds 5] [--tokens 48]

nano-omni and SmolLM2-135M-Instruct through the engine, in fp32 and with INT8 weights, and the weights of the latter through
transformers' generate, in fp32 and in bf16, the format in which they are published: the same prompts, as many new tokens and
threads, and a rate counts the tokens after the first. All arms take turns, and medians count. A sample during which others used the
processor is taken again, at most as often as there are rounds. What is said is compared with what the first arm says.

Then a server decodes for one client that streams, a token at a time and, where the model drafts, with drafts, beside a bare loop of
the same model on the same core: the client has another core where there is one.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import torch

import fourfold
from experiments.lib.machine import ForeignWatch, describe
from experiments.lib.timing import FOREIGN
from experiments.nano.smollm2 import ABOUT, SmolLM2
from experiments.serving.load import server
from fourfold.data.corpus import Corpus
from fourfold.engine.canvas import Drawing
from fourfold.engine.engine import Engine
from fourfold.engine.prompts import prompt_of
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.files import atomic_file
from fourfold.model.transformer import Transformer

SEED, PROMPT = 0, 64  # greedy decoding draws nothing; tokens of each prompt
BATCHES = (1, 8)
CHAT = [{"role": "user", "content": "Tell me about France."}]
Said = tuple[float, list[list[int]]]  # tokens per second after the first one, and the new tokens of each sequence
Arm = Callable[[list[list[int]], int], Said]


def packed(name: str | Path) -> Transformer:
    """A model with INT8 weights, and all else in fp32."""
    return fourfold.load(name, dtype="float32", weights="int8")


def prompts_of(model: Transformer) -> list[list[int]]:
    """Stretches of the held-out novels, as many as the largest batch."""
    text = next(d.text for d in Corpus.open("tiny-text").documents("held_out") if d.source == "novels")
    ids = model.tokenizer.encode(text[:100_000])
    return [ids[i * 1000 : i * 1000 + PROMPT] for i in range(max(BATCHES))]


def engine_arm(model: Transformer) -> Arm:
    """Our engine, by its default settings."""
    engine = Engine(model, threaded=False)

    def decode(prompts: list[list[int]], count: int) -> Said:
        sampling = Sampling(temperature=0, max_tokens=count)
        streams = [engine.submit(Request(prompt, sampling, Drawing(begin=False))) for prompt in prompts]
        while any(stream.usage.first_token_seconds is None for stream in streams):
            engine.step()
        made, began = sum(stream.usage.completion_tokens for stream in streams), time.perf_counter()
        while engine.step():
            pass
        seconds = time.perf_counter() - began
        tokens = [stream.answer().tokens for stream in streams]
        if any(len(own) < count for own in tokens):
            raise SystemExit("an answer ended early; choose fewer --tokens")
        return (len(prompts) * count - made) / seconds, tokens

    return decode


def generate_arm(model: torch.nn.Module) -> Arm:
    """transformers' generate."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Clock(StoppingCriteria):
        """Notes when each token came, and stops nothing."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
            self.times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def decode(prompts: list[list[int]], count: int) -> Said:
        ids, clock = torch.tensor(prompts), Clock()
        asked = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        mask, criteria = torch.ones_like(ids), StoppingCriteriaList([clock])
        out = model.generate(ids, attention_mask=mask, stopping_criteria=criteria, **asked)
        return len(prompts) * (count - 1) / (clock.times[-1] - clock.times[0]), out[:, PROMPT:].tolist()

    return decode


class Samples:
    """Rates of one arm, and what it said last; `helper` is a process whose work is the arm's own."""

    def __init__(self, helper: int | None = None) -> None:
        self.helper = helper
        self.clean: list[float] = []
        self.dropped: list[float] = []
        self.said: list[list[int]] = []

    def take(self, measure: Callable[[], Said]) -> None:
        watch = ForeignWatch(self.helper)
        watch.start()
        rate, self.said = measure()
        foreign = watch.stop()
        (self.clean if foreign is None or foreign <= FOREIGN else self.dropped).append(rate)

    @property
    def median(self) -> float:
        return statistics.median(self.clean or self.dropped)

    def summary(self) -> dict:
        """The median; of the dropped samples too where none was clean."""
        kept = self.clean or self.dropped
        edges = [round(min(kept), 2), round(max(kept), 2)]
        return {
            "tokens_per_second": round(self.median, 2),
            "range": edges,
            "samples": len(self.clean),
            "dropped": len(self.dropped),
        }


def rounds_of(samples: dict[str, Samples], measures: dict[str, Callable[[], Said]], rounds: int) -> None:
    """All arms in turn, until each has as many clean samples as there are rounds, or twice as many rounds are over."""
    for measure in measures.values():  # what is built at the first use
        measure()
    for turn in range(2 * rounds):
        wanting = [name for name in measures if len(samples[name].clean) < rounds and turn < 2 * rounds]
        for name in wanting:
            samples[name].take(measures[name])
        if not wanting or (turn + 1 >= rounds and all(not samples[name].clean for name in wanting)):
            break
    for name, own in samples.items():
        print(f"{name}: {own.median:.2f} tokens/s", flush=True)


def agreement(said: list[list[int]], wanted: list[list[int]]) -> dict:
    """How many of the sequences are the same, and the tokens up to the first that differs, as a mean."""
    pairs = list(zip(said, wanted, strict=True))
    shared = [next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), len(pair[1])) for pair in pairs]
    return {"same": sum(a == b for a, b in pairs), "of": len(pairs), "tokens_shared": round(statistics.mean(shared), 1)}


def batches(arms: dict[str, Arm], prompts: list[list[int]], options: argparse.Namespace) -> dict:
    """Every arm at every size of batch, compared with the first one."""
    reference = next(iter(arms))

    def measure(arm: Arm, size: int) -> Said:
        torch.set_num_threads(options.threads)
        return arm(prompts[:size], options.tokens)

    found: dict[str, dict] = {name: {} for name in arms}
    for size in BATCHES:
        samples = {name: Samples() for name in arms}
        print(f"batch {size}", flush=True)
        rounds_of(samples, {name: partial(measure, arm, size) for name, arm in arms.items()}, options.rounds)
        for name, own in samples.items():
            row = own.summary()
            if name != reference:
                row["times_the_first"] = round(own.median / samples[reference].median, 2)
                row["agreement"] = agreement(own.said, samples[reference].said)
            found[name][f"batch {size}"] = row
    return found


def never(model: Transformer) -> dict[int, int]:
    """A bias that no answer ends with, and that keeps it to words."""
    return dict.fromkeys(sorted(model.tokenizer.special_ids), -100)


@torch.inference_mode()
def bare(model: Transformer, prompt: list[int], count: int) -> Said:
    """The model alone, a token at a time."""
    bias = torch.zeros(model.config.vocab_size).index_fill(0, torch.tensor(list(never(model))), -100.0)
    cache = model.new_cache(1)
    token, tokens = (model(torch.tensor([prompt]), cache=cache).logits[0, -1] + bias).argmax(), list[int]()
    began = time.perf_counter()
    for _ in range(count - 1):
        tokens.append(int(token))
        token = (model(token.view(1, 1), cache=cache).logits[0, -1] + bias).argmax()
    tokens.append(int(token))
    return (count - 1) / (time.perf_counter() - began), [tokens]


def streamed(url: str, name: str, bias: dict[int, int], count: int) -> tuple[float, str]:
    """Tokens per second after the first one as a client sees them come, and the text."""
    body = {"model": name, "messages": CHAT, "temperature": 0, "max_tokens": count, "logit_bias": bias, "stream": True}
    body |= {"thinking": {"type": "disabled"}, "stream_options": {"include_usage": True}}
    text, first, last, made = "", None, 0.0, 0
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300, trust_env=False) as got:
        for line in got.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk, now = json.loads(line[6:]), time.perf_counter()
            if "error" in chunk:
                raise SystemExit(f"server: {chunk['error']}")
            for choice in chunk["choices"]:
                if said := choice["delta"].get("content"):
                    text, first, last = text + said, first or now, now
            made = chunk["usage"]["completion_tokens"] if chunk.get("usage") else made
    return (made - 1) / (last - first), text


def served(name: str, model: Transformer, options: argparse.Namespace) -> dict:
    """Servers and their client in turn with a bare loop of the same model, one thread on one core each."""
    cores = sorted(os.sched_getaffinity(0))
    prompt, texts, count = prompt_of(model, CHAT, thinking=False)[0].tokens.tolist(), dict[str, str](), 4 * options.tokens
    settings = {"server": "drafts = 0"} | ({"server, drafting": ""} if len(model.mtp) else {})

    def loop() -> Said:
        os.sched_setaffinity(0, {cores[-1]})
        torch.set_num_threads(1)
        return bare(model, prompt, count)

    def client(arm: str, url: str) -> Said:
        os.sched_setaffinity(0, {cores[0]})
        rate, texts[arm] = streamed(url, Path(name).stem, never(model), count)
        return rate, []

    print(f"server of {Path(name).stem}", flush=True)
    os.sched_setaffinity(0, {cores[-1]})  # what is started from here inherits it
    try:
        with ExitStack() as stack:
            samples, measures = {"bare loop": Samples()}, {"bare loop": loop}
            for arm, line in settings.items():
                file = Path(stack.enter_context(TemporaryDirectory())) / "settings.toml"
                file.write_text(line + "\n", "utf-8")
                url, process = stack.enter_context(server(name, "--config", str(file)))
                samples[arm], measures[arm] = Samples(process), partial(client, arm, url)
            rounds_of(samples, measures, options.rounds)
    finally:
        os.sched_setaffinity(0, cores)
    alone, bare_rate = model.tokenizer.decode(samples["bare loop"].said[0]), samples["bare loop"].median
    rows: dict = {arm: own.summary() for arm, own in samples.items()}
    for arm, text in texts.items():
        pairs = list(zip(alone, text.rstrip(), strict=False))
        shared = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
        rows[arm] |= {"share_of_bare": round(samples[arm].median / bare_rate, 3), "same_letters": shared, "of": len(pairs)}
    return rows | {"client_pinned_apart": len(cores) > 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="new ones in each answer; four times as many of the server")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = describe() | {"seed": SEED, "rounds": options.rounds, "prompt_tokens": PROMPT, "new_tokens": options.tokens}
    omni, smollm2 = fourfold.load("nano-omni", dtype="float32"), SmolLM2()
    theirs, ours = smollm2.model, fourfold.load(smollm2.file, dtype="float32")
    print("nano-omni", flush=True)
    arms = {"fourfold float32": engine_arm(omni), "fourfold int8": engine_arm(packed("nano-omni"))}
    told: dict = about | {"nano-omni": batches(arms, prompts_of(omni), options)}
    print(ABOUT, flush=True)
    arms = {
        "transformers float32": generate_arm(theirs),
        "transformers bfloat16": generate_arm(copy.deepcopy(theirs).to(torch.bfloat16)),
        "fourfold float32": engine_arm(ours),
        "fourfold int8": engine_arm(packed(smollm2.file)),
    }
    told |= {"SmolLM2": {"weights": ABOUT} | batches(arms, prompts_of(ours), options)}
    told |= {"server": {n: served(n, m, options) for n, m in (("nano-omni", omni), (str(smollm2.file), ours))}}
    with atomic_file(options.out) as path:
        path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
