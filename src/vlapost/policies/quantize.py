"""Base weights in 4 bits (nf4, Dettmers et al. 2023) or 8 bits, by bitsandbytes; adapters stay float32.

Every linear layer is quantised but the language model's head, of which only 256 rows are read, and the few that
`applies` names. bitsandbytes is imported only where it is asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlapost.config import UserError


def applies(name: str, module: nn.Module, kind: str) -> bool:
    """Whether the weight of the module of that name is quantised.

    nf4 shares one scale among 64 weights. Where such a block runs over the end of a row, bitsandbytes 0.50 on CPU gives
    back weights that are off by a quarter (7B: only the second layer of SigLIP's feed-forwards), so those layers are
    left as they are, everywhere.
    """
    if not isinstance(module, nn.Linear) or name.endswith("lm_head"):
        return False
    return kind == "int8" or module.in_features % 64 == 0


def replace(network: nn.Module, name: str, weight: Tensor, kind: str, device: torch.device | str) -> None:
    """Put a quantised layer in the place of a linear one.

    Args:
        name: of the layer in `network`; its bias is kept. weight: `[out, in]` on CPU. kind: nf4 | int8.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes.nn
    except ImportError:
        raise UserError(f"policy.quantize={kind} needs bitsandbytes; run pip install bitsandbytes.") from None
    bnb: Any = bitsandbytes.nn
    old = network.get_submodule(name)
    assert isinstance(old, nn.Linear)
    has_bias = old.bias is not None
    new: Any
    if kind == "nf4":
        new = bnb.Linear4bit(old.in_features, old.out_features, has_bias, quant_type="nf4", device="meta")
        new.weight = bnb.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new).to(device)
        # On a CPU with AVX512-BF16, a forward without gradients would repack the weights in place, and the gradients
        # of every later backward would be wrong without a word: exactly a rollout and then an update.
        new.support_avx512bf16_for_cpu = False
    else:
        new = bnb.Linear8bitLt(old.in_features, old.out_features, has_bias, has_fp16_weights=False, device="meta")
        new.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
        new.register_forward_hook(_forget_input)
    if has_bias:
        new.bias = old.bias
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new.requires_grad_(False).eval())


def _forget_input(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """What bitsandbytes keeps of the input for a gradient of the weights, which are frozen.

    It keeps it beside autograd's saved tensors, where `policy.recompute` cannot drop it: at 7B 66 GB more.
    """
    if output.grad_fn is not None:
        output.grad_fn.tensors = (None, None, None)  # type: ignore[attr-defined]
