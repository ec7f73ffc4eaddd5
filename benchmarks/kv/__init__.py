"""What a smaller key-value cache costs: quality after a compressed prompt, retrieval, drift, bytes and speed."""
