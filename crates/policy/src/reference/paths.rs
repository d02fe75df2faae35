//! The ways a path can be read.

use std::collections::BTreeSet;

use crate::PathNormalization;

/// The authority of a target in absolute form.
pub(super) fn authority(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    (!scheme.starts_with('/')).then(|| rest.split(['/', '?', '\\']).next().unwrap_or(rest))
}

/// The paths that a target can be read as; nothing if it is refused.
pub(crate) fn readings(target: &str, how: PathNormalization) -> Option<BTreeSet<String>> {
    if target.len() > crate::limits::MAX_TARGET_BYTES || target.contains('#') {
        return None;
    }
    let mut origin = target.to_owned();
    if !target.starts_with('/') {
        let (scheme, rest) = target.split_once("://")?;
        if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
            return None;
        }
        let authority = authority(target)?;
        origin = rest[authority.len()..].to_owned();
        if authority.is_empty() || origin.starts_with('\\') {
            return None;
        }
        if !origin.starts_with('/') {
            origin = "/".to_owned();
        }
    }
    let raw = origin.split('?').next().unwrap_or_default().to_owned();
    if raw.contains("%00") {
        return None;
    }
    let path = unescape(&raw);
    let envoy_decoded = slashes(raw.replace("%5c", "\\").replace("%5C", "\\"));
    let envoy = |raw: &str| dots(unescape(&without_dot_parameters(raw)));
    let envoy_merged = |raw: &str| match envoy(raw) {
        path if path.len() > 1 && path.bytes().all(|byte| byte == b'/') => "//".to_owned(),
        path => merged(path),
    };
    Some(BTreeSet::from_iter(match how {
        PathNormalization::None => vec![raw],
        PathNormalization::Base => vec![envoy(&raw)],
        PathNormalization::MergeSlashes => vec![envoy_merged(&raw)],
        PathNormalization::DecodeAndMergeSlashes => vec![envoy_merged(&envoy_decoded)],
        PathNormalization::AllReadings => {
            // As sent, and as a proxy that has resolved the dot segments, or an Envoy, passes it on.
            let starts = [path.clone(), dots(path), envoy(&raw)];
            let roots = starts.into_iter().flat_map(|path| {
                let (decoded, stripped) = (slashes(path.clone()), parameters(&path));
                [slashes(stripped.clone()), parameters(&decoded), path, decoded, stripped]
            });
            let read = roots.flat_map(|p| [dots(p.clone()), merged(dots(p.clone())), dots(merged(p))]);
            read.chain([envoy(&raw), envoy_merged(&raw), envoy_merged(&envoy_decoded)]).collect()
        }
    }))
}

fn unescape(raw: &str) -> String {
    let mut bytes: Vec<u8> = raw.bytes().rev().collect();
    let mut out = String::new();
    while let Some(byte) = bytes.pop() {
        let hex: String = bytes.iter().rev().take(2).map(|&b| char::from(b)).collect();
        let escape =
            (byte == b'%' && hex.len() == 2 && !hex.contains('+')).then(|| u8::from_str_radix(&hex, 16).ok()).flatten();
        match (byte, escape) {
            (b'%', None) => {
                let mut after =
                    unescape(&String::from_utf8_lossy(&bytes.iter().rev().copied().collect::<Vec<_>>())).into_bytes();
                after.resize(2, b'-');
                out.push_str(if after.iter().all(u8::is_ascii_hexdigit) { "%25" } else { "%" });
            }
            (b'%', Some(inner)) if inner.is_ascii_alphanumeric() || [b'-', b'.', b'_', b'~'].contains(&inner) => {
                out.push(char::from(inner));
                bytes.truncate(bytes.len() - 2);
            }
            (b'\\', _) => out.push('/'),
            (b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=b' ' | 0x7f..=0xff, _) => {
                out.push_str(&format!("%{byte:02X}"));
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

fn slashes(path: String) -> String {
    ["%2f", "%2F", "%5c", "%5C"].iter().fold(path, |path, escape| path.replace(escape, "/"))
}

fn parameters(path: &str) -> String {
    path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
}

fn merged(mut path: String) -> String {
    while path.contains("//") {
        path = path.replace("//", "/");
    }
    path
}

fn without_dot_parameters(raw: &str) -> String {
    let segment = |segment: &str| match segment.split_once(';') {
        Some((dots @ ("." | ".."), _)) => dots.to_owned(),
        _ => segment.to_owned(),
    };
    raw.split('/').map(segment).collect::<Vec<_>>().join("/")
}

fn dots(path: String) -> String {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let mut kept = Vec::new();
    for segment in &segments {
        match *segment {
            "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    if matches!(segments.last(), Some(&("." | ".."))) {
        kept.push("");
    }
    format!("/{}", kept.join("/"))
}
