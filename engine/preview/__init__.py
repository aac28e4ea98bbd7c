"""One preview: denoising, its video, and sheets to compare by."""
