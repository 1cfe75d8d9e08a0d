"""python -m storyteller_ds: the storyteller command."""

from storyteller_ds.cli.start import main

if __name__ == "__main__":
    main()
