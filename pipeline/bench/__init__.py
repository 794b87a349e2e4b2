"""The command `bench`: its sub-commands, DVC's files and their templates, the warm start."""
