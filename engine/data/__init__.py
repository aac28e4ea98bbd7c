"""From a dataset's folder to decoded batches, in worker processes. Imports no torch."""
