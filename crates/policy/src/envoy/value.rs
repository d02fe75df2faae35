//! Values of each field as Envoy's matchers (`spec/authorization.md` 2.4).

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    Dialect, IdentitySource, Place,
    field::{Side, Values},
};
use crate::{
    CompileError,
    principal::expand_aliases,
    template::{PathTemplate, is_template},
};

type Rendered = Result<Values, CompileError>;

const SPIFFE: &str = "spiffe://";
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
const JWT_PAYLOAD: &str = "payload";
const TEMPLATE_TYPE: &str = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
/// Any text that isn't empty.
const SOMETHING: &str = ".+";

// === who is calling ===

pub(super) fn principals(values: &[String], place: &Place<'_>) -> Rendered {
    let expanded = values.iter().flat_map(|value| expand_aliases(value, &place.target.options.trust_domains));
    let render = |value: String| match value.as_str() {
        "*" if place.is_strict() => identity(place, json!({"prefix": SPIFFE})),
        // Where a match denies, a client without an identity is denied too.
        "*" if place.target.dialect == Dialect::Strict => json!({"any": true}),
        "*" => identity(place, regex(SOMETHING.to_owned())),
        // Anchored at both ends: a suffix follows the scheme somewhere.
        value if value.starts_with('*') => identity(place, regex(format!("{SPIFFE}.*{}", quoted(&value[1..])))),
        value => identity(place, string(&format!("{SPIFFE}{value}"))),
    };
    each(expanded.map(|value| Ok(render(value))), false)
}

pub(super) fn namespaces(values: &[String], place: &Place<'_>) -> Rendered {
    let render = |value: &String| {
        let (any, start, end) =
            if place.is_strict() { ("[^/]*", "spiffe://[^/]+/ns/", "/sa/[^/]+") } else { (".*", ".*/ns/", "/.*") };
        let namespace: Vec<_> = value.split('*').map(quoted).collect();
        identity(place, regex(format!("{start}{}{end}", namespace.join(any))))
    };
    each(values.iter().map(|value| Ok(render(value))), false)
}

pub(super) fn accounts(values: &[String], place: &Place<'_>) -> Rendered {
    let render = |(index, value): (usize, &String)| {
        let (namespace, account) = value.split_once('/').unwrap_or((&place.policy.namespace, value));
        if namespace.is_empty() || account.is_empty() || account.contains('/') || value.contains('*') {
            let message = format!("`{value}` isn't `account` or `namespace/account`");
            return Err(place.at(format_args!("[{index}]")).error(message));
        }
        let (namespace, account) = (quoted(namespace), quoted(account));
        Ok(identity(
            place,
            regex(if place.is_strict() {
                format!("spiffe://[^/]+/ns/{namespace}/sa/{account}")
            } else {
                format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?")
            }),
        ))
    };
    each(values.iter().enumerate().map(render), false)
}

pub(super) fn trust_domains(values: &[String], place: &Place<'_>) -> Rendered {
    let known = &place.target.options.trust_domains;
    let mut expanded: Vec<&String> = Vec::new();
    for value in values {
        let meant = if known.contains(value) { known.as_slice() } else { std::slice::from_ref(value) };
        for domain in meant {
            if !expanded.contains(&domain) {
                expanded.push(domain);
            }
        }
    }
    let render = |value: &String| {
        let parts: Vec<_> = value.split('*').map(quoted).collect();
        identity(
            place,
            match parts.as_slice() {
                _ if value == "*" => json!({"prefix": SPIFFE}),
                [_] => json!({"prefix": format!("{SPIFFE}{value}/")}),
                parts => regex(format!("{SPIFFE}{}/.*", parts.join("[^/]*"))),
            },
        )
    };
    each(expanded.into_iter().map(|value| Ok(render(value))), false)
}

pub(super) fn source_ips(values: &[String], place: &Place<'_>) -> Rendered {
    addresses("directRemoteIp", values, place)
}

pub(super) fn remote_ips(values: &[String], place: &Place<'_>) -> Rendered {
    addresses("remoteIp", values, place)
}

// === what is called ===

pub(super) fn hosts(values: &[String], _: &Place<'_>) -> Rendered {
    let render = |value: &String| {
        if value == "*" {
            return json!({"header": {"name": ":authority", "presentMatch": true}});
        }
        let mut matcher = string(value);
        matcher["ignoreCase"] = true.into();
        json!({"header": {"name": ":authority", "stringMatch": matcher}})
    };
    each(values.iter().map(|value| Ok(render(value))), true)
}

pub(super) fn methods(values: &[String], _: &Place<'_>) -> Rendered {
    header(":method", values)
}

pub(super) fn paths(values: &[String], place: &Place<'_>) -> Rendered {
    let render = |(index, value): (usize, &String)| {
        if !is_template(value) {
            return Ok(json!({"urlPath": {"path": string(value)}}));
        }
        PathTemplate::parse(value).map_err(|message| place.at(format_args!("[{index}]")).error(message))?;
        let template = value.replace("{**}", "**").replace("{*}", "*");
        let config = json!({"@type": TEMPLATE_TYPE, "pathTemplate": template});
        Ok(json!({"uriTemplate": {"name": "uri-template", "typedConfig": config}}))
    };
    each(values.iter().enumerate().map(render), true)
}

pub(super) fn destination_ports(values: &[String], place: &Place<'_>) -> Rendered {
    let render = |(index, value): (usize, &String)| match value.parse::<u16>() {
        Ok(port) if value.bytes().all(|byte| byte.is_ascii_digit()) => Ok(json!({"destinationPort": port})),
        _ => Err(place.at(format_args!("[{index}]")).error(format!("`{value}` isn't a port number from 0 to 65535"))),
    };
    each(values.iter().enumerate().map(render), false)
}

