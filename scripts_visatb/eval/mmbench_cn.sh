#!/usr/bin/env bash
# MMBench-CN, dev split: circular accuracy, and the sheet for the server.
#
# Command:  CKPT=outputs/final DATA_DIR=playground/data/eval bash scripts_visatb/eval/mmbench_cn.sh
# Cost:     as mmbench.sh.
# Result:   a line in OUTPUT_DIR/summary_MODEL.json and on standard output; other variables: common.sh.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb/eval" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

zeroshot mmbench_cn
