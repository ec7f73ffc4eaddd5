"""The command ``compressjax``. Nothing here imports jax before a command is known and its flags are right."""
