//! Links, addresses and routes over rtnetlink.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_bindings::traits::{NetlinkRequest, Pusher};
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
use netlink_bindings::{rt_addr, rt_link, rt_route, rt_rule};
use netlink_socket2::NetlinkSocket;

/// A change of the network that the kernel refused.
#[derive(Debug)]
pub struct LinkError {
    /// What was being done.
    what: String,
    /// What the kernel said, its own explanation included.
    reason: String,
    /// The error number, for those who'd tell one from another.
    source: io::Error,
    /// What to change.
    advice: Option<&'static str>,
}

const LOAD_LINKS: &str = "it lacks a kind of link: load it with `sudo modprobe -a bridge veth`, or use a kernel built with \
                          `CONFIG_BRIDGE` and `CONFIG_VETH`";

/// An rtnetlink socket of the namespace it was opened in, wherever it is used from.
pub(crate) struct Links {
    socket: NetlinkSocket,
}

const AF_INET: u8 = libc::AF_INET as u8;

// Attribute numbers that the bindings don't have (linux/if_link.h, linux/veth.h).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

const UP: u32 = libc::IFF_UP as u32;

// === impl Links ===

impl Links {
    /// Opens the socket in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, LinkError> {
        let mut links = Self { socket: NetlinkSocket::new() };
        // The library opens its socket at the first request, so that has to happen here.
        links.index("lo")?;
        Ok(links)
    }

    /// The interface's index.
    pub(crate) fn index(&mut self, name: &str) -> Result<u32, LinkError> {
        let mut request = rt_link::Request::new().op_getlink_do(&rt_link::Ifinfomsg::new());
        request.encode().push_ifname_bytes(name.as_bytes());
        let what = || format!("find link `{name}`");
        let mut reply = self.socket.request(&request).map_err(|error| LinkError::io(what(), error))?;
        let (header, _) = reply.recv_one().map_err(|error| LinkError::reply(what(), error))?;
        u32::try_from(header.ifi_index)
            .map_err(|_| LinkError::io(what(), io::Error::other("the kernel gave a negative index")))
    }

    /// Whether the interface exists.
    pub(crate) fn exists(&mut self, name: &str) -> Result<bool, LinkError> {
        match self.index(name) {
            Ok(_) => Ok(true),
            Err(error) if error.source.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Brings the interface up.
    pub(crate) fn up(&mut self, index: u32) -> Result<(), LinkError> {
        let header = rt_link::Ifinfomsg {
            ifi_index: i32::try_from(index).unwrap_or(i32::MAX),
            ifi_flags: UP,
            ifi_change: UP,
            ..Default::default()
        };
        self.acknowledged(|| format!("bring link {index} up"), &rt_link::Request::new().op_setlink_do(&header))
    }

    /// Makes a bridge, up, whose hardware address is that of `ip`. Left to itself it would have the lowest of its ports'
    /// and change it as they come and go, and what others send to the old one would be lost for seconds.
    pub(crate) fn add_bridge(&mut self, name: &str, ip: Ipv4Addr) -> Result<u32, LinkError> {
        let header = rt_link::Ifinfomsg { ifi_flags: UP, ifi_change: UP, ..Default::default() };
        let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&header);
        request
            .encode()
            .push_ifname_bytes(name.as_bytes())
            .push_address(&hardware_address(ip))
            .nested_linkinfo()
            .push_kind(c"bridge");
        self.acknowledged(|| format!("make bridge `{name}`"), &request)?;
        self.index(name)
    }

    /// Makes a veth pair: `name` here, up, as a port of `bridge`; `peer` in the network namespace `other`, down, since
    /// the kernel brings no end up before both exist. The hardware address of `peer` is that of `ip`: whoever knew the
    /// last pod of that address reaches the next one at once.
    pub(crate) fn add_veth(
        &mut self,
        name: &str,
        bridge: u32,
        (peer, ip): (&str, Ipv4Addr),
        other: i32,
    ) -> Result<(), LinkError> {
        let header = rt_link::Ifinfomsg { ifi_flags: UP, ifi_change: UP, ..Default::default() };
        let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&header);
        {
            let mut info = request
                .encode()
                .push_ifname_bytes(name.as_bytes())
                .push_master(bridge)
                .nested_linkinfo()
                .push_kind(c"veth");
            let buffer = info.as_vec_mut();
            let data = push_nested_header(buffer, IFLA_INFO_DATA);
            let end = push_nested_header(buffer, VETH_INFO_PEER);
            buffer.extend_from_slice(rt_link::Ifinfomsg::new().as_slice());
            push_header(buffer, IFLA_IFNAME, u16::try_from(peer.len() + 1).unwrap_or(u16::MAX));
            buffer.extend_from_slice(peer.as_bytes());
            buffer.push(0);
            push_header(buffer, IFLA_ADDRESS, 6);
            buffer.extend_from_slice(&hardware_address(ip));
            push_header(buffer, IFLA_NET_NS_FD, 4);
            buffer.extend_from_slice(&other.to_ne_bytes());
            finalize_nested_header(buffer, end);
            finalize_nested_header(buffer, data);
        }
        self.acknowledged(|| format!("make link `{name}`"), &request)
    }

    /// Removes a link; one that's gone already is fine.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), LinkError> {
        let mut request = rt_link::Request::new().op_dellink_do(&rt_link::Ifinfomsg::new());
        request.encode().push_ifname_bytes(name.as_bytes());
        match self.acknowledged(|| format!("remove link `{name}`"), &request) {
            Err(error) if error.source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Gives a link an IPv4 address.
    pub(crate) fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix_length: u8) -> Result<(), LinkError> {
        let header = rt_addr::Ifaddrmsg {
            ifa_family: AF_INET,
            ifa_prefixlen: prefix_length,
            ifa_index: index,
            ..Default::default()
        };
        let mut request = rt_addr::Request::new().set_create().set_excl().op_newaddr_do(&header);
        request.encode().push_local(IpAddr::V4(address)).push_address(IpAddr::V4(address));
        self.acknowledged(|| format!("give link {index} the address {address}/{prefix_length}"), &request)
    }

    /// The addresses of all links that mean something beyond the link itself.
    pub(crate) fn addresses(&mut self) -> Result<Vec<IpAddr>, LinkError> {
        let what = || "list addresses".to_owned();
        let request = rt_addr::Request::new().op_getaddr_dump(&rt_addr::Ifaddrmsg::new());
        let mut reply = self.socket.request(&request).map_err(|error| LinkError::io(what(), error))?;
        let mut addresses = Vec::new();
        while let Some(answer) = reply.recv() {
            let (header, attributes) = answer.map_err(|error| LinkError::reply(what(), error))?;
            if header.ifa_scope != libc::RT_SCOPE_UNIVERSE {
                continue;
            }
            // Only IPv4 tells a link's own address from that of the other end.
            addresses.extend(attributes.get_local().or_else(|_| attributes.get_address()));
        }
        Ok(addresses)
    }

    /// Routes everything that has no better route to `gateway`.
    pub(crate) fn add_default_route(&mut self, gateway: Ipv4Addr, index: u32) -> Result<(), LinkError> {
        let header = rt_route::Rtmsg {
            rtm_family: AF_INET,
            rtm_table: libc::RT_TABLE_MAIN,
            rtm_protocol: libc::RTPROT_BOOT,
            rtm_scope: libc::RT_SCOPE_UNIVERSE,
            rtm_type: libc::RTN_UNICAST,
            ..Default::default()
        };
        let mut request = rt_route::Request::new().set_create().set_excl().op_newroute_do(&header);
        request.encode().push_gateway(IpAddr::V4(gateway)).push_oif(index);
        self.acknowledged(|| format!("route to {gateway}"), &request)
    }

    /// Delivers everything that is looked up in `table` locally (`local 0.0.0.0/0 dev lo`).
    pub(crate) fn add_local_route(&mut self, table: u8, loopback: u32) -> Result<(), LinkError> {
        let header = rt_route::Rtmsg {
            rtm_family: AF_INET,
            rtm_table: table,
            rtm_protocol: libc::RTPROT_BOOT,
            rtm_scope: libc::RT_SCOPE_HOST,
            rtm_type: libc::RTN_LOCAL,
            ..Default::default()
        };
        let mut request = rt_route::Request::new().set_create().set_excl().op_newroute_do(&header);
        request.encode().push_oif(loopback);
        self.acknowledged(|| format!("make the local route of table {table}"), &request)
    }

    /// Looks packets with that mark up in `table`.
    pub(crate) fn add_mark_rule(&mut self, mark: u32, mask: u32, table: u8, priority: u32) -> Result<(), LinkError> {
        let header =
            rt_rule::FibRuleHdr { family: AF_INET, table, action: rt_rule::FrAct::ToTbl as u8, ..Default::default() };
        let mut request = rt_rule::Request::new().set_create().set_excl().op_newrule_do(&header);
        request.encode().push_fwmark(mark).push_fwmask(mask).push_priority(priority);
        self.acknowledged(|| format!("make the routing rule for mark {mark:#x}"), &request)
    }

    fn acknowledged(&mut self, what: impl Fn() -> String, request: &impl NetlinkRequest) -> Result<(), LinkError> {
        self.socket
            .request(request)
            .map_err(|error| LinkError::io(what(), error))?
            .recv_ack()
            .map_err(|error| LinkError::reply(what(), error))
    }
}

/// The hardware address of a link that has `ip`, as other bridges for pods make it: locally administered, then `ip`.
fn hardware_address(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Links")
    }
}

// === impl LinkError ===

impl LinkError {
    pub(crate) fn io(what: String, source: io::Error) -> Self {
        Self { what, reason: source.to_string(), source, advice: None }.with_advice(libc::EOPNOTSUPP, LOAD_LINKS)
    }

    pub(crate) fn reply(what: String, reply: netlink_socket2::ReplyError) -> Self {
        Self { what, reason: reply.to_string(), source: reply.into(), advice: None }
            .with_advice(libc::EOPNOTSUPP, LOAD_LINKS)
    }

    /// Says what to change when this is that error.
    pub(crate) fn with_advice(mut self, number: i32, advice: &'static str) -> Self {
        if self.source.raw_os_error() == Some(number) {
            self.advice = Some(advice);
        }
        self
    }

    /// What the kernel said.
    pub fn as_io_error(&self) -> &io::Error {
        &self.source
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel refuses to {}: {}", self.what, self.reason)?;
        match self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for LinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
