"""The driver of the rounds, with scripts that only pretend to learn."""

import functools
import importlib.util
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import time

import numpy as np
import pytest

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"
HPARAMS = RECIPES / "AudioFolder/SSL/hparams/rounds.yaml"
WITH_FACES = HPARAMS.with_name("rounds_av.yaml")

# Each script notes its arguments and whether another process works in its
# folder at the same time. Labels come in chunks, models in epochs; both go on
# from what is there, as those of the recipe do.
COMMON = """\
import fcntl, hashlib, json, os, sys, time
args = dict(word[2:].split("=", 1) for word in sys.argv[2:])
out = args["output_folder"]
os.makedirs(out, exist_ok=True)
lock = open(os.path.join(out, "working"), "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    open(os.path.join(out, "overlap"), "w").close()
lock.write(str(os.getpid()))
lock.flush()
with open(os.path.join(out, "args.json"), "w") as file:
    json.dump(args, file)

def digest(*paths):
    return hashlib.sha256(b"".join(open(p, "rb").read() for p in paths))

def step(name, text):
    path = os.path.join(out, name)
    if not os.path.exists(path):
        time.sleep(float(args.get("pause", 0)))
        with open(path + ".part", "w") as file:
            file.write(text)
        os.replace(path + ".part", path)
    print(name, "is there")
    return open(path).read()

def write(name, text):
    os.makedirs(os.path.dirname(os.path.join(out, name)), exist_ok=True)
    with open(os.path.join(out, name), "w") as file:
        file.write(text)

if os.path.exists(args.get("fail_if", "")):
    print("the disk is on fire")
    sys.exit(3)
"""
LABELS = """\
keys = [k for k in ("model_folder", "face_model_folder") if k in args]
made_of = [os.path.join(args[k], "embedding_model.ckpt") for k in keys]
if "model_folder" not in args:
    made_of = [os.path.join(args["embeddings_folder"], "embeddings.npy")]
found = digest(*made_of, args["train_annotation"]).hexdigest() + args["seed"]
rows = open(args["train_annotation"]).read().split()
labels = [step(f"chunk{n}", str(int(found[n], 16) % 2)) for n in range(2)]
labels = [labels[0], labels[1], str(1 - int(labels[0])), "1"]
rows = [f"{row},{label}" for row, label in zip(rows[1:], labels)]
head = "ID,duration,wav,start,stop,spk_id"
write("pseudo_labels.csv", "\\n".join([head, *rows]) + "\\n")
ari = float(args.get("ari", 0.5)) if "previous" in args else None
write("report.json", json.dumps({"quality": {
    "clusters": 2, "labelled": 4, "intra_cluster_cosine": {"mean": 0.8},
    "margin": {"mean": 0.3}, "misplaced": 0.1, "stability": {"ARI": 0.7},
    "previous": None if ari is None else {"ARI": ari}, "warnings": [],
}}))
"""
TRAIN = """\
keys = [k for k in ("init_from", "face_init_from") if k in args]
init = [args[k] + "/embedding_model.ckpt" for k in keys]
found = digest(*init, args["pseudo_labels"]).hexdigest()
for epoch in (1, 2):
    step(f"epoch{epoch}", found)
growth = float(args.get("growth", 0.1)) * int(args["round_index"])
write("train_log.jsonl", json.dumps({
    "epoch": 2, "warnings": ["Gate: too early"],
    "train": {"selected": 0.5 + growth, "corrected": 0.1},
}) + "\\n")
for name in ("model", "face_model")[: max(len(keys), 1)]:
    write(f"{name}/hyperparams.yaml", "")
    write(f"{name}/embedding_model.ckpt", found + name)
"""
SSL = """\
write("model/hyperparams.yaml", "")
write("model/embedding_model.ckpt", args["train_annotation"])
"""
VERIFY = """\
for path in json.loads(args["trials"]):
    name = os.path.splitext(os.path.basename(path))[0]
    eer = 20.0 if "round2" in out else 10.0
    write(f"{name}/metrics.json", json.dumps({
        "EER": eer, "EER_low": 9.0, "EER_high": 21.0, "minDCF_0.01": 0.5,
    }))
"""
KEYS = {
    "train_ssl": "data_folder train_annotation seed output_folder skip_prep",
    "make_pseudo_labels": "model_folder data_folder train_annotation seed "
    "output_folder previous embeddings_folder ari pause fail_if "
    "face_model_folder",
    "train_pseudo_labels": "data_folder train_annotation seed output_folder "
    "pseudo_labels init_from round_index growth pause fail_if "
    "face_init_from",
    "verify": "model_folder output_folder trials",
}
YAMLS = {
    "train_ssl": ("train_moco", "train_dino_face"),
    "make_pseudo_labels": ("pseudo_labels",),
    "train_pseudo_labels": ("train_ungated", "train_dlg_lc_av"),
    "verify": ("verify",),
}


