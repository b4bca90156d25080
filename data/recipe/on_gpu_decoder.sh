#!/usr/bin/env bash
# Synthesise one narrator's speech and some of many voices on a GPU, and teach nano's decoder to speak: on GPUs that
# on_gpu_speaking.sh leaves free, as soon as its speech tokenizer is there, or alone, with a tokenizer that is.
#
#   on_gpu_decoder.sh FOLDER SECONDS
#
# FOLDER holds decoder.tar.xz: narrator.jsonl and hearing.jsonl (kokoro_manifest.py --narrator, and as for nano's
# hearing), texts.jsonl ({id, text, say}), and the model to begin with, nano/. It is that of a running on_gpu_speaking.sh;
# or else it holds kokoro.tar.xz too, and TOKENIZER names the folder of a trained speech tokenizer. It ends SECONDS after
# it began. GPUS="2" are the numbers of its GPUs. HEARING_SECONDS=45 and then NARRATOR_SECONDS=300 are spent on synthesis,
# by SPEAKERS=7 processes a GPU; if either gives less than LEAST_HOURS=4, it gives up. DECODER holds more options of the
# runs, of which there is one on each GPU: FOLDER/decoder_2, … PYTHON has MLX and PyTorch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$1"
end=$(($(date +%s) + $2))
GPUS=(${GPUS:-2})
PYTHON=${PYTHON:-python3} HEARING_SECONDS=${HEARING_SECONDS:-45} NARRATOR_SECONDS=${NARRATOR_SECONDS:-300}
SPEAKERS=${SPEAKERS:-7} LEAST_HOURS=${LEAST_HOURS:-4}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

mkdir -p decoder
tar -xJf decoder.tar.xz -C decoder
if [ -n "${TOKENIZER:-}" ]; then
    mkdir -p speaking
    tar -xJf kokoro.tar.xz -C speaking
    ln -sfn "$(realpath "$TOKENIZER")" tokenizer
else # once the others speak, the synthesiser's files are complete
    until compgen -G "corpus/*.pcm" >/dev/null; do sleep 1; done
fi
. speaking/kokoro_setup.sh
# in short blocks: the encodings of 6000 sentences would fill the memory that a process may use
for part in hearing narrator; do
    seconds=${part^^}_SECONDS
    CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${GPUS[*]}") kokoro_speak $((SPEAKERS * ${#GPUS[@]})) "${!seconds}" \
        "decoder/$part" --manifest "decoder/$part.jsonl" --block 1500 --batch-frames 7000 >"decoder_$part.log" 2>&1 || true
    hours=$(($(cat "decoder/$part"/*.jsonl | grep -o '"n_samples": [0-9]*' | awk '{ n += $2 } END { print int(n / 57600000) }')))
    echo "$part: $hours hours"
    [ "$hours" -ge "$LEAST_HOURS" ] || { echo "$part: expected $LEAST_HOURS hours or more, see decoder_$part.log" >&2; exit 1; }
done

runs=()
for gpu in "${GPUS[@]}"; do
    CUDA_VISIBLE_DEVICES=$gpu "$PYTHON" -m stepaudio.train speaking --narrator decoder/narrator --hearing decoder/hearing \
        --texts decoder/texts.jsonl --tokenizer decoder/codes --wait 900 --start decoder/nano --out "decoder_$gpu" \
        --seed "$gpu" --seconds $((end - $(date +%s))) ${DECODER:-} >"decoder_$gpu.log" 2>&1 &
    runs+=($!)
done

# until the tokenizer's last word, or the net that stands in for a run that was not wanted or failed
until grep -qs '"event": "end"' tokenizer/log.jsonl || [ -L tokenizer ] || grep -qs "run tokenizer failed" all.log; do sleep 1; done
sleep 2
cp -rL tokenizer decoder/codes_aside && mv decoder/codes_aside decoder/codes
wait "${runs[@]}"
