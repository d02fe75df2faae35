//! Events as lines.

use std::{
    fmt::{self, Debug, Write},
    time::SystemTime,
};

use serde_json::Value;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    registry::LookupSpan,
};

use super::{LogFormat, Timestamp};
use crate::limits::MAX_VALUE_BYTES;

/// Writes events.
pub(super) struct Events(pub(super) LogFormat);

/// Writes the fields of spans, so that [`Events`] can put them into its lines as they are.
pub(super) struct Fields(pub(super) LogFormat);

/// Our own modules, without which a target is as readable.
const OWN_PREFIX: &str = "ambit_ztunnel::";

/// The fields of one event or span, in their order.
#[derive(Default)]
struct Collected {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

// === impl Events ===

impl<S, N> FormatEvent<S, N> for Events
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut collected = Collected::default();
        event.record(&mut collected);
        let metadata = event.metadata();
        let spans = || context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root);
        match self.0 {
            LogFormat::Plain => {
                let target = metadata.target();
                let target = target.strip_prefix(OWN_PREFIX).unwrap_or(target);
                write!(writer, "{}\t{}\t{target}", Timestamp(SystemTime::now()), level(*metadata.level()))?;
                for span in spans() {
                    write!(writer, ":{}", span.name())?;
                    if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                        && !fields.is_empty()
                    {
                        write!(writer, "{{{fields}}}")?;
                    }
                }
                write!(writer, "\t{}", escaped(&collected.message))?;
                collected.plain(&mut writer, '\t')?;
                writeln!(writer)
            }
            LogFormat::Json => {
                let level = level(*metadata.level());
                let time = Timestamp(SystemTime::now());
                write!(writer, r#"{{"level":"{level}","time":"{time}","scope":{}"#, quoted(metadata.target()))?;
                write!(writer, r#","message":{}"#, quoted(&collected.message))?;
                collected.json(&mut writer, true)?;
                for span in spans() {
                    if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                        write!(writer, ",{}:{{{fields}}}", quoted(span.name()))?;
                    }
                }
                writeln!(writer, "}}")
            }
        }
    }
}

// === impl Fields ===

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut collected = Collected::default();
        fields.record(&mut collected);
        if !collected.message.is_empty() {
            let message = std::mem::take(&mut collected.message);
            collected.fields.insert(0, ("message", Value::String(message)));
        }
        match self.0 {
            LogFormat::Plain => collected.plain(&mut writer, ' '),
            LogFormat::Json => collected.json(&mut writer, false),
        }
    }

    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &tracing::span::Record<'_>) -> fmt::Result {
        if !current.fields.is_empty() {
            current.fields.push(if self.0 == LogFormat::Json { ',' } else { ' ' });
        }
        self.format_fields(current.as_writer(), fields)
    }
}

// === impl Collected ===

impl Collected {
    /// `key=value` pairs, `first` before the first of an event.
    fn plain(&self, writer: &mut impl Write, first: char) -> fmt::Result {
        for (place, (name, value)) in self.fields.iter().enumerate() {
            match (place, first) {
                (0, ' ') => {}
                (0, first) => writer.write_char(first)?,
                _ => writer.write_char(' ')?,
            }
            match value {
                Value::String(text) => write!(writer, "{name}={}", escaped(text))?,
                other => write!(writer, "{name}={other}")?,
            }
        }
        Ok(())
    }

    /// `"key":value` pairs; a comma before the first if something precedes.
    fn json(&self, writer: &mut impl Write, follows: bool) -> fmt::Result {
        for (place, (name, value)) in self.fields.iter().enumerate() {
            if follows || place > 0 {
                writer.write_char(',')?;
            }
            write!(writer, "{}:{value}", quoted(name))?;
        }
        Ok(())
    }

    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Collected {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Cut rather than refused: a line without its end says more than none.
        let _ = write!(Bounded(&mut text), "{value:?}");
        self.put(field, Value::String(text));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::String(value[..value.floor_char_boundary(MAX_VALUE_BYTES)].to_owned()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

/// Takes as much as a value may have.
struct Bounded<'t>(&'t mut String);

impl Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_VALUE_BYTES.saturating_sub(self.0.len());
        if text.len() > room {
            self.0.push_str(&text[..text.floor_char_boundary(room)]);
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Text without control characters: nobody can forge a line or move a terminal's cursor.
pub(crate) fn escaped(text: &str) -> impl fmt::Display {
    struct Escaped<'t>(&'t str);
    impl fmt::Display for Escaped<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.chars().try_for_each(|c| match c.is_control() {
                true => write!(f, "{}", c.escape_debug()),
                false => f.write_char(c),
            })
        }
    }
    Escaped(text)
}

