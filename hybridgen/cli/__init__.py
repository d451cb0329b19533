"""The command line: one file a command, each with `add_arguments` and `run`; `main` lists them."""
