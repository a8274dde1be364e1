"""`python -m meshlib.cli` is `meshlib`."""

from meshlib.cli import main

if __name__ == "__main__":
    main()