pub(super) fn destination_ips(values: &[String], place: &Place<'_>) -> Rendered {
    addresses("destinationIp", values, place)
}

pub(super) fn server_names(values: &[String], _: &Place<'_>) -> Rendered {
    each(values.iter().map(|value| Ok(json!({"requestedServerName": string(value)}))), false)
}

// === requests ===

/// Any line of a header with one of these values. `*` is its presence.
pub(super) fn header(name: &str, values: &[String]) -> Rendered {
    let render = |value: &String| {
        if value == "*" {
            json!({"header": {"name": name, "presentMatch": true}})
        } else {
            json!({"header": {"name": name, "stringMatch": string(value)}})
        }
    };
    each(values.iter().map(|value| Ok(render(value))), true)
}

/// `issuer/subject`, split at the last `/`; a `*` at the start or end is for one of the two.
pub(super) fn request_principals(values: &[String], _: &Place<'_>) -> Rendered {
    let something = || regex(SOMETHING.to_owned());
    let render = |value: &String| {
        let (issuer, subject) = match value.rsplit_once('/') {
            _ if value == "*" => (something(), something()),
            None if value.starts_with('*') => (something(), json!({"suffix": value[1..]})),
            None if value.ends_with('*') => (string(value), something()),
            None => (json!({"exact": value}), json!({"exact": ""})),
            Some((issuer, subject)) if value.starts_with('*') => {
                let issuer = if issuer == "*" { something() } else { json!({"suffix": issuer[1..]}) };
                (issuer, json!({"exact": subject}))
            }
            Some((issuer, subject)) => (json!({"exact": issuer}), string(subject)),
        };
        let claim = |name: &str, matcher| metadata(JWT_FILTER, &[JWT_PAYLOAD, name], json!({"stringMatch": matcher}));
        Side::Principal.all(vec![claim("iss", issuer), claim("sub", subject)])
    };
    let mut rendered: Vec<_> = values.iter().map(render).collect();
    let matcher = if rendered.len() == 1 { rendered.remove(0) } else { Side::Principal.any(rendered) };
    Ok(Values::Together { matcher, needs_http: true })
}

/// A claim that is one of these strings, or a list that holds one.
pub(super) fn claim(path: &[&str], values: &[String]) -> Rendered {
    let one = one_of(values.iter().map(|value| json!({"stringMatch": string(value)})).collect());
    let either = json!({"orMatch": {"valueMatchers": [{"listMatch": {"oneOf": one}}, one]}});
    let path: Vec<_> = [JWT_PAYLOAD].into_iter().chain(path.iter().copied()).collect();
    Ok(Values::Together { matcher: metadata(JWT_FILTER, &path, either), needs_http: true })
}

/// What another filter left behind: a string, or with `[value]` a list that holds one.
pub(super) fn filter_metadata(filter: &str, key: &str, values: &[String]) -> Rendered {
    let render = |value: &String| match value.strip_prefix('[').and_then(|value| value.strip_suffix(']')) {
        Some(element) => json!({"listMatch": {"oneOf": {"stringMatch": string(element)}}}),
        None => json!({"stringMatch": string(value)}),
    };
    let matcher = metadata(filter, &[key], one_of(values.iter().map(render).collect()));
    Ok(Values::Together { matcher, needs_http: false })
}

// === matchers ===

fn each(values: impl Iterator<Item = Result<Value, CompileError>>, needs_http: bool) -> Rendered {
    Ok(Values::Each { values: values.collect::<Result<_, _>>()?, needs_http })
}

fn identity(place: &Place<'_>, matcher: Value) -> Value {
    match place.target.identity {
        IdentitySource::MutualTls => json!({"authenticated": {"principalName": matcher}}),
        IdentitySource::FilterState(key) => json!({"filterState": {"key": key, "stringMatch": matcher}}),
    }
}

/// `foo`, `foo*`, `*foo`, and `*` for anything but nothing.
fn string(value: &str) -> Value {
    if value == "*" {
        regex(SOMETHING.to_owned())
    } else if let Some(suffix) = value.strip_prefix('*') {
        json!({"suffix": suffix})
    } else if let Some(prefix) = value.strip_suffix('*') {
        json!({"prefix": prefix})
    } else {
        json!({"exact": value})
    }
}

fn regex(regex: String) -> Value {
    json!({"safeRegex": {"regex": regex}})
}

/// The text as a regular expression that takes only it.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for character in text.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted
}

fn addresses(kind: &str, values: &[String], place: &Place<'_>) -> Rendered {
    let render = |(index, value): (usize, &String)| {
        let net = match value.contains('/') {
            true => value.parse::<IpNet>().ok(),
            false => value.parse::<IpAddr>().ok().map(IpNet::from),
        };
        let net = net.ok_or_else(|| {
            place.at(format_args!("[{index}]")).error(format!("`{value}` isn't an address or a CIDR range"))
        })?;
        let range = json!({"addressPrefix": net.addr().to_string(), "prefixLen": net.prefix_len()});
        Ok(json!({kind: range}))
    };
    each(values.iter().enumerate().map(render), false)
}

fn one_of(mut matchers: Vec<Value>) -> Value {
    if matchers.len() == 1 { matchers.remove(0) } else { json!({"orMatch": {"valueMatchers": matchers}}) }
}

fn metadata(filter: &str, path: &[&str], value: Value) -> Value {
    let path: Vec<_> = path.iter().map(|key| json!({"key": key})).collect();
    json!({"metadata": {"filter": filter, "path": path, "value": value}})
}
