"""Demo clips and a tiny base model with random weights, made offline; the tests use them too."""
