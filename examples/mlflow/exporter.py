"""Sends one span with the real OpenTelemetry exporter, as an otel-collector would.

usage: exporter.py ENDPOINT NAME; prints the trace id and exits 0 if the server took it, 1 if it didn't. A bearer token in TOKEN
is sent along.
"""

import os
import sys

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult, SpanExporter

endpoint, name = sys.argv[1:3]
headers = {"x-mlflow-experiment-id": "0"}
if token := os.environ.get("TOKEN"):
    headers["authorization"] = f"Bearer {token}"
results = []


class Watched(SpanExporter):
    """Passes spans on and keeps what became of them."""

    def __init__(self):
        self.exporter = OTLPSpanExporter(endpoint=endpoint, headers=headers, timeout=10)

    def export(self, spans):
        results.append(self.exporter.export(spans))
        return results[-1]

    def shutdown(self):
        self.exporter.shutdown()


provider = TracerProvider(resource=Resource.create({"service.name": "otel-collector"}))
provider.add_span_processor(SimpleSpanProcessor(Watched()))
with provider.get_tracer("ambit-example").start_as_current_span(name) as span:
    trace_id = format(span.get_span_context().trace_id, "032x")
provider.shutdown()
print(trace_id)
sys.exit(0 if results == [SpanExportResult.SUCCESS] else 1)
