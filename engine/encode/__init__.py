"""Pixels and captions to latents and embeddings, cached on disk."""
