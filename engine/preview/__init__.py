"""One preview: denoising, its video, and the sheets that previews and clips are judged by."""