fn quoted(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
        time::Duration,
    };

    use tracing_subscriber::{layer::SubscriberExt, registry};

    use crate::log::{LevelControl, LogFormat, LogWriter, log_layer};

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that this makes with these levels.
    fn lines(format: LogFormat, levels: &str, log: impl FnOnce(&LevelControl)) -> Vec<String> {
        let memory = Memory::default();
        let writer = LogWriter::start(memory.clone(), Arc::default()).expect("a thread");
        let levels = LevelControl::new(levels.parse().expect("levels"));
        let subscriber = registry().with(log_layer(format, levels.clone(), writer.clone()));
        tracing::subscriber::with_default(subscriber, || log(&levels));
        assert!(writer.flush(Duration::from_secs(5)));
        let text = String::from_utf8(memory.0.lock().expect("not poisoned").clone()).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn plain_lines_have_tabs_between_their_parts() {
        let lines = lines(LogFormat::Plain, "info", |_| {
            let _span = tracing::info_span!("inbound", id = 7, peer = %"a b").entered();
            tracing::info!(target: "ambit_ztunnel::proxy", count = 2, ok = true, "hello\nworld\u{1b}");
            tracing::debug!("not wanted");
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        let (time, rest) = line.split_once('\t').expect("a time");
        assert!(time.len() == 27 && time.ends_with('Z') && &time[10..11] == "T", "{time}");
        assert_eq!(rest, "info\tproxy:inbound{id=7 peer=a b}\thello\\nworld\\u{1b}\tcount=2 ok=true");
    }

    #[test]
    fn json_lines_are_objects_with_the_spans_in_them() {
        let lines = lines(LogFormat::Json, "info", |_| {
            let span = tracing::info_span!("inbound", id = 7, late = tracing::field::Empty).entered();
            span.record("late", "x\"y");
            tracing::warn!(target: "ambit_ztunnel::proxy", count = 2, error = ?Some("a\tb"), "hello\n\"world\"");
            tracing::error!(target: "bare", "alone");
        });
        let json: Vec<serde_json::Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect();
        let mut first = json[0].clone();
        first.as_object_mut().expect("an object").remove("time").expect("a time");
        let expected = serde_json::json!({
            "level": "warn", "scope": "ambit_ztunnel::proxy", "message": "hello\n\"world\"", "count": 2,
            "error": "Some(\"a\\tb\")", "inbound": {"id": 7, "late": "x\"y"},
        });
        assert_eq!(first, expected);
        assert_eq!((&json[1]["message"], &json[1]["level"]), (&"alone".into(), &"error".into()));
    }

    #[test]
    fn levels_change_while_it_runs() {
        let lines = lines(LogFormat::Plain, "warn", |levels| {
            let log = |number: u32| tracing::info!(target: "a", number, "line");
            log(1);
            levels.set(levels.current().extended("a=info").expect("levels"));
            log(2);
            levels.reset();
            log(3);
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].ends_with("number=2"), "{}", lines[0]);
    }

    #[test]
    fn long_values_are_cut() {
        let lines = lines(LogFormat::Json, "info", |_| tracing::info!(value = ?"ä".repeat(50_000), "long"));
        assert!(lines[0].len() < 2 * crate::limits::MAX_VALUE_BYTES, "{}", lines[0].len());
        serde_json::from_str::<serde_json::Value>(&lines[0]).expect("still an object");
    }
}
