//! Why a mesh can't have namespaces of its own, and what to change.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::process::{Pid, WaitOptions};

/// What was being done when the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Starting the node process.
    Fork = 1,
    /// Making the user namespace.
    UserNamespace = 2,
    /// Writing its user and group map.
    IdMap = 3,
    /// Making the network namespace.
    NetworkNamespace = 4,
    /// Making the mount namespace.
    MountNamespace = 5,
    /// Making the process namespace.
    ProcessNamespace = 6,
}

/// The mesh's namespaces couldn't be made.
#[derive(Debug)]
pub struct LaunchError {
    /// What was being done.
    pub step: Step,
    /// What the kernel said.
    pub source: io::Error,
    /// What to change, found from the kernel's settings.
    pub advice: Option<String>,
}

// === impl Step ===

impl Step {
    fn from_code(code: u8) -> Self {
        match code {
            2 => Self::UserNamespace,
            3 => Self::IdMap,
            4 => Self::NetworkNamespace,
            5 => Self::MountNamespace,
            6 => Self::ProcessNamespace,
            _ => Self::Fork,
        }
    }

    fn limit(self) -> Option<&'static str> {
        match self {
            Self::UserNamespace => Some("user.max_user_namespaces"),
            Self::NetworkNamespace => Some("user.max_net_namespaces"),
            Self::MountNamespace => Some("user.max_mnt_namespaces"),
            Self::ProcessNamespace => Some("user.max_pid_namespaces"),
            Self::Fork | Self::IdMap => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fork => "start the node process",
            Self::UserNamespace => "make a user namespace",
            Self::IdMap => "map the user into its user namespace",
            Self::NetworkNamespace => "make a network namespace",
            Self::MountNamespace => "make a mount namespace",
            Self::ProcessNamespace => "make a process namespace",
        })
    }
}

// === impl LaunchError ===

impl LaunchError {
    pub(super) fn local(step: Step, source: io::Error) -> Self {
        Self { step, source, advice: None }
    }
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel refuses to {}: {}", self.step, self.source)?;
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for LaunchError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

const REPORT_BYTES: usize = 5;

/// From the process that failed to the host process.
pub(super) fn write_report(report: &OwnedFd, step: Step, error: &io::Error) {
    let mut bytes = [0; REPORT_BYTES];
    bytes[0] = step as u8;
    bytes[1..].copy_from_slice(&error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
    // A host process that is gone needs no report.
    let _ = rustix::io::write(report, &bytes);
}

/// Waits until the node process is in place: the pipe closes without a word, or says what failed.
pub(super) fn read_report(report: OwnedFd, launcher: Pid) -> Result<(), LaunchError> {
    let mut bytes = Vec::with_capacity(REPORT_BYTES);
    fs::File::from(report)
        .take(REPORT_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(|source| LaunchError::local(Step::Fork, source))?;
    let Ok([step, number @ ..]) = <[u8; REPORT_BYTES]>::try_from(bytes) else {
        return Ok(());
    };
    let _ = rustix::process::waitpid(Some(launcher), WaitOptions::empty());
    let step = Step::from_code(step);
    let source = io::Error::from_raw_os_error(i32::from_ne_bytes(number));
    let advice = advice(step, &source, |name| fs::read_to_string(setting_path(name)).ok());
    Err(LaunchError { step, source, advice })
}

fn setting_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

/// What to change, from what the kernel said and how it is set.
fn advice(step: Step, source: &io::Error, read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let is = |name: &str, value: &str| read(name).is_some_and(|text| text.trim() == value);
    let change = |why: &str, name: &str, value: &str| {
        Some(format!("{why} (`{name}`): allow it with `sudo sysctl -w {name}={value}`, or run as root"))
    };
    match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => {
            let name = step.limit()?;
            change("the limit of namespaces is reached", name, "15000")
        }
        Some(libc::EPERM | libc::EACCES) => {
            if is("kernel.unprivileged_userns_clone", "0") {
                return change(
                    "user namespaces are switched off for ordinary users",
                    "kernel.unprivileged_userns_clone",
                    "1",
                );
            }
            if is("kernel.apparmor_restrict_unprivileged_userns", "1") {
                return change(
                    "AppArmor restricts user namespaces of ordinary users",
                    "kernel.apparmor_restrict_unprivileged_userns",
                    "0",
                );
            }
            if is("user.max_user_namespaces", "0") {
                return change("user namespaces are switched off", "user.max_user_namespaces", "15000");
            }
            Some(
                "no kernel setting forbids it, so a container's or service's seccomp profile does: in Docker use \
                 `--security-opt seccomp=unconfined` or `--privileged`"
                    .to_owned(),
            )
        }
        Some(libc::EINVAL | libc::ENOSYS) => Some(
            "the kernel is built without this kind of namespace (`CONFIG_NAMESPACES`, `CONFIG_USER_NS`)".to_owned(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(setting: (&'static str, &'static str)) -> impl Fn(&str) -> Option<String> {
        move |name| (name == setting.0).then(|| format!("{}\n", setting.1))
    }

    #[test]
    fn each_refusal_names_its_setting() {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        for (name, value, wanted) in [
            ("kernel.unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
            (
                "kernel.apparmor_restrict_unprivileged_userns",
                "1",
                "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            ),
            ("user.max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=15000"),
            ("kernel.none", "1", "seccomp"),
        ] {
            let advice = advice(Step::UserNamespace, &refused, with((name, value))).expect("there is advice");
            assert!(advice.contains(wanted), "{advice}");
        }
    }

    #[test]
    fn a_reached_limit_names_its_own_setting() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let advice = advice(Step::NetworkNamespace, &full, |_| None).expect("there is advice");
        assert!(advice.contains("user.max_net_namespaces"), "{advice}");
    }
}
