#!/usr/bin/env bash
# The main job, end to end, on the real small model: two runs that differ in their constitution alone, and what that did.
set -euo pipefail
cd "$(dirname "$0")/.."
times=""
part() { # NAME COMMAND...: run a command under a heading and note how long it took
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
printf '\nWhat took how long:\n%s' "$times"
cat <<'END'

This is a model of 135 million parameters and a handful of prompts: look at the rates of copied and cut-off
revisions and at how often the judge follows the position before you read anything into a win rate.
Next: cai show demo-brief, cai show demo-harmless --stage evaluation, and your own constitution.
END
