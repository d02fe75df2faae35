//! Which log lines are wanted, by target; changed while the program runs (`RUST_LOG`, `/logging`).

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use arc_swap::ArcSwap;
use tracing::{Metadata, level_filters::LevelFilter, subscriber::Interest};
use tracing_subscriber::layer::{Context, Filter};

use crate::limits::{MAX_LEVEL_DIRECTIVES, MAX_LEVEL_TEXT_BYTES};

/// A level for all targets, and others for some: `info,access=debug,dns=off`. A target's level also holds for targets
/// that start with its name; the longest name wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    default: LevelFilter,
    targets: BTreeMap<String, LevelFilter>,
}

/// A text that isn't levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseLevelsError {
    /// A part is neither a level nor `target=level`.
    Unreadable(String),
    /// There are too many parts, or the text is too long.
    TooLong,
}

/// The levels in force. Cheap to clone; all copies are the same.
#[derive(Clone, Debug)]
pub struct LevelControl {
    initial: Arc<Levels>,
    current: Arc<ArcSwap<Levels>>,
}

// === impl Levels ===

impl Levels {
    /// The level of this target.
    #[must_use]
    pub fn of(&self, target: &str) -> LevelFilter {
        let fitting = self.targets.iter().filter(|(name, _)| target.starts_with(name.as_str()));
        fitting.max_by_key(|(name, _)| name.len()).map_or(self.default, |(_, level)| *level)
    }

    fn max(&self) -> LevelFilter {
        self.targets.values().copied().chain([self.default]).max().unwrap_or(LevelFilter::OFF)
    }
}

impl Default for Levels {
    /// `info`
    fn default() -> Self {
        Self { default: LevelFilter::INFO, targets: BTreeMap::new() }
    }
}

impl FromStr for Levels {
    type Err = ParseLevelsError;

    fn from_str(text: &str) -> Result<Self, ParseLevelsError> {
        Self::default().extended(text)
    }
}

impl Levels {
    /// These levels with those of a text added; the text wins, and its later parts win over its earlier ones.
    ///
    /// # Errors
    /// When a part is neither a level nor `target=level`, or there is too much of it.
    pub fn extended(&self, text: &str) -> Result<Self, ParseLevelsError> {
        if text.len() > MAX_LEVEL_TEXT_BYTES {
            return Err(ParseLevelsError::TooLong);
        }
        let mut levels = self.clone();
        for part in text.split(',').map(str::trim) {
            let unreadable = || ParseLevelsError::Unreadable(part.to_owned());
            match part.split_once('=') {
                None => levels.default = level(part).ok_or_else(unreadable)?,
                Some((target, name)) => {
                    let target = Some(target.trim()).filter(|target| is_target(target)).ok_or_else(unreadable)?;
                    levels.targets.insert(target.to_owned(), level(name.trim()).ok_or_else(unreadable)?);
                }
            }
            if levels.targets.len() > MAX_LEVEL_DIRECTIVES {
                return Err(ParseLevelsError::TooLong);
            }
        }
        Ok(levels)
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (target, level) in &self.targets {
            write!(f, "{target}={level},")?;
        }
        write!(f, "{}", self.default)
    }
}

fn level(text: &str) -> Option<LevelFilter> {
    Some(match text.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::OFF,
        // `critical` and `warning` are istioctl's words.
        "error" | "critical" => LevelFilter::ERROR,
        "warn" | "warning" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

fn is_target(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b':' | b'.'))
}

// === impl ParseLevelsError ===

impl fmt::Display for ParseLevelsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(part) => write!(
                f,
                "`{}` is neither a level (off, error, warn, info, debug, trace) nor `target=level`",
                part.escape_debug()
            ),
            Self::TooLong => write!(
                f,
                "too many log levels; at most {MAX_LEVEL_DIRECTIVES} targets and {MAX_LEVEL_TEXT_BYTES} bytes are read"
            ),
        }
    }
}

impl std::error::Error for ParseLevelsError {}

