//! Requests: any, and those near to one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ambit_policy::Claims;
use serde_json::{Value, json};

use super::{
    pattern,
    policy::{Kind, Written},
    target, words,
};
use crate::{
    case::{Connection, PolicySet, Request},
    random::Random,
};

/// A request of the usual kind.
pub fn any(random: &mut Random, set: &PolicySet) -> Request {
    let (remote_ip, destination_ip) = addresses(random);
    let mut target = random.word(words::PATHS);
    if random.percent(10) {
        target.push_str("?q=1");
    }
    let mut request = Request {
        connection: Connection {
            principal: random.percent(97).then(|| principal(random, set)),
            source_ip: source_ip(random),
            remote_ip,
            destination_ip,
            destination_port: *random.pick(words::PORTS),
            sni: (!set.is_http && random.percent(40)).then(|| server_name(random)),
        },
        method: random.word(words::METHODS),
        target,
        host: random.word(words::HOSTS),
        headers: Vec::new(),
        claims: None,
    };
    for _ in 0..random.below(4) {
        set_header(random, &mut request);
    }
    if random.percent(50) {
        request.claims = Some(claims(random));
    }
    request
}

/// Moves one thing about the connection.
pub fn move_connection(random: &mut Random, request: &mut Request, set: &PolicySet, written: &Written) {
    if random.percent(45) {
        take_written(random, request, written, true);
        return;
    }
    let connection = &mut request.connection;
    match random.below(12) {
        0..=3 => connection.principal = Some(principal(random, set)),
        4 | 5 => connection.principal = connection.principal.as_deref().map(|id| near_principal(random, id)),
        6 if random.percent(40) => connection.principal = None,
        6 | 7 => connection.source_ip = source_ip(random),
        8 => (connection.remote_ip, connection.destination_ip) = addresses(random),
        9 | 10 => connection.destination_port = *random.pick(words::PORTS),
        _ => connection.sni = (!set.is_http && random.percent(80)).then(|| server_name(random)),
    }
}

/// Moves one thing about the request.
pub fn move_request(random: &mut Random, request: &mut Request, written: &Written) {
    if random.percent(40) {
        take_written(random, request, written, false);
        return;
    }
    match random.below(12) {
        0 => request.method = random.word(words::METHODS),
        1..=5 => request.target = target::moved(random, &request.target),
        6 => {
            let host = pattern::near(random, &request.host);
            if !host.is_empty() {
                request.host = host;
            }
        }
        7 => request.host = random.word(words::HOSTS),
        8 | 9 => set_header(random, request),
        10 if random.percent(50) => request.claims = None,
        10 => request.claims = Some(claims(random)),
        _ => {
            let at = random.below(request.headers.len().max(1));
            if let Some((_, value)) = request.headers.get_mut(at) {
                *value = trimmed(pattern::near(random, value));
            }
        }
    }
}

/// What is left to say when nothing moves any more.
pub fn settle(random: &mut Random, request: &mut Request) {
    // The token itself travels there.
    if request.claims.is_some() {
        request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
    }
    if random.percent(2) {
        let authority = if random.percent(50) { request.host.clone() } else { random.word(words::HOSTS) };
        request.target = format!("http://{authority}{}", request.target);
    }
}

