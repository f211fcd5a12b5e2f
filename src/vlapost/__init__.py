"""vlapost: post-training of vision-language-action policies with SFT and RL."""

__version__ = "0.1.0"
