//! Files and folders to objects.

use std::{
    collections::HashSet,
    fs, io,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Diagnostic, Object, Severity, Source,
    codes::{self, Code},
    diagnostic::Findings,
    limits,
    read::{self, Sharing},
    validate,
};

/// Everything that was read, and everything to say about it.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The objects, in the order of their files and documents. Objects with errors in their meaning (but not in their
    /// form) are among them.
    pub objects: Vec<Object>,
    /// Policies whose form is wrong, reduced to what they are attached to (without selector and targets if not even that
    /// could be read). Each has a rejection.
    pub malformed: Vec<Object>,
    /// Errors, warnings and notes: of reading, and of [`validate()`](crate::validate). With an error among them the
    /// objects are not to be enforced.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads files, and the `*.yaml` and `*.yml` files in folders and the folders in them (sorted; hidden ones skipped), and
/// validates what they hold. A file that is reached twice is read once.
#[must_use]
pub fn load(paths: &[PathBuf]) -> Loaded {
    let mut walk = Walk::default();
    for path in paths {
        walk.given(path);
    }
    let mut loaded = Loaded { diagnostics: walk.diagnostics, ..Loaded::default() };
    let sources = walk.files.iter().map(|path| match read_file(path) {
        Ok(bytes) => source(&path.display().to_string(), bytes),
        Err(error) => Err(Box::new(unreadable(path, &error))),
    });
    loaded.read(sources.collect(), None);
    loaded
}

/// Reads YAML text as if it were a file of this name, and validates what it holds.
#[must_use]
pub fn load_text(name: &str, text: &str) -> Loaded {
    let mut loaded = Loaded::default();
    loaded.read(vec![source(name, text.as_bytes().to_vec())], None);
    loaded
}

/// The files that the given paths lead to.
#[derive(Default)]
struct Walk {
    files: Vec<PathBuf>,
    seen: HashSet<PathBuf>,
    entries: usize,
    full: bool,
    diagnostics: Vec<Diagnostic>,
}

// === impl Loaded ===

impl Loaded {
    /// True if any diagnostic is an error.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }

    /// Reads and validates the files that can be read. For a test, as told.
    fn read(&mut self, sources: Vec<Result<Arc<Source>, Box<Diagnostic>>>, sharing: Option<Sharing>) {
        let readable: Vec<_> = sources.iter().filter_map(|source| source.as_ref().ok()).collect();
        let sharing = sharing.unwrap_or_else(|| Sharing::of(&readable));
        let mut read = read::read(&readable, sharing).into_iter();
        let mut validated = Findings::default();
        for source in sources {
            match source {
                Err(diagnostic) => self.diagnostics.push(*diagnostic),
                Ok(_) => {
                    let Some(file) = read.next() else { continue };
                    self.objects.extend(file.objects);
                    self.malformed.extend(file.malformed);
                    self.diagnostics.extend(file.found);
                    validated.extend(file.validated);
                }
            }
        }
        validate::check_together(&self.objects, &mut validated);
        self.diagnostics.extend(validated.into_list());
    }
}

/// What bytes say, or why they say nothing.
fn source(name: &str, bytes: Vec<u8>) -> Result<Arc<Source>, Box<Diagnostic>> {
    if bytes.len() > limits::MAX_FILE_BYTES {
        let message = format!("the file is larger than {} bytes", limits::MAX_FILE_BYTES);
        return Err(Box::new(about_file(name, codes::TOO_LARGE, message, "split it")));
    }
    let text = String::from_utf8(bytes).map_err(|error| Box::new(not_utf8(name, &error)))?;
    // The mark is dropped from what positions count in: editors don't show it.
    let text = match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    };
    Ok(Arc::new(Source::new(name, text)))
}

// === impl Walk ===

