//! What is wrong (or noteworthy) in a user's file: where, in which object and field, and what to do about it.

use std::{fmt, ops::Range, sync::Arc};

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteSpanContents, SourceCode, SourceSpan};
use serde::{Serialize, Serializer};

use crate::{ObjectRef, codes::Code, limits::MAX_DIAGNOSTICS};

/// How much a diagnostic matters. Orders from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing, for example an ignored kind.
    Note,
    /// Probably not what was meant; nothing stops.
    Warning,
    /// Refused: `ambit up` doesn't start with it, and an edit with it isn't applied.
    Error,
}

/// The text of a file, shared by everything that points into it.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    name: String,
    text: String,
    /// Byte offset of each line's first character.
    lines: Vec<usize>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The bytes meant, within `source`'s text.
    pub span: Range<usize>,
    /// The file.
    pub source: Arc<Source>,
}

/// One finding about the user's configuration.
///
/// `Display` is one line, `file:line:column: error[CODE] object: field: message`; [`render`] draws the file's lines
/// with a caret; `Serialize` gives JSON with `severity, code, message, help, object, field, file, line, column`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", OneLine(self))]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// Stable code, for example `AMB0101`.
    pub code: Code,
    /// What is wrong: lower case, names in backticks.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// The object it is about.
    pub object: Option<ObjectRef>,
    /// The field in that object, for example `spec.targetRefs[0].name`.
    pub field: Option<String>,
    /// The file as the user named it. Present without a `place` when the file couldn't be read.
    pub file: Option<String>,
    /// Where in the file.
    pub place: Option<Place>,
}

/// Diagnostics as they are found, bounded without ever hiding that there was an error.
#[derive(Default)]
pub(crate) struct Findings {
    list: Vec<Diagnostic>,
    has_error: bool,
}

/// Draws diagnostics with the lines of the file they point to, one after another.
#[must_use]
pub fn render(diagnostics: &[Diagnostic], color: bool) -> String {
    let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(RENDER_WIDTH).with_links(false);
    let mut out = String::new();
    for (index, diagnostic) in diagnostics.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if handler.render_report(&mut out, &Drawn(diagnostic)).is_err() {
            out.push_str(&diagnostic.to_string());
        }
        if !out.ends_with('\n') {
            out.push('\n');
        }
    }
    out
}

/// Columns that a rendered diagnostic is wrapped to.
const RENDER_WIDTH: usize = 110;

struct OneLine<'a>(&'a Diagnostic);

/// A diagnostic whose `Display` leaves out what the drawing shows anyway (file, line, code).
#[derive(Debug)]
struct Drawn<'a>(&'a Diagnostic);

// === impl Severity ===

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

// === impl Source ===

impl Source {
    /// A file's name, as the user gave it, and text.
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        Self { name: name.into(), text, lines }
    }

    /// The name as the user gave it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text, without a byte order mark.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The place of these bytes; out-of-range and mid-character offsets are moved to the nearest character.
    #[must_use]
    pub fn place(self: &Arc<Self>, span: Range<usize>) -> Place {
        let start = self.text.floor_char_boundary(span.start);
        let end = self.text.floor_char_boundary(span.end.max(start));
        // Of a value over several lines only the first is pointed at.
        let end = self.text[start..end].find(['\n', '\r']).map_or(end, |length| start + length);
        let line = self.lines.partition_point(|line_start| *line_start <= start);
        let line_start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or_default();
        let column = self.text[line_start..start].chars().count() + 1;
        Place {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
            span: start..end,
            source: Arc::clone(self),
        }
    }
}

impl SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn miette::SpanContents<'a> + 'a>, miette::MietteError> {
        let contents = self.text.read_span(span, before, after)?;
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            contents.data(),
            *contents.span(),
            contents.line(),
            contents.column(),
            contents.line_count(),
        )))
    }
}

// === impl Diagnostic ===

impl Diagnostic {
    /// A diagnostic without object, field, file or place; set those fields as they are known.
    pub fn new(severity: Severity, code: Code, message: impl Into<String>, help: impl Into<String>) -> Self {
        let help = help.into();
        Self {
            severity,
            code,
            message: message.into(),
            help: (!help.is_empty()).then_some(help),
            object: None,
            field: None,
            file: None,
            place: None,
        }
    }

    /// True for [`Severity::Error`].
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// What is wrong, with the field it is wrong in, for those who don't see the file.
    #[must_use]
    pub fn reason(&self) -> String {
        match &self.field {
            Some(field) => format!("{field}: {}", self.message),
            None => self.message.clone(),
        }
    }

    /// Line, from 1.
    #[must_use]
    pub fn line(&self) -> Option<u32> {
        self.place.as_ref().map(|place| place.line)
    }

    /// Column in characters, from 1.
    #[must_use]
    pub fn column(&self) -> Option<u32> {
        self.place.as_ref().map(|place| place.column)
    }

    /// Points it at a place.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.file = Some(place.source.name().to_owned());
        self.place = Some(place);
        self
    }

    fn subject(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

// === impl Findings ===

impl Findings {
    /// True if another one of this severity would be kept; ask before a costly one is made.
    pub(crate) fn wants(&self, severity: Severity) -> bool {
        self.list.len() < MAX_DIAGNOSTICS || severity == Severity::Error && !self.has_error
    }

    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        if self.wants(diagnostic.severity) {
            self.has_error |= diagnostic.is_error();
            self.list.push(diagnostic);
        }
    }

    /// True if nothing was found.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Pushes what was found elsewhere, bounded in the same way: what is kept is what would be, had it been found here.
    pub(crate) fn extend(&mut self, found: Vec<Diagnostic>) {
        found.into_iter().for_each(|diagnostic| self.push(diagnostic));
    }

    pub(crate) fn into_list(self) -> Vec<Diagnostic> {
        self.list
    }
}

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let diagnostic = self.0;
        if let Some(file) = &diagnostic.file {
            write!(f, "{file}:")?;
            if let Some(place) = &diagnostic.place {
                write!(f, "{}:{}:", place.line, place.column)?;
            }
            f.write_str(" ")?;
        }
        write!(f, "{}[{}] ", diagnostic.severity, diagnostic.code)?;
        diagnostic.subject(f)
    }
}

impl Serialize for Diagnostic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Flat<'a> {
            severity: Severity,
            code: &'static str,
            message: &'a str,
            help: &'a Option<String>,
            object: &'a Option<ObjectRef>,
            field: &'a Option<String>,
            file: &'a Option<String>,
            line: Option<u32>,
            column: Option<u32>,
        }
        Flat {
            severity: self.severity,
            code: self.code,
            message: &self.message,
            help: &self.help,
            object: &self.object,
            field: &self.field,
            file: &self.file,
            line: self.line(),
            column: self.column(),
        }
        .serialize(serializer)
    }
}

impl miette::Diagnostic for Diagnostic {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Note => miette::Severity::Advice,
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.place.as_ref().map(|place| &*place.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.place.as_ref()?;
        let label = LabeledSpan::new_with_span(None, place.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}

// === impl Drawn ===

impl fmt::Display for Drawn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(file), None) = (&self.0.file, &self.0.place) {
            write!(f, "{file}: ")?;
        }
        self.0.subject(f)
    }
}

impl std::error::Error for Drawn<'_> {}

impl miette::Diagnostic for Drawn<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.code()
    }

    fn severity(&self) -> Option<miette::Severity> {
        self.0.severity()
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        miette::Diagnostic::help(self.0)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.source_code()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.0.labels()
    }
}
