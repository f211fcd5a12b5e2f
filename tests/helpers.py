"""What several test files need."""

import torch

from vlapost.policies.policy import OpenVLAPolicy


def with_effect(policy: OpenVLAPolicy, std: float = 0.1) -> OpenVLAPolicy:
    """The policy with adapters and critic that are not zero, so that they matter."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or "head_l3" in name:
                parameter.normal_(std=std)
    return policy
