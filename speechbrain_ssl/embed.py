"""``python -m speechbrain_ssl.embed``, the same as ``speechbrain-ssl embed``."""

from speechbrain_ssl.cli.embed import embed, main

__all__ = ["embed", "main"]

if __name__ == "__main__":
    main()
