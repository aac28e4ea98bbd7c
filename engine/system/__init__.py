"""What CUDA, the disk and the operating system give. Knows nothing of Wan or of training."""
