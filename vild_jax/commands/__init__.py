"""The commands of `vild-jax`, one file each: `add_arguments(parser)` declares its options, `run(args)` runs it.

`cli.COMMANDS` lists them. These modules import slow packages such as JAX inside `run` only, so that `--help` is quick.
"""
