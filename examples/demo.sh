#!/usr/bin/env bash
# Two runs on the small real model that differ only in their constitution, and their comparison; then one principle is
# reworded, and only its share of the calls is made anew.
set -euo pipefail
cd "$(dirname "$0")/.."
times=""
part() { # NAME COMMAND...: run a command under a heading and record its time
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n$ %s\n' "$name" "$*"
  "$@"
  times+=$(printf '  %-26s %4d s' "$name" $((SECONDS - start)))$'\n'
}

part "set-up" make --no-print-directory setup
export PATH="$PWD/.venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=
part "the model" cai models prepare
part "run A: brief" cai run examples/demo.yaml --name demo-brief
part "run B: detailed" cai run examples/demo.yaml --name demo-detailed --set constitution=detailed
part "comparison" cai compare demo-brief demo-detailed

mkdir -p runs
sed 's/at most two short sentences\. Keep only the most important point\..*/one short sentence of at most eight words. Keep only the point./; /^      the second sentence\.$/d' \
  constitutions/brief.yaml > runs/demo-shorter.yaml
part "one principle reworded" cai constitution diff constitutions/brief.yaml runs/demo-shorter.yaml || true
part "run C: reworded" cai run examples/demo.yaml --name demo-shorter --set constitution=runs/demo-shorter.yaml --set 'train=[]' --set seeds=1
part "its comparison" cai compare demo-brief demo-shorter
printf '\nTimes:\n%s' "$times"
cat <<'END'

This model has 135 million parameters. As a judge it answers by position: its verdicts flip with the order of the answers.
That is why the demo labels no pairs, trains on the revisions themselves, and measures length, which needs no judge.
Next: cai show demo-brief, cai report demo-detailed, and a run with your own prompts: cai init prompts.txt
END
