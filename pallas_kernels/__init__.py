"""GPU kernels on plain arrays; knows nothing of the library's leaves and configs, which import it."""
