//! Who is at the other end of a unix socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Process and user id of the other end; process 0 is one outside of this process namespace.
pub(crate) fn credentials(socket: impl AsFd) -> io::Result<(i32, u32)> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).map_err(io::Error::other)?;
    // SAFETY: the two pointers are to live locals, and `length` says how long the first one is. (rustix has this call,
    // but its process ids can't be 0.)
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok((credentials.pid, credentials.uid)) } else { Err(io::Error::last_os_error()) }
}
