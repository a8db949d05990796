"""`python -m tests.load.bench`: see `command`."""

if __name__ == "__main__":
    # Not at the top: every process of the benchmark imports this module anew.
    from tests.load.bench.command import main

    main()
