"""LightningModules for fine-tuning and evaluation that take any pre-trained backbone."""
