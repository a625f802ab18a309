#!/usr/bin/env bash
# Two runs on the small real model that differ only in their constitution, and their comparison.
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
part "run A: brief" cai run examples/quickstart.yaml --name demo-brief
part "run B: harmless" cai run examples/quickstart.yaml --name demo-harmless --set constitution=constitutions/harmless.yaml
part "comparison" cai compare demo-brief demo-harmless
printf '\nTimes:\n%s' "$times"
cat <<'END'

This model has 135 million parameters, and a run has 24 prompts: look at the copied and truncated revisions and at the
position bias of the judge before you read anything into a win rate.
Next: cai show demo-brief, cai show demo-harmless --stage evaluation, and your own constitution:
      cai constitution new mine.yaml
END
