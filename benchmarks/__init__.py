"""Speed measurements: `make benchmark`."""
