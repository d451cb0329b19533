"""How far a free text answers a question: one file a rule, each as its benchmark's own script or paper has it.

Functions over texts only: no model, no pictures, no files. What each does otherwise than its reference stands in its
file. Shares carry Wilson's interval, other values one by bootstrap (`evaluation.intervals`).
"""
