//! Texts to objects, on several threads where there is much to read. What comes out is the same as on one.

use std::{
    num::NonZero,
    ops::Range,
    panic,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    Diagnostic, Object, Severity, Source,
    diagnostic::Findings,
    kinds::Reading,
    limits::{MAX_DOCUMENTS, MAX_NODES, MAX_OBJECTS_PER_FILE, MAX_THREADS, MIN_SHARED_BYTES, PART_BYTES},
    validate, yaml,
};

/// What a file holds, and what there is to say about it.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) objects: Vec<Object>,
    pub(crate) malformed: Vec<Object>,
    /// Of reading, by their places.
    pub(crate) found: Vec<Diagnostic>,
    /// Of validating each object by itself, in the order of the objects.
    pub(crate) validated: Vec<Diagnostic>,
}

/// How the work is shared out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharing {
    pub(crate) threads: usize,
    /// Size of the parts of files.
    pub(crate) part_bytes: usize,
}

/// Reads and validates files. Each comes out in its place.
pub(crate) fn read(sources: &[&Arc<Source>], sharing: Sharing) -> Vec<File> {
    let mut jobs = Vec::new();
    for &source in sources {
        let parts = match sharing.threads {
            0 | 1 => Vec::new(),
            _ => yaml::parts(source.text(), sharing.part_bytes),
        };
        match parts.as_slice() {
            [] | [_] => jobs.push(Job { source, part: None }),
            parts => jobs.extend(parts.iter().map(|part| Job { source, part: Some(part.clone()) })),
        }
    }
    let mut pieces = shared(&jobs, sharing.threads, Job::run).into_iter().zip(&jobs).peekable();
    let mut files = Vec::with_capacity(sources.len());
    for &source in sources {
        let mut of_file = Vec::new();
        while let Some((piece, _)) = pieces.next_if(|(_, job)| Arc::ptr_eq(job.source, source)) {
            of_file.push(piece);
        }
        files.push(joined(of_file).unwrap_or_else(|| whole(source)).into_file());
    }
    files
}

/// A file, or a part of one.
struct Job<'a> {
    source: &'a Arc<Source>,
    part: Option<Range<usize>>,
}

/// What came of a job.
#[derive(Default)]
struct Piece {
    file: File,
    documents: usize,
    nodes: usize,
    met: usize,
}

// === impl Sharing ===

impl Sharing {
    /// By how much there is to read, and how many processors there are.
    pub(crate) fn of(sources: &[&Arc<Source>]) -> Self {
        let bytes: usize = sources.iter().map(|source| source.text().len()).sum();
        let threads = if bytes < MIN_SHARED_BYTES {
            1
        } else {
            thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS)
        };
        Self { threads, part_bytes: PART_BYTES }
    }
}

// === impl Job ===

impl Job<'_> {
    /// Nothing if the file must be read in one.
    fn run(&self) -> Option<Piece> {
        match &self.part {
            None => Some(whole(self.source)),
            Some(part) => {
                let yaml::Part { documents, nodes } = yaml::parse_part(self.source.text(), part.clone())?;
                Some(Piece { nodes, ..objects(self.source, documents, Findings::default()) })
            }
        }
    }
}

fn whole(source: &Arc<Source>) -> Piece {
    let (documents, problems) = yaml::parse(source.text());
    let mut found = Findings::default();
    // The YAML's own problems first: were there too many diagnostics, these explain the others.
    for problem in problems {
        let diagnostic = Diagnostic::new(Severity::Error, problem.code, problem.message, problem.help);
        found.push(diagnostic.at(source.place(problem.span)));
    }
    objects(source, documents, found)
}

fn objects(source: &Arc<Source>, documents: Vec<yaml::Node>, mut found: Findings) -> Piece {
    let mut piece = Piece { documents: documents.len(), ..Piece::default() };
    let File { objects, malformed, .. } = &mut piece.file;
    let mut reading = Reading::new(source, objects, malformed, &mut found);
    documents.into_iter().for_each(|document| reading.document(document));
    piece.met = reading.met();
    piece.file.found = found.into_list();
    piece.file.validated = validate::check_each_and_mark(&mut piece.file.objects);
    piece
}

/// The pieces of one file as one. Nothing if they aren't what reading it in one gives: a limit on files may be passed.
fn joined(pieces: Vec<Option<Piece>>) -> Option<Piece> {
    let mut pieces = pieces.into_iter();
    let mut all = pieces.next()??;
    if pieces.len() == 0 {
        return Some(all);
    }
    let (mut found, mut validated) = (Findings::default(), Findings::default());
    found.extend(all.file.found);
    validated.extend(all.file.validated);
    for piece in pieces {
        let Piece { file, documents, nodes, met } = piece?;
        all.documents += documents;
        all.nodes += nodes;
        all.met += met;
        all.file.objects.extend(file.objects);
        all.file.malformed.extend(file.malformed);
        found.extend(file.found);
        validated.extend(file.validated);
    }
    all.file.found = found.into_list();
    all.file.validated = validated.into_list();
    let fits = all.documents <= MAX_DOCUMENTS && all.nodes <= MAX_NODES && all.met <= MAX_OBJECTS_PER_FILE;
    fits.then_some(all)
}

// === impl Piece ===

impl Piece {
    fn into_file(mut self) -> File {
        self.file.found.sort_by_key(|diagnostic| diagnostic.place.as_ref().map(|place| place.span.start));
        self.file
    }
}

/// Does the jobs on up to this many threads, this one among them; the results are in the order of the jobs.
fn shared<J: Sync, R: Send>(jobs: &[J], threads: usize, run: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let threads = threads.min(jobs.len());
    if threads <= 1 {
        return jobs.iter().map(run).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else { return done };
            done.push((index, run(job)));
        }
    };
    let mut done = thread::scope(|scope| {
        // Where no thread can be had the others do its part.
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let others: Vec<_> = (1..threads).filter_map(spawn).collect();
        let mut done = work();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}
