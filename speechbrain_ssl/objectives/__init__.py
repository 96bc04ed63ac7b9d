"""Objectives, one file each.

THE CONTRACT. An objective is any ``torch.nn.Module`` with the call ::

    loss, stats = objective(student, teacher, epoch)

student : speechbrain_ssl.nnet.branch.Views
    What the student says: ``embedding`` [views, batch, emb_dim],
    ``projection`` [views, batch, proj_dim] and, for objectives that keep
    something per utterance, ``index`` [batch]: rows of the training CSV.
    Global crops come first. The first axis is always that of the views;
    ``nnet.branch.different_views`` says which pairs are not the same crop.
teacher : Views or None
    The same from the teacher, without gradient; None where there is none.
epoch : float
    Training time: 2.5 is half-way through the third epoch.
loss : torch.Tensor
    Scalar, float32 for inputs of half precision or float32 (lift them by
    ``nnet.precision.full_precision``, or ``.float()``); the brain calls
    objectives with autocast off. Inputs of float64 stay float64 here, for
    tests and ``torch.autograd.gradcheck`` of ``objective.double()``.
stats : dict of str to torch.Tensor
    Detached scalars for the log. A collapse must show in them.

It may have ``warnings(stats)``: means of an epoch (floats) to a list of
sentences that say what is wrong; the log and the report show them.

It may have ``stats_help``: a line for each statistic, by its name, which the
report shows.

It changes its own buffers (a queue, a center) only in training mode, and
identically in all processes. What only the student side has (predictor,
prototypes, queue) it owns; what the teacher copies (the head) belongs to the
branch. It never sees audio, an encoder, a setting of the run or a label.

``speechbrain_ssl.testing.check_objective`` holds an objective, also one of
another package, to all of this. An hparams file names it with ``!new:``;
there is nothing to register.
"""
