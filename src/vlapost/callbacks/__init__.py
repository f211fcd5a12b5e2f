"""Watchers: they log, show and save, and take no part in learning."""
