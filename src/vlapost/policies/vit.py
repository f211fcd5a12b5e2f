"""The two image encoders of OpenVLA as one plain vision transformer with timm's parameter names.

DINOv2 with registers and SigLIP differ only in what `ViTSizes` says. OpenVLA reads the output of the second-to-last
block without the final norm (spec: Karamcheti et al. 2024, Prismatic VLMs). The last block, `norm` and the pooling
head are kept, so that checkpoints load strictly, and are never computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ViTSizes:
    """Sizes of one encoder.

    patches: number of patches per image. registers: 0 means no class token either. stem: channels of convolutions
    before the patches, each of which halves the picture; none in the published checkpoints.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    patch: int
    patches: int
    registers: int
    layer_scale: bool
    pooling_head: bool
    stem: tuple[int, ...] = ()

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, torch.Size], heads: int) -> ViTSizes:
        """Read the sizes off a state dict's shapes (head counts are not in there)."""
        blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
        width, _, side, _ = shapes["patch_embed.proj.weight"]
        stem = tuple(s[0] for name, s in sorted(shapes.items()) if name.startswith("patch_embed.stem") and len(s) == 4)
        return cls(
            width=width,
            depth=len(blocks),
            heads=heads,
            mlp=shapes["blocks.0.mlp.fc1.weight"][0],
            patch=side * 2 ** len(stem),
            patches=shapes["pos_embed"][1],
            registers=shapes["reg_token"][1] if "reg_token" in shapes else 0,
            layer_scale="blocks.0.ls1.scale_factor" in shapes,
            pooling_head="attn_pool.latent" in shapes,
            stem=stem,
        )


class MLP(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to `[..., width]`."""
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, width]` to `[B, N, width]`."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to `[..., width]`."""
        return x * self.scale_factor


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attn = Attention(sizes.width, sizes.heads)
        self.ls1 = LayerScale(sizes.width) if sizes.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = MLP(sizes.width, sizes.mlp)
        self.ls2 = LayerScale(sizes.width) if sizes.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, width]` to `[B, N, width]`."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, of the picture or of what a stem of convolutions makes of it, to vectors."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(*c, kernel_size=3, stride=2, padding=1) for c in pairwise((3, *sizes.stem))]
        self.stem = nn.ModuleList(convolutions)
        side = sizes.patch // 2 ** len(sizes.stem)
        self.proj = nn.Conv2d((3, *sizes.stem)[-1], sizes.width, kernel_size=side, stride=side)

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, 3, H, W]` to `[B, patches, width]`, row by row."""
        for convolution in self.stem:
            pixels = F.gelu(convolution(pixels))
        return self.proj(pixels).flatten(2).transpose(1, 2)


class PoolingHead(nn.Module):
    """SigLIP's attention pooling: parameters only, OpenVLA does not use it."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.q = nn.Linear(sizes.width, sizes.width)
        self.kv = nn.Linear(sizes.width, 2 * sizes.width)
        self.proj = nn.Linear(sizes.width, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = MLP(sizes.width, sizes.mlp)


class VisionTransformer(nn.Module):
    """Image to one feature vector per patch."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.patch_embed = PatchEmbed(sizes)
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.patches, sizes.width))
        if sizes.registers:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
            self.reg_token = nn.Parameter(torch.zeros(1, sizes.registers, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)
        if sizes.pooling_head:
            self.attn_pool = PoolingHead(sizes)

    def unused(self) -> list[str]:
        """Names of the submodules that are never computed."""
        names = [f"blocks.{self.sizes.depth - 1}", "norm"]
        return [*names, "attn_pool"] if self.sizes.pooling_head else names

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels `[B, 3, H, W]` to patch features `[B, patches, width]`."""
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = 0
        if self.sizes.registers:
            prefix = 1 + self.sizes.registers
            tokens = torch.cat([self.cls_token, self.reg_token], dim=1)
            x = torch.cat([tokens.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, prefix:]
