"""`python -m polyvec` is `polyvec`."""

from polyvec.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
