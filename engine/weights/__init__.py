"""The frozen base model: where its tensors lie, how they reach host memory, and the cache of them packed."""
