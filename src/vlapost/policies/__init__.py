"""The policy: OpenVLA in plain PyTorch, its LoRA adapters, its critic and its action tokens."""
