//! PeerAuthentication (`spec/control-plane.md` 3.2).

use super::{Check, policy};
use crate::{PeerAuthentication, codes, text::quoted};

/// Checks a whole PeerAuthentication.
pub(super) fn check(check: &mut Check<'_>, object: &PeerAuthentication) {
    if let Some(selector) = &object.spec.selector {
        policy::check_selector(check, selector);
    }
    let Some(ports) = &object.spec.port_level_mtls else { return };
    let field = "spec.portLevelMtls";
    if object.match_labels().is_none() {
        let message = "a PeerAuthentication for a namespace or the mesh can't set the mode of single ports";
        check.error(codes::PORTS_WITHOUT_SELECTOR, field, message, "add a `selector` with labels, or remove it");
    }
    if ports.is_empty() {
        check.error(codes::EMPTY_PORTS, field, "`portLevelMtls` is empty", "remove it, or add a port");
    }
    for port in ports.keys() {
        // One spelling for each port: two would leave open which one counts.
        let number = port.parse::<u16>().ok().filter(|number| *number != 0 && number.to_string() == *port);
        if number.is_none() {
            let message = format!("`{}` is not a port", quoted(port));
            check.error(codes::BAD_PORT, &format!("{field}[{port}]"), message, "use 1 to 65535");
        }
    }
}
