"""python -m storyteller_ds: the storyteller command."""

from storyteller_ds.cli.main import main

if __name__ == "__main__":
    main()
