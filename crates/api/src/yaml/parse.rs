//! Text to documents. Everything is bounded: nesting, documents, and values, with what aliases expand to counted.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    ops::Range,
};

use saphyr_parser::{Event, Input, Parser, ScalarStyle, ScanError, Span, Tag};

use super::{Entry, Node, Value, ascii::Ascii, scalar};
use crate::{
    codes::{self, Code},
    limits::{MAX_DOCUMENTS, MAX_NESTING, MAX_NODES},
    text::quoted,
};

/// What is wrong with the YAML itself.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: Code,
    pub(crate) span: Range<usize>,
    pub(crate) message: String,
    pub(crate) help: String,
}

/// What a text may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialect {
    /// `!Name value` is read as `Name: value`; otherwise tags are refused.
    pub(crate) tags: bool,
    /// Most values, expanded aliases counted.
    pub(crate) max_nodes: usize,
}

const MANIFEST: Dialect = Dialect { tags: false, max_nodes: MAX_NODES };

/// Keys of a mapping that are compared one by one; a set is made for more.
const MAX_COMPARED_KEYS: usize = 16;

/// Reads all documents of a manifest without a byte order mark. After a problem that ends the parse, the documents
/// before it are still returned.
pub(crate) fn parse(text: &str) -> (Vec<Node>, Vec<Problem>) {
    parse_dialect(text, MANIFEST)
}

/// [`parse`], for what isn't a manifest.
pub(crate) fn parse_dialect(text: &str, dialect: Dialect) -> (Vec<Node>, Vec<Problem>) {
    if let Some((at, found)) = forbidden(text) {
        return (Vec::new(), vec![forbidden_character(at, found)]);
    }
    let builder = build(Builder::new(text, 0, dialect), text);
    (builder.documents, builder.problems)
}

/// The documents of a part of a text, and how many values they hold.
pub(crate) struct Part {
    pub(crate) documents: Vec<Node>,
    pub(crate) nodes: usize,
}

/// Reads a part of a text that begins where a document does, and ends where one does ([`super::parts`]). Nothing if there
/// is anything to say about it, or a document in it that might not end there: then the whole must be read in one.
pub(crate) fn parse_part(text: &str, range: Range<usize>) -> Option<Part> {
    let part = text.get(range.clone())?;
    if forbidden(part).is_some() {
        return None;
    }
    let builder = build(Builder::new(part, range.start, MANIFEST), part);
    // The text of a root may go on after `---`, as the parser reads it.
    let is_closed = |root: &Node| matches!(root.value, Value::Mapping(_) | Value::Sequence(_) | Value::Null);
    let is_clear = builder.problems.is_empty() && builder.documents.iter().all(is_closed);
    is_clear.then_some(Part { documents: builder.documents, nodes: builder.nodes })
}

/// Positions are counted in characters; where those are bytes, a cheaper input does.
fn build<'t>(builder: Builder<'t>, text: &'t str) -> Builder<'t> {
    if text.is_ascii() {
        builder.read(Parser::new(Ascii::new(text)))
    } else {
        builder.read(Parser::new_from_iter(text.chars()))
    }
}

fn forbidden(text: &str) -> Option<(usize, char)> {
    // Without a way out of the loop it takes many bytes at a time.
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r');
    if text.bytes().fold(true, |plain, byte| plain & is_plain(byte)) {
        return None;
    }
    text.char_indices().find(|(_, c)| is_forbidden(*c))
}

/// Characters that YAML forbids in a stream. NUL matters most: the parser takes it for the end of the file, so what
/// follows it would be ignored without a word.
fn is_forbidden(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}') || matches!(c, '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

fn forbidden_character(at: usize, found: char) -> Problem {
    Problem {
        code: codes::BAD_YAML,
        span: at..at + found.len_utf8(),
        message: format!("not well-formed YAML: control character U+{:04X}", u32::from(found)),
        help: "remove it; inside double quotes it can be written as an escape".to_owned(),
    }
}

