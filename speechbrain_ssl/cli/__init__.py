"""The command line: ``python -m speechbrain_ssl COMMAND``."""
