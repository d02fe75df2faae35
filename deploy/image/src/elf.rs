//! What must be known of a program before it goes into an image without libraries.

/// The image's name for the architecture of a program.
///
/// # Errors
/// It isn't a program for Linux of 64 bits, or it needs a loader that the image doesn't have.
pub(crate) fn architecture(program: &[u8]) -> Result<&'static str, String> {
    let foreign = || "the program isn't one for Linux of 64 bits".to_owned();
    // ELF, 64 bits, little-endian.
    if program.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return Err(foreign());
    }
    let architecture = match number(program, 18, 2).ok_or_else(foreign)? {
        62 => "amd64",
        183 => "arm64",
        other => return Err(format!("architecture {other} isn't known here")),
    };
    let (start, size, count) = (number(program, 32, 8), number(program, 54, 2), number(program, 56, 2));
    let (Some(start), Some(size), Some(count)) = (start, size, count) else { return Err(foreign()) };
    for index in 0..count {
        let at = start.checked_add(index * size).ok_or_else(foreign)?;
        let kind = number(program, at, 4).ok_or_else(foreign)?;
        // PT_INTERP names the loader of a program that isn't static.
        if kind == 3 {
            return Err("the program is linked dynamically, and the image has no libraries; build it with \
                        `-C target-feature=+crt-static`"
                .to_owned());
        }
    }
    Ok(architecture)
}

/// A number of these bytes, little-endian.
fn number(bytes: &[u8], at: u64, length: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let part = bytes.get(at..at.checked_add(length)?)?;
    Some(part.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}
