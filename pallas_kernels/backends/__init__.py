"""What stands between a kernel and the compiler that takes it: one module per compiler, and the choice between them."""