impl Walk {
    /// A path that the user gave: a file of any name, or a folder.
    fn given(&mut self, path: &Path) {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                let (files, problems) = (self.files.len(), self.diagnostics.len());
                let reached_before = self.seen.len();
                self.folder(path, 0);
                // A folder given twice has files; they are just not new.
                let fresh = self.seen.len() > reached_before;
                if fresh && self.files.len() == files && self.diagnostics.len() == problems {
                    self.diagnostics.push(Diagnostic {
                        severity: Severity::Warning,
                        ..about_file(
                            &path.display().to_string(),
                            codes::NO_FILES,
                            "no `*.yaml` or `*.yml` file in this folder".to_owned(),
                            "check the path",
                        )
                    });
                }
            }
            Ok(_) => self.file(path),
            Err(error) => self.unreadable(path, &error),
        }
    }

    fn folder(&mut self, path: &Path, depth: usize) {
        if depth > limits::MAX_FOLDER_DEPTH {
            self.too_large(path, format!("folders are nested deeper than {}", limits::MAX_FOLDER_DEPTH));
            return;
        }
        if !self.is_new(path) {
            return;
        }
        let mut entries = Vec::new();
        let listed = fs::read_dir(path).and_then(|listing| {
            for entry in listing {
                entries.push(entry?.path());
                self.entries += 1;
                if self.entries > limits::MAX_FOLDER_ENTRIES {
                    break;
                }
            }
            Ok(())
        });
        if let Err(error) = listed {
            self.unreadable(path, &error);
            return;
        }
        if self.entries > limits::MAX_FOLDER_ENTRIES {
            self.too_large(path, format!("more than {} entries in the given folders", limits::MAX_FOLDER_ENTRIES));
            return;
        }
        entries.sort();
        for entry in entries.iter().filter(|entry| !is_hidden(entry)) {
            match fs::metadata(entry) {
                Ok(metadata) if metadata.is_dir() => self.folder(entry, depth + 1),
                // Pipes and devices aren't read unless named by the user.
                Ok(metadata) if metadata.is_file() && is_yaml(entry) => self.file(entry),
                Err(error) if is_yaml(entry) => self.unreadable(entry, &error),
                _ => {}
            }
        }
    }

    fn file(&mut self, path: &Path) {
        if !self.is_new(path) {
            return;
        }
        if self.files.len() >= limits::MAX_FILES {
            self.too_large(path, format!("more than {} files", limits::MAX_FILES));
            return;
        }
        self.files.push(path.to_owned());
    }

    /// False for what was reached before, also by another name.
    fn is_new(&mut self, path: &Path) -> bool {
        self.seen.insert(path.canonicalize().unwrap_or_else(|_| path.to_owned()))
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        self.diagnostics.push(unreadable(path, error));
    }

    /// Said once: the rest isn't read, and that is an error, so nothing is enforced half.
    fn too_large(&mut self, path: &Path, message: String) {
        if !std::mem::replace(&mut self.full, true) {
            let help = "give a folder that holds only the mesh's manifests";
            self.diagnostics.push(about_file(&path.display().to_string(), codes::TOO_LARGE, message, help));
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = limits::MAX_FILE_BYTES as u64 + 1;
    fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(path: &Path, error: &io::Error) -> Diagnostic {
    let help = match error.kind() {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "make it readable for the user who runs this",
        _ => "",
    };
    about_file(&path.display().to_string(), codes::UNREADABLE_FILE, format!("can't be read: {error}"), help)
}

fn not_utf8(name: &str, error: &std::string::FromUtf8Error) -> Diagnostic {
    let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    about_file(
        name,
        codes::NOT_UTF8,
        format!("not UTF-8: the first bad byte is on line {line}, offset {}", before.len()),
        "save the file as UTF-8",
    )
}

fn about_file(name: &str, code: Code, message: String, help: &str) -> Diagnostic {
    let mut diagnostic = Diagnostic::new(Severity::Error, code, message, help);
    diagnostic.file = Some(name.to_owned());
    diagnostic
}

#[cfg(test)]
mod tests;
