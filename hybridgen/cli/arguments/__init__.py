"""What the command line takes: one file a command, of the same name as the file beside this folder that does it.

    types     the parser, types of arguments, and the arguments that several commands share
    parser    all commands together; `parse` reads and checks a command line

Nothing here imports torch, transformers or diffusers, nor a room of ours that does: a mistake in arguments, and
`--help`, are answered before those are loaded (`hybridgen_command`). So only `core.names`, `core.recognition` and the
like may be imported; a test holds that.
"""
