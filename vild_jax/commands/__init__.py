"""The commands of `vild-jax`, one file each: `add_arguments(parser)` declares its options, `run(args)` runs it.

`cli.COMMANDS` lists them. Modules here import nothing heavy at the top, so that `--help` answers at once.
"""
