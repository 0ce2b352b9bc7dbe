"""What JAX asks of a CUDA plugin before it lowers to cuDNN: a host without one says it is there."""


def cudnn_get_version() -> int:
    return 91200