def load_script(recipe="AudioFolder"):
    path = RECIPES / recipe / "SSL/run_rounds.py"
    spec = importlib.util.spec_from_file_location("run_rounds", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.syspath_prepend(RECIPES / "AudioFolder/SSL")
    return load_script()


@pytest.fixture
def place(script, monkeypatch, tmp_path):
    """A recipe of pretenders, a training CSV and a first encoder."""
    (tmp_path / "hparams").mkdir()
    bodies = [SSL, LABELS, TRAIN, VERIFY]
    for (name, keys), body in zip(KEYS.items(), bodies):
        (tmp_path / f"{name}.py").write_text(COMMON + body)
        yaml = "".join(f"{key}: 0 # none\n" for key in keys.split())
        for file in YAMLS[name]:
            (tmp_path / "hparams" / f"{file}.yaml").write_text(yaml)
    rows = [f"{name},1.5,$data_root/{name}.wav,0,24000" for name in "abcd"]
    head = "ID,duration,wav,start,stop"
    (tmp_path / "train.csv").write_text("\n".join([head, *rows]) + "\n")
    (tmp_path / "audio").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/hyperparams.yaml").write_text("")
    (tmp_path / "model/embedding_model.ckpt").write_text("first")
    monkeypatch.setattr(script, "HERE", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(script, place):
    """Runs the rounds in this process; ``out`` is their folder."""

    def run(*flags, out="out", hparams=HPARAMS):
        return script.main(
            [
                str(hparams),
                f"--data_folder={place}/audio",
                f"--train_annotation={place}/train.csv",
                f"--output_folder={place}/{out}",
                *(f.replace("PLACE", str(place)) for f in flags),
            ]
        )

    return functools.partial(run, f"--model_folder={place}/model")


def write_embeddings(folder):
    """What extract writes, as far as the rounds look at it."""
    folder.mkdir(parents=True)
    made = {"rows": 1, "embeddings": "abc"}
    meta = {"settings": {}, "made": made}
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "ids.json").write_text('["a"]')
    (folder / "failed.csv").write_text("ID,reason\n")
    np.save(folder / "embeddings.npy", np.zeros((1, 2), np.float32))


def args_of(folder):
    return json.loads((folder / "args.json").read_text())


def marks_of(folder):
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())
        for path in sorted(folder.glob("*/*/stage.json"))
    }


def results_of(folder):
    """Bytes of all labels and models."""
    names = ("pseudo_labels.csv", "embedding_model.ckpt")
    return [p.read_bytes() for n in names for p in sorted(folder.rglob(n))]


