//! What a workload's program may do: nothing that could leave its pod.
//!
//! The node process holds every capability over the mesh's namespaces. A program it starts must hold none that lets it
//! mark packets, change the redirection or reach into another process, or the mesh could be walked around.

use std::io;

use rustix::thread::CapabilitySet;

use crate::isolate::isolate;

/// What root's programs keep: the usual set of a container, without making devices, raw packets, network
/// administration or anything of the system.
const KEPT_BY_ROOT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::AUDIT_WRITE);

const HIGHEST_CAPABILITY: u32 = 63;

/// Gives up, for this process and everything it executes, what a workload's program must not have. Called between fork
/// and exec: makes system calls only, allocates nothing.
///
/// An ordinary user's program keeps nothing: file capabilities (`ping` has `cap_net_raw` on many systems) count inside
/// the user namespace as well, so the bounding set is emptied and no new privileges can be gained.
pub(crate) fn confine(uid: u32) -> io::Result<()> {
    // First: it needs a capability that goes with the next step, and from then on this process, which still holds the
    // node process's memory, could be traced by its equals.
    isolate()?;
    let kept = if uid == 0 { KEPT_BY_ROOT } else { CapabilitySet::empty() };
    for number in 0..=HIGHEST_CAPABILITY {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no capability of this number, nor any higher.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let mut sets = rustix::thread::capabilities(None)?;
    sets.inheritable = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, sets)?;
    if uid != 0 {
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}
