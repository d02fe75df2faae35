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
    let mut pieces: Vec<String> = Vec::new();
    let mut rest = raw.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).filter(|hex| !hex.contains('+'));
        let escape = hex.filter(|_| byte == b'%').and_then(|hex| Some((hex, u8::from_str_radix(hex, 16).ok()?)));
        rest = if escape.is_some() { &after[2..] } else { after };
        pieces.push(match (byte, escape) {
            (_, Some((_, inner))) if inner.is_ascii_alphanumeric() || [b'-', b'.', b'_', b'~'].contains(&inner) => {
                char::from(inner).to_string()
            }
            (_, Some((hex, _))) => format!("%{hex}"),
            (b'\\', _) => "/".to_owned(),
            (b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=b' ' | 0x7f..=0xff, _) => {
                format!("%{byte:02X}")
            }
            _ => char::from(byte).to_string(),
        });
    }
    let digit =
        |at: usize| pieces.get(at).is_some_and(|piece: &String| u8::from_str_radix(piece, 16).is_ok_and(|n| n < 16));
    let piece = |at: usize| if pieces[at] == "%" && digit(at + 1) && digit(at + 2) { "%25" } else { &pieces[at] };
    (0..pieces.len()).map(piece).collect()
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
