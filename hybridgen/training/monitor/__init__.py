"""What a run logs: metrics and their plot, diagnostics, FLOPs, and the guard that skips steps."""
