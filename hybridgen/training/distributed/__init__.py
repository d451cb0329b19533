"""One process or many: the accelerator, sharded weights, precision, compilation."""
