"""``python -m speechbrain_ssl.verify``, the same as ``speechbrain-ssl score``."""

from speechbrain_ssl.cli.score import main, verify

__all__ = ["main", "verify"]

if __name__ == "__main__":
    main()