/// Takes a value from a policy, so that the request matches it, or nearly.
fn take_written(random: &mut Random, request: &mut Request, written: &Written, of_connection: bool) {
    let values: Vec<_> = written.values.iter().filter(|(kind, _)| kind.is_of_connection() == of_connection).collect();
    if values.is_empty() {
        return;
    }
    let (kind, value) = random.pick(&values);
    let text = pattern::filled(random, value);
    let connection = &mut request.connection;
    match kind {
        Kind::Principal if !text.is_empty() => connection.principal = Some(format!("spiffe://{text}")),
        Kind::Namespace => replace_part(&mut connection.principal, 4, &text),
        Kind::ServiceAccount => {
            let (namespace, account) = text.split_once('/').map_or((None, text.as_str()), |(n, a)| (Some(n), a));
            replace_part(&mut connection.principal, 6, account);
            if let Some(namespace) = namespace {
                replace_part(&mut connection.principal, 4, namespace);
            }
        }
        Kind::TrustDomain => replace_part(&mut connection.principal, 2, &text),
        Kind::SourceIp => {
            if let Some(IpAddr::V4(address)) = address_in(random, value).filter(is_usable_source) {
                connection.source_ip = address.into();
            }
        }
        Kind::RemoteIp | Kind::DestinationIp => {
            let fits = |a: &IpAddr| a.is_ipv4() == connection.remote_ip.is_ipv4() && is_usable_elsewhere(a);
            if let Some(address) = address_in(random, value).filter(fits) {
                let is_remote = matches!(kind, Kind::RemoteIp);
                *(if is_remote { &mut connection.remote_ip } else { &mut connection.destination_ip }) = address;
            }
        }
        Kind::Port => connection.destination_port = value.parse().unwrap_or(1),
        Kind::ServerName if connection.sni.is_some() && !text.is_empty() => connection.sni = Some(text),
        Kind::Method if text.bytes().all(|b| b.is_ascii_uppercase()) && words::METHODS.contains(&text.as_str()) => {
            request.method = text;
        }
        Kind::Host if !text.is_empty() && !text.contains(['/', '*']) => request.host = text,
        Kind::Path if text.starts_with('/') && !text.contains([' ', '#']) => request.target = text,
        // A second `host` line is a malformed request.
        Kind::Header(name) if !name.starts_with(':') && name != "host" => {
            request.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            request.headers.push((name.clone(), trimmed(text)));
        }
        Kind::Claim(path) => set_claim(random, request, path, &text),
        _ => {}
    }
}

fn principal(random: &mut Random, set: &PolicySet) -> String {
    let domain = if random.percent(75) {
        random.pick(&set.trust_domains).clone()
    } else {
        random.word(words::OTHER_TRUST_DOMAINS)
    };
    let (namespace, account) = (random.word(words::NAMESPACES), random.word(words::ACCOUNTS));
    match random.below(60) {
        0 => format!("spiffe://{domain}/ns/{namespace}/sa/{account}/more"),
        1 => format!("spiffe://{domain}/x/ns/{namespace}/sa/{account}"),
        _ => format!("spiffe://{domain}/ns/{namespace}/sa/{account}"),
    }
}

fn near_principal(random: &mut Random, id: &str) -> String {
    let mut id = Some(id.to_owned());
    let (part, all) = *random.pick(&[(2, words::OTHER_TRUST_DOMAINS), (4, words::NAMESPACES), (6, words::ACCOUNTS)]);
    let old = id.as_deref().and_then(|id| id.split('/').nth(part)).unwrap_or_default().to_owned();
    let new = if random.percent(50) { random.word(all) } else { pattern::near(random, &old).to_ascii_lowercase() };
    replace_part(&mut id, part, &new);
    id.unwrap_or_default()
}

/// Replaces what stands between two slashes of an identity.
fn replace_part(id: &mut Option<String>, part: usize, new: &str) {
    let Some(old) = id else { return };
    let mut parts: Vec<_> = old.split('/').collect();
    if parts.len() > part && !new.is_empty() {
        parts[part] = new;
        *id = Some(parts.join("/"));
    }
}

/// All addresses of 127.0.0.0/8 are this machine's.
fn source_ip(random: &mut Random) -> IpAddr {
    if random.percent(8) {
        return Ipv6Addr::LOCALHOST.into();
    }
    let (b, c) = (*random.pick(&[0, 1, 2, 127, 128]), *random.pick(&[0, 1, 128, 255]));
    Ipv4Addr::new(127, b, c, *random.pick(&[1, 2, 5, 100, 254])).into()
}

fn is_usable_source(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 127 && (1..255).contains(&v4.octets()[3]))
}

