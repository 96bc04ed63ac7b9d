"""The functions of exported models in one place.

    > python -m speechbrain_ssl.inference RUN_FOLDER [--folder MODEL_FOLDER]

exports a training run. The code is in ``export``, ``loading`` and ``card``.
"""

from speechbrain_ssl.card import read_threshold, suggest_threshold
from speechbrain_ssl.exporting import (
    check_export,
    encoder_hparams,
    export,
    export_run,
    main,
)
from speechbrain_ssl.loading import (
    check_sample_rate,
    continue_run,
    embed_faces,
    load_encoder,
    start_from,
)

__all__ = [
    "check_export",
    "check_sample_rate",
    "continue_run",
    "embed_faces",
    "encoder_hparams",
    "export",
    "export_run",
    "load_encoder",
    "read_threshold",
    "start_from",
    "suggest_threshold",
]

if __name__ == "__main__":
    main()
