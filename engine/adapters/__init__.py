"""Low-rank adapters and their files: the trained LoRA, the accelerator of previews, the recovery adapter."""
