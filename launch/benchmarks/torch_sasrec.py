"""SASRec in PyTorch, compiled by `torch.compile`: what `--suite=torch` compares our steps with.

It is written from the equations of the paper (Kang and McAuley 2018), with heads. M is the item
table, P the positions; Q, K and V are linear maps of LN(x), and an event sees no later one:

    x = dropout(M[ids] + P)
    x = x + dropout(W_o heads(softmax(Q K^T / sqrt(d)) V))
    x = x + dropout(W_2 dropout(relu(W_1 LN(x))))
    score(v) = LN(x) . M[v]

The loss is not the paper's binary cross-entropy but that of the rows beside it: softmax over all items,
or over the target and uniform negatives of each position. Optimiser, dropout and clipping are as there.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from launch.benchmarks import settings
from launch.benchmarks.case import Work
from rec2pm_jax.config import Config, ModelConfig
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.training.optimizer import BETAS

_WARM_UP = 5  # steps: the first ones compile, and record CUDA graphs


class Layer(nn.Module):
    """One layer: attention, then the feed-forward part, each on top of its input."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.rate = config.heads, config.dropout
        self.attention_norm, self.ffn_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.ffn_in = nn.Linear(config.dim, config.ffn_dim or config.dim)
        self.ffn_out = nn.Linear(config.ffn_dim or config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [B, N, D] of tokens [B, N, D]."""
        rate = self.rate if self.training else 0.0
        parts = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each [B, H, N, d]
        a = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + functional.dropout(self.out(a.transpose(1, 2).flatten(2)), rate)
        f = functional.dropout(functional.relu(self.ffn_in(self.ffn_norm(x))), rate)
        return x + functional.dropout(self.ffn_out(f), rate)


class SASRec(nn.Module):
    """The model with its loss.

    Attributes:
      table: [items + 1, D], of inputs and of scores; row 0 is padding.
    """

    def __init__(self, config: Config, items: int):
        super().__init__()
        model = config.model
        self.rate, self.negatives = model.dropout, config.loss.negatives
        self.table = nn.Parameter(0.02 * torch.randn(items + 1, model.dim))
        self.positions = nn.Parameter(0.02 * torch.randn(config.data.window, model.dim))
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.layers))
        self.norm = nn.LayerNorm(model.dim)

    def encode(self, ids: Tensor) -> Tensor:
        """Return the outputs [B, N, D] of events, int [B, N]."""
        x = functional.embedding(ids, self.table) + self.positions[: ids.shape[1]]
        x = functional.dropout(x, self.rate if self.training else 0.0)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next items of events, int [B, N + 1]."""
        x, targets = self.encode(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()
        if self.negatives is None:
            return functional.cross_entropy(x @ self.table[1:].T, targets - 1)
        shape = (len(targets), self.negatives)
        drawn = torch.randint(1, len(self.table), shape, device=ids.device)
        candidates = torch.cat([targets[:, None], drawn], dim=1)
        scores = torch.einsum("td,trd->tr", x, functional.embedding(candidates, self.table))
        same = functional.pad(drawn == targets[:, None], (1, 0))
        scores = scores.masked_fill(same, float("-inf"))
        return functional.cross_entropy(scores, torch.zeros_like(targets))


def build_step(config: dict[str, Any], items: int, mode: str) -> Work:
    """Return a training step on the GPU, or on the CPU where there is none; batches are the host's.

    Args:
      config: the whole configuration as a dictionary.
      items: size of the catalogue.
      mode: of `torch.compile`: default, or reduce-overhead, which records CUDA graphs.
    """
    values, on_gpu = from_dict(config), torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")  # as JAX's products here
    model = SASRec(values, items).to(device)
    optim = values.optim
    optimizer = torch.optim.AdamW(
        model.parameters(),
        optim.learning_rate,
        BETAS,
        weight_decay=optim.weight_decay,
        fused=on_gpu,
    )
    # Without a GPU only whether it runs counts, so nothing is compiled to machine code.
    objective = torch.compile(model, mode=mode) if on_gpu else torch.compile(model, backend="eager")
    batch = torch.from_numpy(settings.random_batch(values, items)["ids"])
    losses: list[float] = []

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = objective(batch.to(device, torch.long))
        loss.backward()
        if optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        losses[:] = [loss.item()]  # waits for the device

    began = time.perf_counter()
    run()
    first_s = time.perf_counter() - began
    for _ in range(_WARM_UP):
        run()
    return Work(
        run,
        tokens=values.train.batch_size * values.data.window,
        fields={"torch": torch.__version__, "first_s": first_s, "last_loss": losses},
    )
