"""Kernels of Triton: attention's backward, float8 and int8 products, what passes over tokens; and cuDNN's open backward
of attention. Triton comes with the CUDA builds of torch alone, so those who use its kernels import them where a card
computes."""
