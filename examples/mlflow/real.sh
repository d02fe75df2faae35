#!/usr/bin/env bash
# The example with a real MLflow server and the real OpenTelemetry exporter, in place of `ambit echo`.
#
# Needs python3 with venv, and curl. Makes a Python environment under target/ on first use. Run it by `cargo xtask real`,
# which builds `ambit` first, or set AMBIT to a binary.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
example=$root/examples/mlflow
ambit=${AMBIT:-$root/target/release/ambit}
environment=${MLFLOW_ENVIRONMENT:-$root/target/mlflow-environment}

if [ ! -x "$environment/bin/mlflow" ]; then
  python3 -m venv "$environment"
  "$environment/bin/pip" install --quiet mlflow opentelemetry-exporter-otlp-proto-http
fi

work=$(mktemp -d)
export XDG_RUNTIME_DIR=$work XDG_STATE_HOME=$work
mesh= forward=
finish() {
  [ -z "$forward" ] || kill "$forward" 2>/dev/null || true
  if [ -n "$mesh" ]; then kill "$mesh" 2>/dev/null || true; wait "$mesh" 2>/dev/null || true; fi
  rm -rf "$work"
}
trap finish EXIT

cat > "$work/server.yaml" <<YAML
apiVersion: apps/v1
kind: Deployment
metadata:
  name: mlflow
  namespace: kagenti-system
spec:
  selector:
    matchLabels: {app: mlflow}
  template:
    metadata:
      labels: {app: mlflow}
    spec:
      serviceAccountName: mlflow
      containers:
        - name: mlflow
          image: mlflow
          workingDir: "$work"
          command: ["$environment/bin/mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1"]
          args: ["--backend-store-uri", "sqlite:///$work/mlflow.db", "--artifacts-destination", "$work/artifacts", "--allowed-hosts", "*"]
          ports: [{containerPort: 5000}]
          readinessProbe:
            httpGet: {path: /health, port: 5000}
            periodSeconds: 1
YAML

tracing() {
  cat > "$work/tracing.yaml" <<YAML
apiVersion: ambit.dev/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
spec:
  extensionProviders:
    - name: mlflow
      opentelemetry:
        service: mlflow.kagenti-system.svc.cluster.local
        port: 5000
        http: {path: /v1/traces, headers: [{name: x-mlflow-experiment-id, value: "0"}]}
  defaultProviders: {tracing: [$1]}
YAML
}
tracing ""

step() { printf '\n== %s\n' "$1"; }
fail() { echo "FAILED: $1" >&2; sed 's/^/  mesh: /' "$work/up.log" >&2; exit 1; }
# Tries a command until it succeeds, for so many seconds.
await() { local seconds=$1; shift; for _ in $(seq $((seconds * 5))); do "$@" && return; sleep 0.2; done; return 1; }
collector=(-n kagenti-system --sa otel-collector)
ui=(-n kagenti-system --sa kagenti-ui)

step "the mesh, with a real mlflow server as the mlflow pod"
"$ambit" up -f "$example/mesh.yaml" -f "$example/complete-example.yaml" -f "$example/multiple-rules.yaml" -f "$work/server.yaml" -f "$work/tracing.yaml" \
  --access-log "$work/access.jsonl" > "$work/up.log" 2>&1 &
mesh=$!
await 10 grep -q '^ready' "$work/up.log" || fail "the mesh doesn't get ready"
grep '^ready' "$work/up.log"
await 90 grep -q 'mlflow.* is ready' "$work/up.log" || fail "mlflow doesn't get ready"
grep 'mlflow.* is ready' "$work/up.log"

step "the real exporter as otel-collector: the trace is taken"
trace=$("$ambit" run "${collector[@]}" -- "$environment/bin/python" "$example/exporter.py" http://mlflow:5000/v1/traces hello) || fail "the exporter was refused"
echo "trace $trace"

step "MLflow's search API, asked by kagenti-ui, shows it"
cat > "$work/search.json" <<JSON
{"locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}]}
JSON
"$ambit" run "${ui[@]}" -- curl -sS -X POST -H 'content-type: application/json' -d @"$work/search.json" \
  http://mlflow:5000/api/3.0/mlflow/traces/search > "$work/found.json" || fail "the search was refused"
grep -o "\"trace_id\":\"tr-$trace\"" "$work/found.json" || fail "the trace isn't there: $(cat "$work/found.json")"

step "the same exporter under another service account is refused"
if "$ambit" run -n kagenti-system --sa intruder -- "$environment/bin/python" "$example/exporter.py" http://mlflow:5000/v1/traces intruder > "$work/refused.log" 2>&1; then
  fail "the intruder's trace was taken"
fi
grep -iE 'failed to export|403|forbidden' "$work/refused.log" | head -2
"$ambit" run "${ui[@]}" -- curl -sS -X POST -H 'content-type: application/json' -d @"$work/search.json" \
  http://mlflow:5000/api/3.0/mlflow/traces/search > "$work/found.json"
[ "$(grep -o '"trace_id"' "$work/found.json" | wc -l)" = 1 ] || fail "there is more than one trace: $(cat "$work/found.json")"
echo "still one trace in MLflow"

step "MLflow's page through ambit forward, as kagenti-ui"
"$ambit" forward kagenti-system/mlflow:5000 --as kagenti-system/kagenti-ui --listen 127.0.0.1:0 > "$work/forward.log" 2>&1 &
forward=$!
await 5 grep -q 'http://' "$work/forward.log" || fail "the forward doesn't start: $(cat "$work/forward.log")"
address=$(grep -oE 'http://[0-9.:]+' "$work/forward.log" | head -1)
curl -sS "$address/" > "$work/page.html" || fail "the page doesn't come"
grep -o '<title>[^<]*</title>' "$work/page.html" || fail "that isn't MLflow's page: $(head -c 300 "$work/page.html")"
status=$(curl -sS -o "$work/delete.txt" -w '%{http_code}' -X DELETE "$address/") && [ "$status" = 403 ] || fail "DELETE as kagenti-ui gave $status"
echo "DELETE / as kagenti-ui: 403 $(cat "$work/delete.txt")"

step "the waypoint continues a trace, and MLflow shows its span"
tracing mlflow
await 10 grep -q 'the edit is in force' "$work/up.log" || fail "the edit isn't taken"
continued=5b8efff798038103d269b633813fc60c
"$ambit" run "${ui[@]}" -- curl -sS -o /dev/null -H "traceparent: 00-$continued-eee19b7ec3c1b174-01" http://mlflow:5000/health
shown() {
  "$ambit" run "${ui[@]}" -- curl -sS -X POST -H 'content-type: application/json' -d @"$work/search.json" \
    http://mlflow:5000/api/3.0/mlflow/traces/search | grep -o "\"trace_id\":\"tr-$continued\""
}
await 10 shown || fail "the waypoint's span isn't there"

step "decisions"
grep -c . "$work/access.jsonl"
grep '"deny"' "$work/access.jsonl" | head -2
echo "all as expected"
