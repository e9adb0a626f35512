"""Dense kernels on symmetric positive definite matrices; nothing here knows of problems or solvers."""