def test_each_round_gets_labels_of_the_encoder_before(run, place, capfd):
    rows = run("--rounds=3")
    out = place / "out"
    assert [(row["round"], row["stage"]) for row in rows] == [
        (n, stage) for n in (1, 2, 3) for stage in ("labels", "train")
    ]
    for number in (1, 2, 3):
        labels = args_of(out / f"round{number}/labels")
        train = args_of(out / f"round{number}/train")
        before = out / f"round{number - 1}"
        model = place if number == 1 else before / "train"
        assert labels["model_folder"] == str(model / "model")
        assert labels.get("previous") == (
            None if number == 1 else str(before / "labels/pseudo_labels.csv")
        )
        assert train["init_from"] == str(place / "model")
        assert train["pseudo_labels"] == str(
            out / f"round{number}/labels/pseudo_labels.csv"
        )
        assert train["round_index"] == str(number - 1)
        assert {labels["seed"], train["seed"]} == {"1"}
        assert labels["train_annotation"] == train["train_annotation"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stages"] == rows
    assert summary["finished"] is True
    assert summary["model"] == str(out / "round3/train/model")
    assert "decided nothing" in summary["label_use"]
    assert "round3/train" in (out / "rounds.html").read_text()
    printed = capfd.readouterr().out
    assert "chunk1 is there" in printed
    assert "ARI round before" in printed
    log = (out / "round1/labels/stage.log").read_text()
    assert "chunk1 is there" in log and "make_pseudo_labels.py" in log


def test_init_previous_trains_on_from_the_round_before(run, place):
    run("--rounds=2", "--init=previous")
    found = args_of(place / "out/round2/train")["init_from"]
    assert found == str(place / "out/round1/train/model")


def test_an_onnx_file_makes_labels_and_is_not_trained(script, place):
    given = ["--data_folder=x", "--model_folder=a.onnx", "--init=previous"]
    _, _, hparams, _ = script.load_experiment([str(HPARAMS), *given])
    stages = script.plan({**hparams, "train_annotation": "train.csv"})
    first, second = (s.flags for s in stages if s.name == "train")
    assert "init_from" not in first
    assert second["init_from"].endswith("round1/train/model")


def test_faces_go_on_from_those_of_the_round_before(run, place):
    flags = ("--rounds=2", "--init=previous")
    rows = run(*flags, hparams=WITH_FACES)
    assert [row["stage"] for row in rows] == [
        "ssl_face",
        *("labels", "train", "labels", "train"),
    ]
    before = place / "out/start/ssl_face/model"
    for number in (1, 2):
        folder = place / f"out/round{number}"
        found = args_of(folder / "labels")["face_model_folder"]
        assert found == str(before)
        assert args_of(folder / "train")["face_init_from"] == str(before)
        before = folder / "train/face_model"


def test_init_none_leaves_the_start_to_the_hparams_file(script, place, run):
    run("--rounds=1", "--init=none")
    assert "init_from" not in args_of(place / "out/round1/train")


def test_round_index_goes_only_where_a_yaml_has_it(script, place, run):
    yaml = place / "hparams/train_ungated.yaml"
    yaml.write_text(yaml.read_text().replace("round_index: 0 # none\n", ""))
    with pytest.raises(ChildProcessError):  # the pretender wants it
        run()
    assert "round_index" not in args_of(place / "out/round1/train")


def test_run_options_and_changes_reach_the_stages(run, place):
    run("--rounds=1", "--device=cpu", "--labels={changes: {ari: 0.2}}")
    labels = args_of(place / "out/round1/labels")
    assert (labels["ari"], labels["device"]) == ("0.2", "cpu")
    train = args_of(place / "out/round1/train")
    assert "ari" not in train and train["device"] == "cpu"


def test_shared_settings_go_where_a_yaml_has_them(run, place):
    run("--rounds=1", "--shared={pause: 0.01, ari: 0.3}")
    labels = args_of(place / "out/round1/labels")
    assert (labels["pause"], labels["ari"]) == ("0.01", "0.3")
    train = args_of(place / "out/round1/train")
    assert train["pause"] == "0.01" and "ari" not in train


def test_the_same_command_again_does_nothing_again(run, place, capfd):
    rows = run()
    before = marks_of(place / "out")
    assert {mark["exit_code"] for mark in before.values()} == {0}
    capfd.readouterr()
    assert run() == rows
    assert marks_of(place / "out") == before
    assert "chunk" not in capfd.readouterr().out


def test_more_rounds_go_on_after_the_last(run, place):
    run("--rounds=1")
    before = marks_of(place / "out")
    run("--rounds=2")
    after = marks_of(place / "out")
    assert len(after) == 4
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--seed=2", "--seed: was 1, is 2"),
        ("--labels={changes: {ari: 0.9}}", "ari: was absent, is 0.9"),
        ("--processes=2", "processes: was 1, is 2"),
        ("--model_folder=PLACE/other", "--model_folder: "),
    ],
)
def test_another_setting_is_refused(script, run, place, flag, said):
    other = place / "other"
    other.mkdir()
    (other / "hyperparams.yaml").write_text("")
    (other / "embedding_model.ckpt").write_text("second")
    run("--rounds=1")
    before = marks_of(place / "out")
    call = run
    if "model_folder" in flag:
        call = functools.partial(run.func)
    with pytest.raises(ValueError) as error:
        call("--rounds=1", flag)
    assert said in str(error.value)
    assert str(place / "out/round1/labels") in str(error.value)
    assert "another output_folder" in str(error.value)
    assert marks_of(place / "out") == before


