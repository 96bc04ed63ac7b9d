"""Objectives, one file each.

THE CONTRACT. An objective is any ``torch.nn.Module`` with the call ::

    loss, stats = objective(student, teacher, epoch)

student : speechbrain_ssl.nnet.branch.BranchOutput
    Outputs of the student: ``embedding`` [views, batch, emb_dim],
    ``projection`` [views, batch, proj_dim] and, for objectives that keep
    something per utterance, ``index`` [batch]: rows of the training CSV.
    Global crops come first. Views of one kind are exchangeable: the loss does
    not depend on their order. ``nnet.branch.different_views`` tells which
    pairs are not the same crop.
teacher : BranchOutput or None
    The same from the teacher, without gradient; None where there is none.
epoch : float
    Training time: 2.5 is half-way through the third epoch.
loss : torch.Tensor
    Scalar, float32 for inputs of half precision or float32 (lift them by
    ``nnet.precision.full_precision``, or ``.float()``); the brain calls
    objectives with autocast off. Inputs of float64 stay float64 here, for
    tests and ``torch.autograd.gradcheck`` of ``objective.double()``. Each view
    and each parameter of the objective that learns gets a gradient.
stats : dict of str to torch.Tensor
    Detached scalars of floating point for the log. A collapse must show in
    them.

``forward`` changes nothing but the running statistics of BatchNorm. An
objective that keeps something between steps (a queue, a center) has ::

    objective.commit(student, teacher)

which the brain calls once after each batch whose loss is finite, with the
arguments of the call and without gradient. What is kept belongs into buffers,
so that checkpoints have it.

It may have ``warnings(stats)``: means of an epoch (floats) to a list of
sentences that say what is wrong; the log and the report show them. It may
have ``stats_help``: a line for each statistic, by its name, which the report
shows.

Several processes see one batch: the mean of their losses is the loss of one
process with all their utterances, and buffers stay equal everywhere
(``distributed.gather_with_gradient``, ``gather`` and ``mean`` help). What only
the student side has (predictor, prototypes, queue) belongs to the objective;
what the teacher copies (the head) belongs to the branch. An objective never
sees audio, an encoder, a setting of the run or a label.

``speechbrain_ssl.testing.check_objective`` holds an objective, also one of
another package, to all of this. An hparams file names it with ``!new:``;
there is nothing to register.
"""
