"""Evaluation: a trained pipeline draws and answers what it has not seen, and every score stands beside what it must
beat."""