def test_a_change_in_a_yaml_is_refused_a_comment_is_not(run, place):
    run("--rounds=1")
    yaml = place / "hparams/train_ungated.yaml"
    text = yaml.read_text()
    yaml.write_text(text.replace("# none", "# a better comment"))
    run("--rounds=1")
    yaml.write_text(text.replace("growth: 0", "growth: 5"))
    with pytest.raises(ValueError, match="growth: was 0, is 5"):
        run("--rounds=1")


def test_a_change_of_what_was_interrupted_is_refused(run, place):
    (place / "fire").write_text("")
    with pytest.raises(ChildProcessError):
        run("--train={changes: {fail_if: PLACE/fire}}")
    with pytest.raises(ValueError, match="round1/train was started"):
        run()


def test_labels_changed_by_hand_are_noticed(run, place):
    run("--rounds=1")
    labels = place / "out/round1/labels/pseudo_labels.csv"
    labels.write_text(labels.read_text().replace(",1\n", ",0\n"))
    with pytest.raises(ValueError, match="round1/train .*\n.*pseudo_labels"):
        run("--rounds=1")


def test_a_stage_that_fails_is_named_with_the_end_of_its_log(run, place):
    (place / "fire").write_text("")
    flags = ["--train={changes: {fail_if: PLACE/fire}}", "--rounds=1"]
    with pytest.raises(ChildProcessError) as error:
        run(*flags)
    for text in ("round1/train", "exit code 3", "stage.log", "on fire"):
        assert text in str(error.value)
    summary = json.loads((place / "out/summary.json").read_text())
    assert summary["finished"] is False
    assert [row["stage"] for row in summary["stages"]] == ["labels"]

    (place / "fire").unlink()
    run(*flags)
    marks = marks_of(place / "out")
    assert marks["round1/labels"]["attempts"] == 1
    assert marks["round1/train"]["attempts"] == 2
    assert marks["round1/train"]["exit_code"] == 0


def test_a_stage_without_its_result_is_not_done(run, place):
    (place / "make_pseudo_labels.py").write_text("print('part 0 is done')")
    with pytest.raises(FileNotFoundError, match="did not make .*report.json"):
        run()


@pytest.mark.parametrize("hparams", [HPARAMS, WITH_FACES])
@pytest.mark.parametrize("victim", ["driver", "stage"])
@pytest.mark.parametrize("moment", ["labels/chunk0", "train/epoch1"])
def test_after_a_kill_the_labels_are_those_of_a_run_without(
    run, place, hparams, victim, moment
):
    run = functools.partial(run, hparams=hparams)
    pause = "{changes: {pause: 0.2}}"
    flags = [f"--labels={pause}", f"--train={pause}", "--rounds=2"]
    run(*flags, out="straight")
    context = multiprocessing.get_context("fork")
    driver = context.Process(target=run, args=flags)
    driver.start()
    reached = place / "out/round2" / moment
    end = time.monotonic() + 60
    while not reached.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    if victim == "driver":
        driver.kill()
    else:
        working = reached.parent / "working"
        os.kill(int(working.read_text()), signal.SIGKILL)
    driver.join()
    assert driver.exitcode != 0
    stage = str(reached.parent.relative_to(place / "out"))
    # None: nobody was there to see how it ended
    code = None if victim == "driver" else -9
    assert marks_of(place / "out")[stage]["exit_code"] == code

    run(*flags)
    assert results_of(place / "out") == results_of(place / "straight")
    marks = marks_of(place / "out")
    assert {n: m["attempts"] for n, m in marks.items()} == {
        name: 2 if name == stage else 1 for name in marks
    }
    assert not list(place.rglob("overlap"))


