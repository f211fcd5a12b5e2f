"""The policy: OpenVLA in plain PyTorch, its LoRA adapters, its critic and its action tokens."""

import logging

# Importing peft imports bitsandbytes, which warns about an optional 4-bit kernel that is not used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
