"""Studies: several runs that are compared, and ladders of runs that a law is fitted to. The one room that both trains
and evaluates."""
