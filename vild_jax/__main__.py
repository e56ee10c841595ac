"""`python -m vild_jax` is `vild-jax`."""

from vild_jax.cli import main

if __name__ == '__main__':
  raise SystemExit(main())
