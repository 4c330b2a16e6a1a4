//! libcuda.so.1 for machines without a GPU: a strict simulator of the CUDA driver API.
