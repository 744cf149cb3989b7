"""LightningDataModules, one a paper, and the readers that they share. They know nothing of models."""
