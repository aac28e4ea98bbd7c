"""The toy base: a small Wan 2.2 I2V model that makes videos of drawn films, how it is drawn, trained and scored. The
model itself lies in `data/`."""

from pathlib import Path

# a diffusers folder of the real classes and layout; data/README.md says how it was made
DATA = Path(__file__).with_name("data")
