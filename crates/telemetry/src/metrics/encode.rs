//! Writing families of counters and gauges.

use std::{
    fmt::{self, Display, Write},
    sync::Arc,
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder},
    metrics::MetricType,
};

/// Istio's word for a label that has no value.
pub(super) const UNKNOWN: &str = "unknown";

/// Writes a family of counters, if it has any; `_total` is added to the name.
pub(super) fn counter<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    values
        .try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_counter::<NoLabels, _, u64>(&value, None))
}

/// Writes a family of gauges, if it has any.
pub(super) fn gauge<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, i64)>,
) -> fmt::Result {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    values.try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
}

/// Writes one label; special characters of the value are escaped.
pub(super) fn label(encoder: &mut LabelSetEncoder<'_>, name: &str, value: impl Display) -> fmt::Result {
    let mut label = encoder.encode_label();
    let mut key = label.encode_label_key()?;
    key.write_str(name)?;
    let mut text = key.encode_label_value()?;
    write!(text, "{value}")?;
    text.finish()
}

pub(super) fn or_unknown(value: &Option<Arc<str>>) -> &str {
    value.as_deref().filter(|value| !value.is_empty()).unwrap_or(UNKNOWN)
}

/// No labels at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoLabels;

impl EncodeLabelSet for NoLabels {
    fn encode(&self, _: &mut LabelSetEncoder<'_>) -> fmt::Result {
        Ok(())
    }
}

/// Writes one gauge without labels.
pub(super) fn single_gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// Writes one counter without labels; `_total` is added to the name.
pub(super) fn single_counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)?.encode_counter::<NoLabels, _, u64>(&value, None)
}