struct Builder<'t> {
    text: &'t str,
    dialect: Dialect,
    /// Where the text begins in its file.
    base: usize,
    /// Byte offset of each character; empty for ASCII, where they are the same.
    offsets: Vec<u32>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Built>,
    nodes: usize,
    documents: Vec<Node>,
    problems: Vec<Problem>,
}

/// A mapping or sequence that isn't closed yet.
struct Frame {
    span: Range<usize>,
    /// The name in its tag, where tags are read.
    variant: Option<String>,
    anchor: usize,
    height: usize,
    size: usize,
    content: Content,
}

enum Content {
    Sequence(Vec<Node>),
    Mapping { entries: Vec<Entry>, keys: Keys, pending: Option<(String, Range<usize>)> },
}

/// The keys of a mapping with many entries; empty for one with few.
#[derive(Default)]
struct Keys(HashSet<String>);

/// A finished node with the figures that bound what an alias to it may cost.
#[derive(Clone)]
struct Built {
    node: Node,
    height: usize,
    size: usize,
}

// === impl Builder ===

impl<'t> Builder<'t> {
    fn new(text: &'t str, base: usize, dialect: Dialect) -> Self {
        let offsets = if text.is_ascii() {
            Vec::new()
        } else {
            text.char_indices().map(|(at, _)| u32::try_from(at).unwrap_or(u32::MAX)).collect()
        };
        Self {
            text,
            dialect,
            base,
            offsets,
            stack: Vec::new(),
            anchors: HashMap::new(),
            nodes: 0,
            documents: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn read(mut self, mut parser: Parser<'_, impl Input>) -> Self {
        while let Some(next) = parser.next_event() {
            match next {
                Ok((Event::StreamEnd, _)) => break,
                Ok((event, span)) => {
                    if let Err(problem) = self.accept(event, span) {
                        self.problems.push(problem);
                        break;
                    }
                }
                Err(error) => {
                    let problem = self.ill_formed(&error);
                    self.problems.push(problem);
                    break;
                }
            }
        }
        self
    }

    fn accept(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let bytes = self.bytes(span);
        match event {
            Event::DocumentStart(_) => {
                // INVARIANT: anchors don't outlive their document.
                self.anchors.clear();
                self.stack.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, &bytes)?;
                let variant = self.variant(tag.as_deref());
                let tag = tag.filter(|_| variant.is_none());
                let (value, written) = value(text, style, tag.as_deref(), &bytes)?;
                let built = Built { node: Node { span: bytes, value }, height: 1, size: 1 };
                self.finish(built.tagged(variant), anchor, written.as_deref())
            }
            Event::SequenceStart(anchor, tag) => self.open(bytes, anchor, tag.as_deref(), Content::sequence()),
            Event::MappingStart(anchor, tag) => self.open(bytes, anchor, tag.as_deref(), Content::mapping()),
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.alias(anchor, &bytes),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn open(&mut self, span: Range<usize>, anchor: usize, tag: Option<&Tag>, content: Content) -> Result<(), Problem> {
        self.count(1, &span)?;
        let variant = self.variant(tag);
        let tag = tag.filter(|_| variant.is_none());
        if let Some(tag) = tag.filter(|tag| !(tag.is_yaml_core_schema() && matches!(&*tag.suffix, "map" | "seq"))) {
            return Err(unsupported(format!("the tag `{}`", quoted(&tag.to_string())), span));
        }
        if let Some(Frame { content: Content::Mapping { pending: None, .. }, .. }) = self.stack.last() {
            return Err(unsupported("a key that isn't text".to_owned(), span));
        }
        if self.stack.len() >= MAX_NESTING {
            return Err(too_deep(span));
        }
        self.stack.push(Frame { span, variant, anchor, height: 0, size: 1, content });
        Ok(())
    }

    /// The name in a tag of the file's own, where such are read.
    fn variant(&self, tag: Option<&Tag>) -> Option<String> {
        tag.filter(|tag| self.dialect.tags && tag.handle == "!").map(|tag| tag.suffix.clone())
    }

    fn close(&mut self) -> Result<(), Problem> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let value = match frame.content {
            Content::Sequence(items) => Value::Sequence(items),
            Content::Mapping { entries, .. } => Value::Mapping(entries),
        };
        let node = Node { span: frame.span, value };
        let built = Built { node, height: frame.height + 1, size: frame.size };
        self.finish(built.tagged(frame.variant), frame.anchor, None)
    }

    fn alias(&mut self, anchor: usize, span: &Range<usize>) -> Result<(), Problem> {
        let Some(target) = self.anchors.get(&anchor) else {
            return Err(unsupported("an alias inside the value it stands for".to_owned(), span.clone()));
        };
        if matches!(self.stack.last(), Some(Frame { content: Content::Mapping { pending: None, .. }, .. })) {
            return Err(unsupported("an alias as a key".to_owned(), span.clone()));
        }
        if self.stack.len() + target.height > MAX_NESTING {
            return Err(too_deep(span.clone()));
        }
        // Counted before it is copied, so that nested aliases can't multiply.
        let size = target.size;
        self.count(size, span)?;
        let Some(target) = self.anchors.get(&anchor).cloned() else { return Ok(()) };
        self.finish(target, 0, None)
    }

    /// Puts a finished node where it belongs: a key, a value, an item, or the root.
    fn finish(&mut self, built: Built, anchor: usize, written: Option<&str>) -> Result<(), Problem> {
        if anchor != 0 {
            // Anchored values are copied once here; nested anchors would otherwise copy for free.
            self.count(built.size, &built.node.span)?;
            self.anchors.insert(anchor, built.clone());
        }
        let Some(frame) = self.stack.last_mut() else {
            if self.documents.len() >= MAX_DOCUMENTS {
                return Err(Problem {
                    code: codes::TOO_LARGE,
                    span: built.node.span,
                    message: format!("more than {MAX_DOCUMENTS} documents in one file"),
                    help: "split the file".to_owned(),
                });
            }
            self.documents.push(built.node);
            return Ok(());
        };
        frame.size += built.size;
        match &mut frame.content {
            Content::Sequence(items) => {
                frame.height = frame.height.max(built.height);
                items.push(built.node);
            }
            Content::Mapping { entries, keys, pending } => match pending.take() {
                Some((key, key_span)) => {
                    frame.height = frame.height.max(built.height);
                    if keys.add(&key, entries) {
                        entries.push(Entry { key, key_span, value: built.node });
                    } else {
                        self.problems.push(duplicate_key(&key, key_span));
                    }
                }
                None => *pending = Some(key(built.node, written)?),
            },
        }
        Ok(())
    }

    /// Right for a whole text; of a part nobody looks at what the problems are.
    fn ill_formed(&self, error: &ScanError) -> Problem {
        let at = self.byte(error.marker().index());
        let mut help = "look at the indentation, quotes and brackets here and on the line before".to_owned();
        if let Some(open) = self.stack.last() {
            let what = if matches!(open.content, Content::Sequence(_)) { "list" } else { "mapping" };
            let line = self.text[..open.span.start - self.base].matches('\n').count() + 1;
            help.push_str(&format!("; the {what} that starts on line {line} is still open"));
        }
        Problem {
            code: codes::BAD_YAML,
            span: at..at,
            message: format!("not well-formed YAML: {}", error.info()),
            help,
        }
    }

    fn count(&mut self, nodes: usize, span: &Range<usize>) -> Result<(), Problem> {
        self.nodes = self.nodes.saturating_add(nodes);
        let max_nodes = self.dialect.max_nodes;
        if self.nodes <= max_nodes {
            return Ok(());
        }
        Err(Problem {
            code: codes::TOO_LARGE,
            span: span.clone(),
            message: format!("more than {max_nodes} values in one file, with aliases expanded"),
            help: "split the file, or write out what the aliases repeat".to_owned(),
        })
    }

    fn bytes(&self, span: Span) -> Range<usize> {
        let start = self.byte(span.start.index());
        let end = self.byte(span.end.index()).max(start);
        // Where a scalar runs to the next token, the blanks between are not part of it.
        let length = self.text.get(start..end).map_or(0, |written| written.trim_end().len());
        self.base + start..self.base + start + length
    }

    fn byte(&self, character: usize) -> usize {
        if self.offsets.is_empty() {
            return character.min(self.text.len());
        }
        self.offsets.get(character).map_or(self.text.len(), |at| *at as usize)
    }
}

// === impl Built ===

impl Built {
    /// `!Name value` as `Name: value`.
    fn tagged(self, variant: Option<String>) -> Self {
        let Some(key) = variant else { return self };
        let Self { node, height, size } = self;
        let span = node.span.clone();
        let value = Value::Mapping(vec![Entry { key, key_span: span.clone(), value: node }]);
        Self { node: Node { span, value }, height: height + 1, size: size + 1 }
    }
}

// === impl Content ===

impl Content {
    fn sequence() -> Self {
        Self::Sequence(Vec::new())
    }

    fn mapping() -> Self {
        Self::Mapping { entries: Vec::new(), keys: Keys::default(), pending: None }
    }
}

// === impl Keys ===

impl Keys {
    /// False if the key is already among the entries.
    fn add(&mut self, key: &str, entries: &[Entry]) -> bool {
        if entries.len() < MAX_COMPARED_KEYS {
            return entries.iter().all(|entry| entry.key != key);
        }
        if self.0.is_empty() {
            self.0.extend(entries.iter().map(|entry| entry.key.clone()));
        }
        self.0.insert(key.to_owned())
    }
}

fn key(node: Node, written: Option<&str>) -> Result<(String, Range<usize>), Problem> {
    match (node.value, written) {
        (Value::Text(text), _) => Ok((text, node.span)),
        // `1:` and `on:` are keys of that text.
        (Value::Bool(_) | Value::Int(_) | Value::Float(_), Some(text)) => Ok((text.to_owned(), node.span)),
        _ => Err(unsupported("a key that isn't text".to_owned(), node.span)),
    }
}

/// The value of a scalar; of one that isn't text also what is written.
fn value<'t>(
    text: Cow<'t, str>,
    style: ScalarStyle,
    tag: Option<&Tag>,
    span: &Range<usize>,
) -> Result<(Value, Option<Cow<'t, str>>), Problem> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => {}
        Some(tag) => return Err(unsupported(format!("the tag `{}`", quoted(&tag.to_string())), span.clone())),
        None if style == ScalarStyle::Plain => {
            if let Some(value) = scalar::resolve(&text) {
                return Ok((value, Some(text)));
            }
        }
        None => {}
    }
    Ok((Value::Text(text.into_owned()), None))
}

fn unsupported(what: String, span: Range<usize>) -> Problem {
    Problem {
        code: codes::UNSUPPORTED_YAML,
        span,
        message: format!("{what} is not supported in manifests"),
        help: "write plain mappings, lists and values, as `kubectl get -o yaml` does".to_owned(),
    }
}

fn too_deep(span: Range<usize>) -> Problem {
    Problem {
        code: codes::TOO_LARGE,
        span,
        message: format!("nested deeper than {MAX_NESTING} levels"),
        help: "no known kind is nested that deep; look for a missing line break or bracket".to_owned(),
    }
}

fn duplicate_key(key: &str, span: Range<usize>) -> Problem {
    Problem {
        code: codes::DUPLICATE_KEY,
        span,
        message: format!("the key `{}` is already in this mapping", quoted(key)),
        help: "keep one of the two; YAML doesn't say which one would count".to_owned(),
    }
}
