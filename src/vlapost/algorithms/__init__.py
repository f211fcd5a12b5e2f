"""One page per learning rule; each a pure loss and a LightningModule."""
