"""A vision transformer in plain PyTorch, for machines without transformers and PEFT: what `steps.hugging_face` gives.

The numbers of its parameters, and of those that learn, are jtransfer's.
"""

from types import SimpleNamespace

import torch
from steps import CLASSES
from torch import nn
from torch.nn import functional


class Adapted(nn.Module):
    """A dense layer that is frozen, and the product of two narrow ones beside it (LoRA)."""

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside its input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.norm_1(x)
        parts = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = x + self.out(functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class ViT(nn.Module):
    """Pixels `[batch, 3, image, image]` to `logits [batch, 100]` of the class token."""

    def __init__(self, width: int, depth: int, heads: int, image: int):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image // 16) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, pixels):
        x = self.patch(pixels).flatten(2).mT
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return SimpleNamespace(logits=self.head(self.norm(x)[:, 0]))


def plain(name: str, shape: dict, image: int) -> ViT:
    """The network, of which the parameters learn that learn in a method of `steps.METHODS`."""
    model = ViT(**shape, image=image)
    model.requires_grad_(name == "finetune")
    if name == "lora":
        for block in model.blocks:
            block.query, block.value = Adapted(block.query, 8), Adapted(block.value, 8)
    model.head.requires_grad_(True)
    return model
