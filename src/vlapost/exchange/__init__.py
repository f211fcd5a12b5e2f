"""Demonstrations in other formats: what other programs recorded comes in, and ours goes out."""
