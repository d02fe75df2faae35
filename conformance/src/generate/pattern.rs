//! From texts to patterns that take them, and back.

use crate::random::Random;

/// Characters that change a text into a near one.
const CHARACTERS: &[&str] = &["a", "b", "z", "0", "1", "-", ".", "A"];

/// A value that mostly takes this text: exact, prefix, suffix, presence, or a near miss.
pub fn string(random: &mut Random, text: &str) -> String {
    let cut = boundary(text, random.below(text.len() + 1));
    match random.below(20) {
        0..=8 => text.to_owned(),
        9..=12 => format!("{}*", &text[..cut]),
        13..=16 => format!("*{}", &text[cut..]),
        17 => "*".to_owned(),
        _ => near(random, text),
    }
}

/// A text that is different in one place.
pub fn near(random: &mut Random, text: &str) -> String {
    let at = boundary(text, random.below(text.len() + 1));
    let (front, back) = text.split_at(at);
    match random.below(7) {
        0 => format!("{text}{}", random.word(CHARACTERS)),
        1 => format!("{}{text}", random.word(CHARACTERS)),
        2 => format!("{front}{}{back}", random.word(CHARACTERS)),
        3 => format!("{front}{}", back.chars().skip(1).collect::<String>()),
        4 => text.chars().rev().skip(1).collect::<Vec<_>>().into_iter().rev().collect(),
        5 => {
            let swap = |c: char| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
            let swapped: String = back.chars().take(1).map(swap).collect();
            format!("{front}{swapped}{}", back.chars().skip(1).collect::<String>())
        }
        _ => front.to_owned(),
    }
}

/// A text that this value takes, or nearly.
pub fn filled(random: &mut Random, value: &str) -> String {
    let mut text = value.to_owned();
    for (operator, fillings) in
        [("{**}", ["", "a", "a/b", "a//b"]), ("{*}", ["x", "x.y", "a/b", ""]), ("*", ["", "x", "a-b", "z/z"])]
    {
        while text.contains(operator) {
            text = text.replacen(operator, &random.word(&fillings), 1);
        }
    }
    if random.percent(35) { near(random, &text) } else { text }
}

/// A value of `paths`, sometimes a template.
pub fn path(random: &mut Random, path: &str) -> String {
    if random.percent(65) {
        return string(random, path);
    }
    let mut segments: Vec<_> = path.split('/').skip(1).map(str::to_owned).collect();
    if random.percent(50) {
        let from = random.below(segments.len());
        let to = if random.percent(60) { segments.len() } else { random.between(from, segments.len()) };
        segments.splice(from..to, ["{**}".to_owned()]);
        for segment in &mut segments[..from] {
            if random.percent(25) {
                "{*}".clone_into(segment);
            }
        }
    } else {
        for _ in 0..random.between(1, 2) {
            let at = random.below(segments.len());
            "{*}".clone_into(&mut segments[at]);
        }
    }
    format!("/{}", segments.join("/"))
}

/// A CIDR block that holds this address, or nearly does: one bit at its border moved.
pub fn block(random: &mut Random, address: std::net::IpAddr) -> String {
    let width: usize = if address.is_ipv4() { 32 } else { 128 };
    if random.percent(25) {
        return address.to_string();
    }
    let bits = match random.below(4) {
        0 => width - random.below(4),
        1 => random.below(width + 1),
        _ => width / 4 * random.between(1, 4),
    };
    let flipped = match address {
        _ if bits == 0 || random.percent(60) => address,
        std::net::IpAddr::V4(v4) => std::net::Ipv4Addr::from(u32::from(v4) ^ (1 << (width - bits))).into(),
        std::net::IpAddr::V6(v6) => std::net::Ipv6Addr::from(u128::from(v6) ^ (1 << (width - bits))).into(),
    };
    format!("{flipped}/{bits}")
}

fn boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
