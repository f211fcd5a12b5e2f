"""Held-out episodes, run in parallel, counted with intervals, shown as videos. Knows no simulator and no model."""
