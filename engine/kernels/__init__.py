"""Triton kernels: attention's backward, float8 and int8 products, what passes over tokens. Triton comes with the CUDA
builds of torch alone, so those who use them import them where a card computes."""
