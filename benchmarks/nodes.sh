#!/usr/bin/env bash
# Several machines, imitated by processes on the loopback, without GPUs:
#   bash benchmarks/nodes.sh AUDIO OUT
# trains a tiny encoder with torchrun --standalone; again as two nodes, of which
# one is killed and both are started again; and once more by an elastic launcher
# that restarts after a kill. Then it makes labels with one process and with two
# nodes. Prints how long the survivors live, and compares weights and labels.
set -euo pipefail
audio=$(realpath "$1") out=$(realpath -m "$2")
cd "$(dirname "$0")/../recipes/AudioFolder/SSL"
export OMP_NUM_THREADS=1
python=${PYTHON:-python}
torchrun="$python -m torch.distributed.run"
small=(--data_folder "$audio" --batch_size 4 --number_of_epochs "${EPOCHS:-6}"
    --emb_dim 16 --embedding_model "{channels: [8, 8, 8, 8, 24]}"
    --noprogressbar --precision fp32)
yaml=hparams/train_moco.yaml
objective=(--objective "{queue_size: 20}")

train() { # launcher output_folder
    $1 train_ssl.py $yaml "${small[@]}" "${objective[@]}" --output_folder "$2"
}
node() { # rank port
    echo "$torchrun --nnodes 2 --node_rank $1 --nproc_per_node 1 --master_addr 127.0.0.1 --master_port $2"
}
epochs() { # output_folder
    if [ -f "$1/train_log.jsonl" ]; then wc -l <"$1/train_log.jsonl"; else echo 0; fi
}
wait_for_epoch() { # output_folder epoch
    until [ "$(epochs "$1")" -ge "$2" ]; do sleep 0.2; done
}
rank_of() { # pid of the worker that a launcher has started
    pgrep -P "$1" -f train_ssl.py | head -1
}

mkdir -p "$out"
echo "one machine, two processes"
train "$torchrun --standalone --nproc_per_node 2" "$out/one" >"$out/one.txt" 2>&1

echo "two nodes, one of which is killed"
train "$(node 0 29611)" "$out/two" >"$out/two_0.txt" 2>&1 & first=$!
train "$(node 1 29611)" "$out/two" >"$out/two_1.txt" 2>&1 & second=$!
wait_for_epoch "$out/two" 2
# the launcher and its process, as if the machine were gone
launcher=$(pgrep -P $second -f torch.distributed.run || echo $second)
victim=$(rank_of "$launcher")
kill -9 "$launcher" "$victim"
began=$(date +%s)
wait $first || true
echo "the other node ended $(($(date +%s) - began)) s later:"
grep -h "was lost" "$out/two_0.txt" || true
wait $second || true
train "$(node 0 29612)" "$out/two" >>"$out/two_0.txt" 2>&1 & first=$!
train "$(node 1 29612)" "$out/two" >>"$out/two_1.txt" 2>&1 & second=$!
wait $first $second

echo "an elastic launcher restarts after a kill"
train "$torchrun --standalone --nproc_per_node 2 --max_restarts 1" "$out/elastic" \
    >"$out/elastic.txt" 2>&1 & first=$!
wait_for_epoch "$out/elastic" 2
launcher=$(pgrep -P $first -f torch.distributed.run || echo $first)
kill -9 "$(rank_of "$launcher")"
wait $first

for run in two elastic; do
    cmp "$out/one/model/embedding_model.ckpt" "$out/$run/model/embedding_model.ckpt"
    echo "$run: the weights of one, bit by bit"
done

echo "labels"
label() { # launcher output_folder
    $1 make_pseudo_labels.py hparams/pseudo_labels.yaml --data_folder "$audio" \
        --model_folder "$out/one/model" --output_folder "$2" --noprogressbar \
        --device cpu \
        --clusterer "!new:sklearn.cluster.KMeans {n_clusters: 5, random_state: 1}" \
        --min_size 1
}
label "$python" "$out/labels_one" >"$out/labels_one.txt" 2>&1
label "$(node 0 29613)" "$out/labels_two" >"$out/labels_two_0.txt" 2>&1 & first=$!
label "$(node 1 29613)" "$out/labels_two" >"$out/labels_two_1.txt" 2>&1 & second=$!
wait $first $second
cmp "$out/labels_one/pseudo_labels.csv" "$out/labels_two/pseudo_labels.csv"
echo "two nodes: the labels of one process"