def test_labels_like_those_before_end_the_rounds(run, place, capfd):
    rows = run("--rounds=5", "--labels={changes: {ari: 0.96}}")
    assert [row["stage"] for row in rows] == ["labels", "train", "labels"]
    summary = json.loads((place / "out/summary.json").read_text())
    assert "ARI 0.960" in summary["outcome"]
    assert summary["outcome"] in capfd.readouterr().out
    assert summary["model"] == str(place / "out/round1/train/model")
    assert not (place / "out/round2/train").exists()


def test_a_share_that_does_not_grow_ends_the_rounds(run, place):
    flags = ["--rounds=5", "--train={changes: {growth: 0.01}}"]
    flags += ["--trials=[PLACE/train.csv]"]
    rows = run(*flags, "--stop_growth=0.05")
    assert rows[-1]["round"] == 2
    summary = json.loads((place / "out/summary.json").read_text())
    assert "0.600 to 0.610" in summary["outcome"]
    flags[0] = "--rounds=3"
    assert run(*flags, "--stop_growth=null")[-1]["round"] == 3


def test_another_trial_list_of_the_same_name_is_noticed(run, place):
    (place / "easy.txt").write_text("1 a b\n")
    flags = ["--rounds=1", "--trials=[PLACE/easy.txt]"]
    run(*flags)
    (place / "easy.txt").write_text("0 a b\n")
    with pytest.raises(ValueError, match="--trials: was"):
        run(*flags)


def test_labels_reach_the_report_alone(run, place):
    plain = run("--rounds=2", "--train={changes: {growth: 0.1}}")
    truth = place / "truth.csv"
    truth.write_text("ID,spk_id\na,x\nb,x\nc,y\nd,y\n")
    (place / "easy.txt").write_text("1 a b\n")
    flags = ["--truth=PLACE/truth.csv", "--trials=[PLACE/easy.txt]"]
    rows = run("--rounds=2", "--train={changes: {growth: 0.1}}", *flags)
    # the rows of before are the same, but for what needs labels
    stripped = [
        {key: value for key, value in row.items() if key != "oracle"}
        for row in rows
        if row["stage"] != "verify"
    ]
    assert stripped == plain
    assert [row["round"] for row in rows if row["stage"] == "verify"] == [
        0,
        1,
        2,
    ]
    assert rows[1]["oracle"]["speakers"] == 2
    for folder in (place / "out").glob("round*/*"):
        arguments = args_of(folder)
        assert "truth" not in arguments
        assert ("trials" in arguments) == (folder.name == "verify")
    page = (place / "out/rounds.html").read_text()
    assert "From true labels, for this report only" in page
    assert "From the labels of trials, for this report only" in page
    assert "20.00 [9.00, 21.00]" in page


def test_without_a_model_an_encoder_is_trained_first(run, place):
    rows = run.func("--rounds=1")
    assert [row["stage"] for row in rows] == ["ssl", "labels", "train"]
    first = place / "out/start/ssl"
    assert args_of(first)["skip_prep"] == "true"
    labels = args_of(place / "out/round1/labels")
    assert labels["model_folder"] == str(first / "model")


