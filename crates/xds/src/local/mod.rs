//! Resources from a file in the format of ztunnel's `LOCAL_XDS` (`spec/ztunnel.md` 10), for proxies without a control plane.
//!
//! A file is taken whole or not at all: an unknown field, a value that isn't one or a name that stands twice is an error that
//! names file, line and field. What ztunnel drops silently (a malformed address block, an unset pattern) is refused here:
//! dropped, it would widen a policy.

mod file;
mod policy;
mod service;
mod value;
mod workload;

use std::{collections::HashSet, fmt, io::Read, path::Path};

use ambit_api::{Diagnostic, Document};
use prost::Message;

use crate::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaResponse, Resource, channel,
    limits::{MAX_LOCAL_BYTES, MAX_LOCAL_RESOURCES},
};
use file::File;

/// Reads a file.
///
/// # Errors
/// What is wrong with it, as far as it could be read.
pub fn load(path: &Path) -> Result<Vec<DeltaResponse>, LocalError> {
    load_text(&path.display().to_string(), &read(path)?)
}

/// Reads a file's text, for [`load_text`] and [`content`].
///
/// # Errors
/// When it isn't there, isn't text, or can't be read.
pub fn read(path: &Path) -> Result<String, LocalError> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_LOCAL_BYTES as u64 + 1).read_to_string(&mut text))
        .map_err(|error| LocalError::Unreadable { name: path.display().to_string(), reason: error.to_string() })?;
    Ok(text)
}

/// What such a text says, as it says it: an object with the lists `workloads`, `services` and `policies`.
///
/// # Errors
/// When it is no YAML. Whether it makes sense [`load_text`] tells.
pub fn content(name: &str, text: &str) -> Result<serde_json::Value, LocalError> {
    let mut content = Document::<serde_json::Value>::read(name, text).map_err(LocalError::Wrong)?.object;
    if let Some(fields) = content.as_object_mut() {
        for list in ["workloads", "services", "policies"] {
            fields.entry(list).or_insert_with(|| serde_json::Value::Array(Vec::new()));
        }
    }
    Ok(content)
}

/// Reads text (YAML or JSON) as if it were a file of this name. The deltas are to be applied together: policies come before
/// the workloads that name them.
///
/// # Errors
/// What is wrong with it.
pub fn load_text(name: &str, text: &str) -> Result<Vec<DeltaResponse>, LocalError> {
    if text.len() > MAX_LOCAL_BYTES {
        let reason = format!("it is larger than {MAX_LOCAL_BYTES} bytes");
        return Err(LocalError::Unreadable { name: name.to_owned(), reason });
    }
    let document = Document::<File>::read(name, text).map_err(LocalError::Wrong)?;
    let mut found = Found { document: &document, names: HashSet::new(), problems: Vec::new() };
    let File { workloads, services, policies } = &document.object;
    if workloads.len() + services.len() + policies.len() > MAX_LOCAL_RESOURCES {
        found.error("", format!("more than {MAX_LOCAL_RESOURCES} resources"), "a control plane serves that many");
        return Err(LocalError::Wrong(found.problems));
    }
    let mut authorizations = DeltaResponse { type_url: AUTHORIZATION_TYPE.into(), ..DeltaResponse::default() };
    for (index, policy) in policies.iter().enumerate() {
        found.add(&mut authorizations, &format!("policies[{index}]"), policy.convert());
    }
    let mut addresses = DeltaResponse { type_url: ADDRESS_TYPE.into(), ..DeltaResponse::default() };
    for (index, service) in services.iter().enumerate() {
        found.add(&mut addresses, &format!("services[{index}]"), service.convert(workloads));
    }
    for (index, workload) in workloads.iter().enumerate() {
        found.add(&mut addresses, &format!("workloads[{index}]"), workload.convert());
    }
    if found.problems.is_empty() { Ok(vec![authorizations, addresses]) } else { Err(LocalError::Wrong(found.problems)) }
}

/// Puts what was read in force.
///
/// # Errors
/// When the proxy is gone. The inner result is what it made of the resources.
pub async fn serve(
    deltas: Vec<DeltaResponse>,
    sink: &channel::Sender,
) -> Result<Result<(), channel::Nack>, channel::Closed> {
    sink.push(deltas).await
}

/// Why a file isn't used.
#[derive(Clone, Debug)]
pub enum LocalError {
    /// It can't be read.
    Unreadable {
        /// The file.
        name: String,
        /// Why.
        reason: String,
    },
    /// What it says can't be used; at least one.
    Wrong(Vec<Diagnostic>),
}

/// What is wrong with a value: its field below the object, what, and what to do.
#[derive(Debug)]
struct Problem {
    field: String,
    message: String,
    help: &'static str,
}

/// Resources as they are found.
struct Found<'a> {
    document: &'a Document<File>,
    names: HashSet<(String, String)>,
    problems: Vec<Diagnostic>,
}

// === impl Found ===

impl Found<'_> {
    fn add<M: Message>(&mut self, delta: &mut DeltaResponse, field: &str, converted: Result<(String, M), Problem>) {
        match converted {
            Ok((name, message)) => {
                if self.names.insert((delta.type_url.clone(), name.clone())) {
                    delta.resources.push(Resource::digested(name, message.encode_to_vec()));
                } else {
                    self.error(field, format!("there is already a `{name}`"), "keep one of the two");
                }
            }
            Err(Problem { field: below, message, help }) => self.error(&format!("{field}.{below}"), message, help),
        }
    }

    fn error(&mut self, field: &str, message: String, help: &'static str) {
        if self.problems.len() < ambit_api::limits::MAX_DIAGNOSTICS {
            self.problems.push(self.document.error(field, message, help));
        }
    }
}

// === impl Problem ===

impl Problem {
    fn new(field: impl Into<String>, message: impl Into<String>, help: &'static str) -> Self {
        Self { field: field.into(), message: message.into(), help }
    }

    /// Below this field.
    fn under(self, parent: &str) -> Self {
        let field = if self.field.is_empty() { parent.to_owned() } else { format!("{parent}.{}", self.field) };
        Self { field, ..self }
    }
}

// === impl LocalError ===

impl LocalError {
    /// What is wrong, with places; none if the file couldn't be read.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            Self::Unreadable { .. } => &[],
            Self::Wrong(diagnostics) => diagnostics,
        }
    }
}

impl fmt::Display for LocalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { name, reason } => write!(f, "can't read `{name}`: {reason}"),
            Self::Wrong(diagnostics) => {
                for (index, diagnostic) in diagnostics.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "\n" };
                    write!(f, "{separator}{diagnostic}")?;
                    if let Some(help) = &diagnostic.help {
                        write!(f, "; {help}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for LocalError {}

#[cfg(test)]
mod tests;
