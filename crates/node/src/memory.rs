//! Giving memory back to the system.

use std::{io, ops::Range, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

/// Time between two looks at how busy the process is.
const PERIOD: Duration = Duration::from_secs(3);
/// Processor time of a period up to which the process is idle: 1 %.
const IDLE: Duration = PERIOD.checked_div(100).expect("a hundredth");

/// Gives back what was freed, now and each time that work has come to an end: to look for it takes locks that busy threads
/// need. Never completes.
pub async fn keep_small() {
    let mut was_busy = true;
    let mut is_busy = false;
    loop {
        if was_busy && !is_busy {
            give_back_freed();
        }
        let before = processor_time();
        sleep(PERIOD).await;
        was_busy = is_busy;
        is_busy = processor_time().saturating_sub(before) > IDLE;
    }
}

/// Gives back what was freed. The C library's allocator keeps freed memory for later, and after a crowd of connections
/// that is most of what a process has. Costs some milliseconds where there is much; elsewhere than with glibc it does
/// nothing.
pub fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no pointer, and synchronizes with all other threads that allocate.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the program's code and constants, and of its libraries': most of what is mapped of them was needed by the
/// start alone, or came in because the kernel maps the neighbours of a page along with it. What is needed again is mapped
/// again from the kernel's cache of the file. Elsewhere than on Linux it does nothing.
///
/// # Errors
/// When the list of mappings can't be read.
pub fn give_back_code() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    for range in unchanged_files(&std::fs::read_to_string("/proc/self/smaps")?) {
        // SAFETY: a private mapping of a file that this process can't write to, and of which it has no page of its own:
        // whatever is read there next is read from the file, and is the same. It fails where memory is locked, which is
        // to stay.
        unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(range.start), range.len(), libc::MADV_DONTNEED);
        }
    }
    Ok(())
}

/// What this process has used so far.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Where files are mapped privately and read-only, without a page that was changed before the mapping became so (by the
/// loader) or since (by a debugger).
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no such list"))]
fn unchanged_files(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(count) = line.strip_prefix("Anonymous:") {
            let is_unchanged = count.trim().trim_end_matches(" kB").parse() == Ok(0);
            found.extend(current.take().filter(|_| is_unchanged));
        } else if let Some(mapping) = mapped_file(line) {
            current = mapping;
        }
    }
    found
}

/// Reads the first line of a mapping; a mapping that isn't a private, read-only one of a file is nothing.
fn mapped_file(line: &str) -> Option<Option<Range<usize>>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let is_private_code_or_constants = matches!(words.next()?, "r-xp" | "r--p");
    let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    Some((is_private_code_or_constants && is_file && !range.is_empty()).then_some(range))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn resident(kind: &str) -> u64 {
        let status = fs::read_to_string("/proc/self/status").expect("the status");
        let line = status.lines().find_map(|line| line.strip_prefix(kind)).expect("the line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    #[test]
    fn what_was_freed_goes_back() {
        if !cfg!(target_env = "gnu") {
            return;
        }
        // Small pieces, every hundredth kept: the rest can't simply be cut off at the end.
        let mut pieces: Vec<Box<[u8; 4000]>> = (0..8_000).map(|_| Box::new([1; 4000])).collect();
        let full = resident("RssAnon:");
        let mut number = 0;
        pieces.retain(|_| {
            number += 1;
            number % 100 == 0
        });
        give_back_freed();
        assert!(resident("RssAnon:") + 20_000 < full, "{} of {full} KiB", resident("RssAnon:"));
        assert!(pieces.iter().all(|piece| piece[3999] == 1));
    }

    #[test]
    fn code_goes_back_and_comes_again() {
        if !cfg!(target_os = "linux") {
            return;
        }
        let before = resident("RssFile:");
        give_back_code().expect("the mappings");
        let after = resident("RssFile:");
        assert!(after + 500 < before, "{after} of {before} KiB");
        // Constants and code are what they were.
        assert_eq!(format!("{:.3}", std::f64::consts::PI), "3.142");
    }

    #[test]
    fn only_unchanged_private_mappings_of_files_that_cannot_be_written_are_let_go_of() {
        let mapping = |header: &str, anonymous: &str| {
            format!("{header}\nSize:  8 kB\nRss:  8 kB\nAnonymous:  {anonymous} kB\nVmFlags: rd mr\n")
        };
        let smaps = [
            mapping("1000-3000 r--p 00000000 fe:00 7    /usr/bin/a program", "0"),
            mapping("3000-5000 r-xp 00002000 fe:00 7    /usr/bin/a program", "0"),
            mapping("5000-7000 r--p 00004000 fe:00 7    /usr/bin/a program", "8"),
            mapping("7000-9000 rw-p 00006000 fe:00 7    /usr/bin/a program", "0"),
            mapping("9000-b000 r--s 00000000 fe:00 8    /var/shared", "0"),
            mapping("b000-d000 r--p 00000000 00:00 0    ", "0"),
            mapping("d000-f000 r-xp 00000000 00:00 0    [vdso]", "0"),
            mapping("f000-f000 r-xp 00000000 fe:00 9    /empty", "0"),
            "a line-of another-kind".to_owned(),
        ];
        assert_eq!(unchanged_files(&smaps.concat()), [0x1000..0x3000, 0x3000..0x5000]);
    }
}
