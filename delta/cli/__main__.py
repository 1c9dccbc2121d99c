"""`python -m delta.cli`."""

from delta.cli.app import main

if __name__ == "__main__":
    main()
