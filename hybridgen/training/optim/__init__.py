"""Optimizers, parameter groups, the schedule, and the moving average of the weights."""