// === impl LevelControl ===

impl LevelControl {
    /// Puts these levels in force; a [`reset`](Self::reset) returns to them.
    #[must_use]
    pub fn new(initial: Levels) -> Self {
        let initial = Arc::new(initial);
        Self { current: Arc::new(ArcSwap::new(Arc::clone(&initial))), initial }
    }

    /// The levels in force.
    #[must_use]
    pub fn current(&self) -> Arc<Levels> {
        self.current.load_full()
    }

    /// Puts other levels in force.
    pub fn set(&self, levels: Levels) {
        self.current.store(Arc::new(levels));
        tracing::callsite::rebuild_interest_cache();
    }

    /// Puts the first levels in force again.
    pub fn reset(&self) {
        self.set((*self.initial).clone());
    }

    /// The levels that a reset returns to.
    #[must_use]
    pub fn initial(&self) -> &Levels {
        &self.initial
    }

    /// True if lines of this target and level are wanted.
    #[must_use]
    pub fn is_enabled(&self, target: &str, level: tracing::Level) -> bool {
        level <= self.current.load().of(target)
    }
}

impl<S> Filter<S> for LevelControl {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.is_enabled(metadata.target(), *metadata.level())
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.is_enabled(metadata.target(), *metadata.level()) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.current.load().max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_levels_and_texts_that_are_not() {
        let cases = [
            ("debug", Some("debug")),
            ("INFO", Some("info")),
            ("warning", Some("warn")),
            ("critical", Some("error")),
            ("off", Some("off")),
            ("access=debug", Some("access=debug,info")),
            ("access=debug,off", Some("access=debug,off")),
            ("debug,access=off,access=trace", Some("access=trace,debug")),
            (" info , ambit_ztunnel::dns = debug ", Some("ambit_ztunnel::dns=debug,info")),
            // The form that istioctl's help shows is refused, as the original does.
            ("access:debug", None),
            ("", None),
            (",", None),
            ("info,", None),
            ("verbose", None),
            ("=debug", None),
            ("access=", None),
            ("access=loud", None),
            ("a b=debug", None),
            ("[span{field=1}]=debug", None),
        ];
        for (text, expected) in cases {
            let parsed = text.parse::<Levels>().map(|levels| levels.to_string());
            assert_eq!(parsed.as_deref().ok(), expected, "{text:?}: {parsed:?}");
        }
        let many: Vec<_> = (0..=MAX_LEVEL_DIRECTIVES).map(|i| format!("t{i}=info")).collect();
        assert_eq!(many.join(",").parse::<Levels>(), Err(ParseLevelsError::TooLong));
        assert_eq!("x".repeat(MAX_LEVEL_TEXT_BYTES + 1).parse::<Levels>(), Err(ParseLevelsError::TooLong));
    }

    #[test]
    fn what_levels_print_is_what_they_read() {
        let levels: Levels = "warn,a=debug,a::b=off".parse().expect("levels");
        assert_eq!(levels.to_string().parse(), Ok(levels));
    }

    #[test]
    fn the_longest_name_wins() {
        let levels: Levels = "warn,a=debug,a::b=off".parse().expect("levels");
        let cases = [
            ("a", LevelFilter::DEBUG),
            ("a::c", LevelFilter::DEBUG),
            ("a::b", LevelFilter::OFF),
            ("a::b::c", LevelFilter::OFF),
            ("b", LevelFilter::WARN),
        ];
        for (target, level) in cases {
            assert_eq!(levels.of(target), level, "{target}");
        }
    }

    #[test]
    fn levels_change_and_return() {
        let control = LevelControl::new("info,dns=off".parse().expect("levels"));
        let copy = control.clone();
        copy.set(control.current().extended("access=debug").expect("levels"));
        assert!(control.is_enabled("access", tracing::Level::DEBUG));
        assert!(!control.is_enabled("dns", tracing::Level::ERROR));
        control.reset();
        assert_eq!(copy.current().to_string(), "dns=off,info");
    }
}