def test_the_audio_is_listed_once(script, place, run, monkeypatch):
    calls = []

    def prepare(data_folder, save_csv, min_seconds):
        calls.append(min_seconds)
        text = (place / "train.csv").read_text()
        pathlib.Path(save_csv).write_text(text)

    monkeypatch.setattr(script, "prepare_audio_folder", prepare)
    arguments = [
        str(HPARAMS),
        f"--data_folder={place}/audio",
        f"--model_folder={place}/model",
        f"--output_folder={place}/out",
    ]
    script.main(arguments)
    script.main(arguments)
    assert calls == [1.0]
    for number in (1, 2):
        found = args_of(place / f"out/round{number}/train")
        assert found["train_annotation"] == str(place / "out/data/train.csv")
    with pytest.raises(ValueError, match="min_seconds: was 1.0, is 2.0"):
        script.main([*arguments, "--min_seconds=2.0"])


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--rounds=0", "rounds must be"),
        ("--processes=two", "processes must be"),
        ("--init=last", "init must be start"),
        ("--trials=list.txt", "trials must be a list"),
        ("--truth=no.csv", "no.csv"),
        ("--model_folder=nowhere", "nowhere"),
        ("--model_folder=PLACE", "Did you mean .*model"),
        ("--model_folder=PLACE/a.onnx", "set init to previous or none"),
        ("--face_model_folder=nowhere", "nowhere"),
        ("--labels={changes: {arj: 0.5}}", "no key 'arj'"),
        ("--shared={arj: 0.5}", "no stage has a key 'arj'"),
        ("--train={changes: {init_from: x}}", "init_from is set by"),
        ("--train={changes: {growth: .inf}}", "plain values"),
        ("--train={hparams: hparams/none.yaml}", "none.yaml"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_runs(run, place, flag, said):
    call = run.func if flag.startswith("--model_folder") else run
    if "face" in flag:
        call = functools.partial(run, hparams=WITH_FACES)
    with pytest.raises((ValueError, OSError), match=said):
        call(flag)
    assert not (place / "out").exists()


def test_wrong_speakers_are_found_out_before_anything_runs(run, place):
    (place / "truth.csv").write_text("ID,spk_id\nz,1\n")
    with pytest.raises(ValueError, match="no speaker for any"):
        run("--truth=PLACE/truth.csv")
    assert not marks_of(place / "out")


def test_processes_share_training_and_extraction(script):
    spec = {"script": "x.py", "hparams": "x.yaml", "changes": {}}
    stages = [
        script.Stage(1, name, "out", spec, {}) for name in ("train", "verify")
    ]
    train, verify = (script.command_of(s, 4, {}) for s in stages)
    assert "torch.distributed.run" in train
    assert "--nproc_per_node=4" in train
    assert "torch.distributed.run" not in verify
    # any launcher, which also does what it does on other machines
    given = "srun torchrun --nnodes 2 --rdzv_id '7 a'"
    train, verify = (script.command_of(s, 4, {}, given) for s in stages)
    assert train[:5] == ["srun", "torchrun", "--nnodes", "2", "--rdzv_id"]
    assert train[5] == "7 a" and train[6].endswith("x.py")
    assert "srun" not in verify


def test_a_launcher_that_is_no_program_is_named(run, place):
    with pytest.raises(ValueError, match="launcher must be a command.*sruun"):
        run("--launcher=sruun torchrun")


@pytest.mark.parametrize("train", ["dlg_lc", "lgl", "ungated"])
@pytest.mark.parametrize("recipe", ["AudioFolder", "VoxCeleb"])
def test_the_hparams_of_the_recipe_have_all_keys(script, recipe, train):
    """Also those that are run elsewhere, on GPUs, for days."""
    if recipe == "VoxCeleb":
        script = load_script(recipe)
    folder = RECIPES / recipe / "SSL"
    _, _, hparams, _ = script.load_experiment(
        [
            str(folder / "hparams/rounds.yaml"),
            f"--data_folder={folder}",
            "--trials=[list.txt]",
            f"--train={{hparams: hparams/train_{train}.yaml}}",
        ]
    )
    stages = script.plan({**hparams, "train_annotation": "train.csv"})
    assert len(stages) == 2 + 3 * hparams["rounds"]
    for stage in stages:
        script.check_stage(stage)
        assert (folder / stage.spec["script"]).is_file()
    yamls = [
        RECIPES / name / "SSL/hparams/pseudo_labels.yaml"
        for name in ("AudioFolder", recipe)
    ]
    first, second = (list(script.settings_of(path)) for path in yamls)
    assert first == second
    asked = ["round_index" in s.flags for s in stages if s.name == "train"]
    assert all(asked) if train == "lgl" else not any(asked)


def test_rounds_start_from_embeddings_without_an_encoder(run, place):
    write_embeddings(place / "given")
    start = f"--embeddings={place}/given"
    rows = run.func(start, "--rounds=2", "--init=previous")
    assert [(row["round"], row["stage"]) for row in rows] == [
        (n, stage) for n in (1, 2) for stage in ("labels", "train")
    ]
    out = place / "out"
    first, second = (args_of(out / f"round{n}/labels") for n in (1, 2))
    assert first["embeddings_folder"] == str(place / "given")
    assert "model_folder" not in first
    assert second["model_folder"] == str(out / "round1/train/model")
    assert "embeddings_folder" not in second
    trained = [args_of(out / f"round{n}/train") for n in (1, 2)]
    assert "init_from" not in trained[0]
    assert trained[1]["init_from"] == str(out / "round1/train/model")


def test_statistics_of_mfccs_are_made_once_as_a_start(
    run, script, place, monkeypatch
):
    made = []

    def extract(rows, folder):
        made.append(list(rows.ids()))
        write_embeddings(pathlib.Path(folder))

    monkeypatch.setattr(script.statistics, "extract_statistics", extract)
    for _ in range(2):
        run.func("--embeddings=mfcc", "--rounds=1", "--init=none")
    assert made == [["a", "b", "c", "d"]]
    labels = args_of(place / "out/round1/labels")
    folder = str(place / "out/start/mfcc/embeddings")
    assert labels["embeddings_folder"] == folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_folder=PLACE/model", "--init=none"], "two starts"),
        (["--init=start"], "previous or none"),
    ],
)
def test_a_start_from_embeddings_has_no_first_encoder(run, flags, message):
    with pytest.raises(ValueError, match=message):
        run.func("--embeddings=mfcc", *flags)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--train={changes: {loss: {temperature: 0}}}", "train: .*temperature"),
        ("--train={changes: {batch_size: four}}", "Stage train: batch_size"),
        (
            "--train={hparams: hparams/train_dlg_lc.yaml, "
            "changes: {view_sampler: {clean_views: False}}}",
            "clean",
        ),
        ("--labels={changes: {min_size: 0}}", "Stage labels: min_size"),
        ("--labels={changes: {clusterer: {referenc: 1}}}", "'referenc'"),
        (
            "--labels={changes: {clusterer: '!new:sklearn.cluster.DBSCAN "
            "{ep: 1}'}}",
            "Stage labels: --clusterer: 'ep' is not a key .* mean eps",
        ),
        (
            "--labels={changes: {clusterer: !new:sklearn.cluster.DBSCAN {}}}",
            "Write an object as text",
        ),
        (
            "--labels={changes: {clusterer: {method: two_stage}}}",
            "instead of method: two_stage, write the class: !new:",
        ),
        ("--verify={changes: {top_n: 0}}", "Stage verify: top_n"),
        ("--ssl={changes: {dev_every: 0}}", "Stage ssl: dev_every"),
        (
            "--ssl={changes: {encoder_file: campplus}}",
            "Stage train: The weights of stage ssl are not of this encoder",
        ),
        ("--rounds=0", "rounds must be a whole number"),
        ("--stop_growth=none", "stop_growth must be a number"),
    ],
)
def test_wrong_changes_are_found_before_the_first_stage(
    script, tmp_path, flag, message
):
    (tmp_path / "audio").mkdir()
    (tmp_path / "list.txt").write_text("1 a.wav a.wav\n0 a.wav b.wav\n")
    for name in "ab":
        (tmp_path / f"{name}.wav").touch()
    with pytest.raises(ValueError, match=message):
        script.main(
            [
                str(HPARAMS),
                f"--data_folder={tmp_path}/audio",
                f"--output_folder={tmp_path}/out",
                f"--trials=[{tmp_path}/list.txt]",
                flag,
            ]
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "lists, message",
    [
        (["list.txt"], "Stage verify: .*c.wav"),
        (["good.txt", "other/good.txt"], "would both be written to"),
    ],
)
def test_wrong_trial_lists_are_found_before_the_first_stage(
    script, tmp_path, lists, message
):
    (tmp_path / "other").mkdir()
    (tmp_path / "list.txt").write_text("1 a.wav a.wav\n0 a.wav c.wav\n")
    for folder in (tmp_path, tmp_path / "other"):
        for name in "ab":
            (folder / f"{name}.wav").touch()
        text = "1 a.wav a.wav\n0 a.wav b.wav\n"
        (folder / "good.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        script.main(
            [
                str(HPARAMS),
                f"--data_folder={tmp_path}",
                f"--output_folder={tmp_path}/out",
                f"--trials=[{', '.join(str(tmp_path / x) for x in lists)}]",
            ]
        )
    assert not (tmp_path / "out").exists()