/// What a PROXY protocol header may name: hosts, not groups of them.
fn is_usable_elsewhere(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => (1..224).contains(&v4.octets()[0]),
        IpAddr::V6(v6) => (0x2000..0xfe00).contains(&v6.segments()[0]),
    }
}

fn addresses(random: &mut Random) -> (IpAddr, IpAddr) {
    let is_v6 = random.percent(20);
    let mut one = || -> IpAddr {
        if is_v6 {
            let (a, b) = (*random.pick(&[0, 1, 0x8000]), *random.pick(&[1, 2, 0xff, 0x100]));
            Ipv6Addr::new(0xfd00, 0, a, 0, 0, 0, 0, b).into()
        } else {
            let (b, c) = (*random.pick(&[0, 1, 96, 244]), *random.pick(&[0, 1, 2, 128]));
            Ipv4Addr::new(10, b, c, *random.pick(&[0, 1, 5, 10, 11, 255])).into()
        }
    };
    (one(), one())
}

/// An address of this block or on its border.
fn address_in(random: &mut Random, block: &str) -> Option<IpAddr> {
    let net: ipnet::IpNet = block.parse().or_else(|_| block.parse::<IpAddr>().map(ipnet::IpNet::from)).ok()?;
    let (first, last) = (net.network(), net.broadcast());
    let step = |address: IpAddr, by: i8| -> IpAddr {
        match address {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).wrapping_add_signed(by.into())).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).wrapping_add_signed(by.into())).into(),
        }
    };
    Some(*random.pick(&[first, last, step(first, 1), step(first, -1), step(last, 1), step(last, -1)]))
}

fn server_name(random: &mut Random) -> String {
    random.word(&["web.example.com", "Web.example.com", "api.example.com", "example.com", "web"])
}

/// Adds a header line; one in six times the name is there already.
fn set_header(random: &mut Random, request: &mut Request) {
    let name = random.word(words::HEADERS);
    if !random.percent(15) {
        request.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(&name));
    }
    let value = random.word(words::HEADER_VALUES);
    request.headers.push((name, value));
}

fn trimmed(value: String) -> String {
    value.trim().to_owned()
}

fn claims(random: &mut Random) -> Claims {
    let mut claims = Claims::new();
    let mut set = |name: &str, value: Value| {
        claims.insert(name.to_owned(), value);
    };
    if random.percent(92) {
        set("iss", random.word(words::ISSUERS).into());
    }
    if random.percent(92) {
        set("sub", random.word(words::SUBJECTS).into());
    }
    set("aud", strings(random, words::AUDIENCES));
    if random.percent(60) {
        set("azp", random.word(words::AUDIENCES).into());
    }
    for path in [["groups"], ["role"], ["scope"], ["a.b"]] {
        if random.percent(50) {
            set(path[0], strings(random, words::GROUPS));
        }
    }
    if random.percent(60) {
        set("realm", json!({"roles": strings(random, words::GROUPS), "name": random.word(words::GROUPS)}));
    }
    if random.percent(20) {
        let odd = [json!(3), json!(true), json!([["admin"]]), json!({"admin": "admin"}), json!(["admin", 3])];
        set("level", random.pick(&odd).clone());
    }
    claims
}

/// One string, or a list of up to three.
fn strings(random: &mut Random, from: &[&str]) -> Value {
    if random.percent(50) {
        return random.word(from).into();
    }
    (0..random.below(4)).map(|_| Value::from(random.word(from))).collect()
}

fn set_claim(random: &mut Random, request: &mut Request, path: &[String], text: &str) {
    let mut place = request.claims.get_or_insert_default();
    let Some((last, parents)) = path.split_last() else { return };
    for parent in parents {
        let inner = place.entry(parent).or_insert_with(|| json!({}));
        if !inner.is_object() {
            *inner = json!({});
        }
        let Some(inner) = inner.as_object_mut() else { return };
        place = inner;
    }
    let is_list = !["iss", "sub", "azp"].contains(&last.as_str()) && random.percent(40);
    place.insert(last.clone(), if is_list { json!(["other", text]) } else { text.into() });
}
