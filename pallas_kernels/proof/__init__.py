"""What can be proven about a GPU kernel on a machine that has no GPU: it compiles, and what the compiler made of it."""
