"""Demonstrations by motion planning: what the planner decides, and how its paths become actions."""
