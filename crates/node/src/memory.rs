//! Giving memory back to the system.

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
}
