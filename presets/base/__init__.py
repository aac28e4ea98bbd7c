"""The base model and LoRA files, from listings, JSON files and headers alone. No weight is read."""
