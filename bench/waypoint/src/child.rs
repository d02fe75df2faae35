//! A process of ours that says where it listens, and ends with its parent.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
};

/// It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

/// Starts this program with these arguments and gives the line that it says when it is ready.
pub(crate) fn start(place: &Path, arguments: &[String]) -> Result<(Running, String), String> {
    let failed = |error: &dyn std::fmt::Display| format!("`{}` doesn't start: {error}", arguments.join(" "));
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let child = Command::new(program)
        .arg(place)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let mut running = Running::new(child);
    let output = running.child.stdout.take().ok_or_else(|| failed(&"it has no output"))?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).map_err(|error| failed(&error))?;
    if line.is_empty() {
        return Err(failed(&"it ended"));
    }
    Ok((running, line.trim_end().to_owned()))
}

/// In the child: says that it is ready, and ends when the parent has gone.
pub(crate) fn ready(line: &str) {
    println!("{line}");
    // Nothing comes; the end does.
    let _ = std::io::stdin().read(&mut [0]);
}

// === impl Running ===

impl Running {
    pub(crate) fn new(child: Child) -> Self {
        Self { child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It holds nothing that must be saved. If it has ended already there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
