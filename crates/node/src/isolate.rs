//! Keeps one pod's programs out of another's: all of them have the same user, so the kernel alone would let one trace
//! the other, read its memory or take its open connections, and with a connection its identity.
//!
//! Landlock does it without privilege and for good: a program in a domain of its own can trace only programs that it
//! started itself, and (from Linux 6.12 on) signal only those. Nothing else is taken from it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// From here on a domain can be made without touching files: signals and abstract sockets are scoped.
const ABI_WITH_SCOPES: i64 = 6;
/// From here on moving a file between folders can be handled, and so allowed. Before, every domain forbids it, which
/// programs wouldn't survive.
const ABI_WITH_REFER: i64 = 2;

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
const ACCESS_FS_MAKE_BLOCK: u64 = 1 << 11;
const ACCESS_FS_REFER: u64 = 1 << 13;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1 << 0;
const SCOPE_SIGNAL: u64 = 1 << 1;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// True if the kernel can keep pods' programs apart.
pub fn is_available() -> bool {
    abi() >= ABI_WITH_REFER
}

/// Puts this process and everything it starts in a domain of its own. Nothing happens where the kernel can't. Needs
/// `CAP_SYS_ADMIN` in the user namespace, or `no_new_privs`. Called between fork and exec: system calls only, allocates
/// nothing.
pub(crate) fn isolate() -> io::Result<()> {
    let abi = abi();
    if abi >= ABI_WITH_SCOPES {
        let scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL;
        return enter(&ruleset(&RulesetAttributes { handled_access_fs: 0, handled_access_net: 0, scoped })?);
    }
    if abi < ABI_WITH_REFER {
        return Ok(());
    }
    // A domain has to handle something: two rights, both given back for all files.
    let handled_access_fs = ACCESS_FS_MAKE_BLOCK | ACCESS_FS_REFER;
    let ruleset = ruleset(&RulesetAttributes { handled_access_fs, handled_access_net: 0, scoped: 0 })?;
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let rule = PathBeneath { allowed_access: handled_access_fs, parent_fd: root.as_raw_fd() };
    // SAFETY: `rule` lives through the call and has the layout that its type demands; both descriptors are open.
    let added = unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_PATH_BENEATH, &raw const rule, 0_u32)
    };
    check(added)?;
    enter(&ruleset)
}

fn abi() -> i64 {
    // SAFETY: with this flag the call takes no attributes and only tells the version.
    unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttributes>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    }
}

fn ruleset(attributes: &RulesetAttributes) -> io::Result<OwnedFd> {
    // Older kernels refuse a size with fields they don't know, unless these are zero: they are.
    let size = size_of::<RulesetAttributes>();
    // SAFETY: `attributes` lives through the call, and `size` is its size.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::from_ref(attributes), size, 0_u32) };
    check(made)?;
    let number = i32::try_from(made).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn enter(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open; the call takes nothing else.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) })
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
